"""What `bench` and `tune` do on a GPU only, with a stand-in for CUDA: graphs that do nothing, events that tell made-up times."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burrstone.kernels.measure import ceilings, correctness, timing, tune
from burrstone.kernels.measure.bench import Plan, bench
from burrstone.kernels.measure.budget import Budget
from burrstone.kernels.measure.cases.case import Kernel
from burrstone.kernels.measure.cases.every import CASES
from burrstone.kernels.measure.cases.products import INT_MM
from burrstone.kernels.measure.device import Device
from burrstone.kernels.measure.report import table
from burrstone.kernels.measure.tables import read
from burrstone.kernels.measure.timing import Contender, prepare, rounds, sets_for

DEVICE = Device(torch.device("cpu"), rehearsal=False)


class Event:
    """Every replay takes a millisecond."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        pass

    def elapsed_time(self, _: "Event") -> float:
        return 1.0


class Graph:
    captured: list["Graph"] = []  # noqa: RUF012  told apart by the tests below
    replays = 0

    def replay(self) -> None:
        self.replays += 1


@contextlib.contextmanager
def capture(graph: Graph) -> Iterator[None]:
    Graph.captured.append(graph)
    yield


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    properties = SimpleNamespace(L2_cache_size=4096, multi_processor_count=132)
    for name, stand_in in {
        "CUDAGraph": Graph,
        "graph": capture,
        "Event": Event,
        "synchronize": lambda _: None,
        "empty_cache": lambda: None,
        "get_device_properties": lambda _: properties,
        "get_device_name": lambda _: "a made-up H100",
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for module, name, small in (
        (ceilings, "_COPY_BYTES", 2**16),
        (ceilings, "_SIDE", 64),
        (timing, "MOST_SAMPLES", 100),
    ):
        monkeypatch.setattr(module, name, small)
    monkeypatch.setattr(timing, "_MOST_LAUNCHES", 8)
    monkeypatch.setattr(timing, "_MOST_SETS", 4)
    Graph.captured.clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(name: str) -> Kernel:
    return replace(CASES[name], shapes=CASES[name].tiny, awkward=CASES[name].tiny[:1])


def run(kernel: Kernel, **more: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    plan = Plan(kernels=[kernel], device=DEVICE, seed=3, budget=Budget(500.0), **more)
    return bench(plan, said.append, lambda _: None), said


@pytest.mark.usefixtures("cuda")
def test_a_reference_in_the_kernels_place_is_wrong() -> None:
    results, _ = run(small("silu_mul_int8"))
    faults = {fault["what"] for fault in results["correctness"]["silu_mul_int8"]["wrong"]}
    assert faults == {"TooFar: the reference ran in the kernel's place: not on a GPU"} and results["cases"] == []


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_kernel_is_captured_timed_and_judged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "choices", Counter())
    monkeypatch.setattr(correctness, "_captured", lambda run, _: run)
    results, said = run(small(name), check_only=False)
    assert results["correctness"][name]["ok"], said
    assert results["device"] == "a made-up H100" and results["arch"] == "sm90" and results["ceilings"]["launch_us"] > 0
    assert len(results["cases"]) == len(CASES[name].tiny) and results["cut"] == []
    for row in results["cases"]:
        assert row["graph"] and row["goal"] and row["samples"] >= 100
        assert row["ok"] is True or row["reason"]
    assert name in table(results)


@pytest.mark.usefixtures("cuda")
def test_a_graph_that_leaves_the_poison_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "choices", Counter())
    results, _ = run(small("gemm_w8a16"), check_only=True)
    assert results["correctness"]["gemm_w8a16"]["ok"] is False and Graph.captured and results["ceilings"] is None


@pytest.mark.usefixtures("cuda")
def test_a_graph_holds_many_launches_and_rounds_are_interleaved() -> None:
    calls: list[int] = []

    def call(number: int) -> Callable[[], None]:
        return lambda: calls.append(number)

    contenders = [Contender(str(number), [call(number), call(number)], graph=number < 2) for number in range(3)]
    for contender in contenders:
        prepare(contender, DEVICE)
    assert [contender.replay is not None for contender in contenders] == [True, True, False]
    assert all(contender.launches == 8 for contender in contenders)
    count = rounds(contenders, DEVICE, limit_s=60.0)
    assert count == 100 and all(len(contender.samples_us) == count for contender in contenders)
    assert contenders[0].median_us == pytest.approx(1000.0 / 8)
    assert rounds(contenders, DEVICE, limit_s=0.0) == 0


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(("num_bytes", "sets"), [(1, 4), (4000, 3), (10**6, 2)])
def test_sets_exceed_the_cache_or_are_many(num_bytes: int, sets: int) -> None:
    assert sets_for(num_bytes, DEVICE) == sets


@pytest.mark.usefixtures("cuda")
def test_a_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "LLAMA_8B", ((128, 512), (64, 1024)))
    monkeypatch.setattr(tune, "BUCKETS", (16, 64))
    plan = tune.Tuning(["gemm_w8a8_decode"], DEVICE, tmp_path, 3, Budget(500.0), count=6, processes=0)
    assert tune.tune(plan) == []
    rows = read(tmp_path / "gemm_w8a8_decode.json")
    assert {(row["arch"], row["m"], row["n"], row["k"]) for row in rows} == {
        ("sm90", m, n, k) for m in (16, 64) for n, k in ((128, 512), (64, 1024))
    }
    assert all(row["provenance"]["best_peer_us"] for row in rows)
    assert all(row["wins"] is None for row in rows), "CUTLASS, which an engine would run, was not there"
    monkeypatch.setitem(CASES, "gemm_w8a8_decode", replace(CASES["gemm_w8a8_decode"], rival=INT_MM))
    assert tune.tune(plan) == []
    rows = read(tmp_path / "gemm_w8a8_decode.json")
    assert all(row["wins"] is False for row in rows), "nobody was faster"
