"""The `burrstone` command."""

import argparse
import difflib
import shlex
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

from burrstone.batching.errors import UsageError
from burrstone.serving.cli import config, doctor, serve
from burrstone.serving.cli.flags import nearest_flag
from burrstone.serving.config import EMBEDDED_MODEL, ConfigError, ServeConfig
from burrstone.serving.engine.models import embedded_model

EXIT_CONFIG = 2
EXIT_STOPPED = 130  # as a shell says of a command that Ctrl-C ended
# Rooms that serving knows nothing of add their commands through entry points of this group.
COMMANDS_GROUP = "burrstone.commands"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="burrstone",
        description="Serve large language models over one OpenAI-compatible API, HTTP and gRPC.",
        epilog="Start here: `burrstone serve` serves the embedded model on this machine.",
    )
    parser.add_argument("--version", action="version", version=f"burrstone {version('burrstone')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (serve, config, doctor):
        module.add_parser(commands)
    for entry in sorted(entry_points(group=COMMANDS_GROUP)):
        entry.load()(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 bad configuration or usage, 130 stopped by Ctrl-C."""
    given = sys.argv[1:] if argv is None else argv
    arguments, unknown = build_parser().parse_known_args(given)
    arguments.command_line = shlex.join(["burrstone", *given])
    arguments.find_model = _find_model
    try:
        if unknown:
            # A command that is no server's tells which flags it has.
            near = nearest_flag(unknown[0], getattr(arguments, "flags", ()))
            hint = f"; did you mean {near}?" if near else f"; see `burrstone {arguments.command} --help`"
            raise ConfigError(f"unknown argument {unknown[0]}{hint}")
        code: int = arguments.run(arguments)
    except UsageError as error:
        print(f"burrstone: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except KeyboardInterrupt:
        print("burrstone: stopped", file=sys.stderr)
        return EXIT_STOPPED
    return code


def _find_model(name: str) -> str:
    """For commands of other rooms, which know models by folder or hub id: where the embedded model lies."""
    if name == EMBEDDED_MODEL:
        return str(embedded_model(ServeConfig().cache_dir.expanduser()))
    if not Path(name).expanduser().exists() and difflib.get_close_matches(name, [EMBEDDED_MODEL]):
        raise ConfigError(f"model {name!r} does not exist; did you mean {EMBEDDED_MODEL}?")
    return name


if __name__ == "__main__":
    sys.exit(main())
