"""`burrstone sim targets`."""

import argparse

from burrstone.batching.sim.cli.output import ProgressBar, print_json, print_table
from burrstone.batching.sim.report.plots import number
from burrstone.batching.sim.targets.judge import Context, Row, measure, met, runs, traces_folder

_VERDICTS = {True: "met", False: "MISSED", None: "skipped"}


def run(arguments: argparse.Namespace) -> int:
    """Measure the targets; 1 if one is missed."""
    traces = traces_folder(arguments.traces)
    chosen = list(runs(tuple(arguments.only or ())))
    rows: dict[str, Row] = {}
    with ProgressBar() as bar:
        for place, (topic, target) in enumerate(chosen):

            def progress(share: float, text: str, place: int = place, topic: str = topic) -> None:
                bar.at((place + share) / len(chosen), f"{topic}: {text}")

            progress(0.0, "starts")
            rows |= measure(topic, target, Context(traces, progress))
    if arguments.json:
        print_json(rows)
    else:
        print_table("", ["target", "", "value", "goal"], [_cells(name, row) for name, row in rows.items()], words=2)
        for name, row in rows.items():
            if "skipped" in row:
                print(f"{name}: {row['skipped']}")
    return 0 if met(rows) else 1


def _cells(name: str, row: Row) -> list[str]:
    value = "" if row["value"] is None else number(row["value"])
    return [name, _VERDICTS[row["ok"]], value, row["goal"]]
