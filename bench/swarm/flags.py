"""The load commands' flags as locust's own arguments, in its web form too; and back, typed, for a run."""

import argparse
from typing import Any

from burrstone.bench.load.flags import add_load_flags
from burrstone.bench.swarm.shapes import SHAPES

# locust has its own for these: --host, -u for a closed loop's clients, --json for its own statistics.
_LOCUSTS = ("--url", "--concurrency", "--json")
MODES = ("open", "closed")


class _Flags(list[tuple[tuple[str, ...], dict[str, Any]]]):
    """Stands in for a parser, to know what is added to one."""

    def add_argument(self, *names: str, **terms: Any) -> None:
        if names[0] not in _LOCUSTS:
            self.append((names, terms))

    def add_mutually_exclusive_group(self) -> "_Flags":
        return self


def load_flags() -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """(names, terms) of each flag, for any parser's add_argument."""
    flags: Any = _Flags()
    flags.add_argument(
        "--mode", choices=MODES, default="open", help="open: by schedule; closed: --users clients take turns [open]"
    )
    flags.add_argument(
        "--shape",
        choices=tuple(SHAPES),
        default="workload",
        help="of the rate, or of the number of users [%(default)s]",
    )
    add_load_flags(flags)
    flags.add_argument("--json-out", default="", metavar="FILE", help="write the summary here at the end")
    return list(flags)


def add_to_locust(parser: Any) -> None:
    """parser: locust's, which also knows secrets."""
    group = parser.add_argument_group("load", "burrstone's workloads; --host is the server")
    for names, terms in load_flags():
        action = group.add_argument(*names, **terms)
        # A group takes no such terms; the web form reads them from the action.
        action.include_in_web_ui, action.is_secret = names[0] != "--json-out", names[0] == "--key"
        action.is_required = action.is_multiple = False


def arguments_of(options: argparse.Namespace, host: str | None) -> argparse.Namespace:
    """What the load commands take, from locust's options: a web form's texts get the types that the flags have."""
    found: dict[str, Any] = {"url": (host or "").removeprefix("grpc://") or None, "concurrency": None}
    for names, terms in load_flags():
        name = names[0].removeprefix("--").replace("-", "_")
        value = getattr(options, name)
        if value in ("", [""]) and terms.get("default") is None:
            value = None
        elif isinstance(value, str):
            make = terms.get("type", str)
            value = [make(part) for part in value.split(",")] if terms.get("action") == "append" else make(value)
        found[name] = value
    return argparse.Namespace(**found)
