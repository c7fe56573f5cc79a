"""`make kernels-mutations` takes minutes; that its edits still fit the kernels is soon known."""

import runpy
from pathlib import Path


def test_every_edit_fits() -> None:
    names = runpy.run_path(str(Path(__file__).with_name("mutate.py")))
    assert list(names["stale"]()) == [] and all(names["EDITS"].values())
