"""`burrstone kernels`: flags only. What they do is loaded when it is asked for, so that other commands need not wait."""

import argparse
import json
import os
from typing import Any

_DESCRIPTION = """\
The Triton kernels of the INT8 path.

  burrstone kernels list       what there is, and what each computes
  burrstone kernels check      compile all of it for every GPU that is supported; needs no GPU"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "kernels",
        help="the INT8 kernels: list them, compile them for every GPU",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="what there is")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_list)
    check = actions.add_parser(
        "check",
        help="compile every kernel for every GPU architecture",
        description="Compile every kernel, in every way it is launched, for each architecture, and refuse spilled registers, "
        "too much shared memory, missing tensor-core instructions and loads of single bytes; compare with the golden "
        "figures of this Triton. Exit code 1 on any failure.",
    )
    check.add_argument("--json", action="store_true")
    check.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="at once [%(default)s]")
    check.add_argument("--update-golden", action="store_true", help="write this Triton's golden figures")
    check.set_defaults(run=_check)


def _list(arguments: argparse.Namespace) -> int:
    from burrstone.kernels.registry import KERNELS

    told = {name: (module.__doc__ or "").partition("\n")[0] for name, module in KERNELS.items()}
    if arguments.json:
        print(json.dumps(told, indent=2))
    else:
        print("\n".join(f"{name:20}{text}" for name, text in told.items()))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    # Triton would interpret the kernels, and there would be nothing to compile.
    os.environ.pop("TRITON_INTERPRET", None)
    from burrstone.kernels.check import check, golden_file

    told, figures = check(max(1, arguments.processes))
    if arguments.update_golden:
        golden_file().write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
        told["failures"] = [failure for failure in told["failures"] if "--update-golden" not in failure]
    if arguments.json:
        print(json.dumps(told, indent=2))
    else:
        print(
            f"Triton {told['triton']}: {told['kernels']} kernels, {told['configs']} configurations, {told['compiled']} compiled"
        )
        print("\n".join(told["failures"]) or "no failures")
    return 1 if told["failures"] else 0
