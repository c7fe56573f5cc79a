"""Several that compute the same, timed beside each other.

Each is a CUDA graph of many launches over inputs in turns that together do not fit the L2 cache; graphs are replayed in rounds,
one after the other, without waiting in between, and each replay between two events is a sample. Without a GPU: calls
and a clock.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from burrstone.kernels.measure.device import Device

LEAST_SAMPLES = 100
MOST_SAMPLES = 300
_FEW_SAMPLES = 25
# Beside it, what a replay itself costs is nothing.
_SAMPLE_US = 300.0
_MOST_LAUNCHES = 256
# Of inputs that small, this many do not fill the cache either; the layer before would have left them there too.
_MOST_SETS = 32
_L2_TIMES = 2.5
_WARM_UP = 3
Call = Callable[[], Any]


@dataclass(slots=True)
class Contender:
    """calls: one for each set of inputs. graph: what was wanted, and after `prepare` what there is."""

    name: str
    calls: Sequence[Call]
    graph: bool = True
    launches: int = 1
    samples_us: list[float] = field(default_factory=list)
    replay: Call | None = None

    @property
    def median_us(self) -> float:
        return statistics.median(self.samples_us)

    @property
    def iqr_us(self) -> float:
        low, _, high = statistics.quantiles(self.samples_us, n=4)
        return high - low

    def once(self) -> None:
        for launch in range(self.launches):
            self.calls[launch % len(self.calls)]()

    def sample(self) -> None:
        (self.replay or self.once)()


def sets_for(num_bytes: int, device: Device) -> int:
    """How many sets of inputs, each of so many bytes, together exceed the cache."""
    return max(2, min(_MOST_SETS, int(_L2_TIMES * device.l2_bytes // max(1, num_bytes)) + 1))


def prepare(contender: Contender, device: Device) -> None:
    """Warm it up, see how long it takes, and capture it. Raises what it fails with."""
    for _ in range(_WARM_UP):
        for call in contender.calls:
            call()
    device.settle()
    begin = time.perf_counter()
    for call in contender.calls:
        call()
    device.settle()
    each_us = (time.perf_counter() - begin) * 1e6 / len(contender.calls)
    if device.rehearsal:
        contender.graph, contender.launches = False, 1
        return
    contender.launches = launches_for(each_us, len(contender.calls))
    if contender.graph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            contender.once()
        contender.replay = graph.replay
        # From the host's clock came what the host takes; a replay says what the device does.
        measured = _events_us(graph.replay, device) / contender.launches
        wanted = launches_for(measured, len(contender.calls))
        if wanted > contender.launches:
            contender.launches = wanted
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                contender.once()
            contender.replay = graph.replay
        contender.replay()
    device.settle()


def launches_for(each_us: float, sets: int) -> int:
    """Whole turns of the sets, and enough of them."""
    turns = max(1, round(_SAMPLE_US / max(each_us, 0.1) / sets))
    return sets * max(1, min(turns, _MOST_LAUNCHES // sets))


def rounds(contenders: Sequence[Contender], device: Device, limit_s: float) -> int:
    """Sample all of them in turns. Returns how many rounds the limit allowed for; none where it does not do for LEAST_SAMPLES."""
    begin = time.perf_counter()
    for contender in contenders:
        contender.sample()
    device.settle()
    each_s = max(time.perf_counter() - begin, 1e-6)
    count = min(MOST_SAMPLES, int(limit_s / each_s))
    if device.rehearsal:
        count = LEAST_SAMPLES
    if count < LEAST_SAMPLES:
        return 0
    (_by_clock if device.rehearsal else _by_events)(contenders, count, device)
    return count


def _by_events(contenders: Sequence[Contender], count: int, device: Device) -> None:
    pairs = []
    for number in range(count):
        turn = number % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            contender.sample()
            end.record()
            pairs.append((contender, begin, end))
    device.settle()
    for contender, begin, end in pairs:
        contender.samples_us.append(begin.elapsed_time(end) * 1e3 / contender.launches)


def _by_clock(contenders: Sequence[Contender], count: int, _: Device) -> None:
    for number in range(count):
        turn = number % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            begin = time.perf_counter()
            contender.sample()
            contender.samples_us.append((time.perf_counter() - begin) * 1e6 / contender.launches)


def _events_us(replay: Call, device: Device) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    replay()
    begin.record()
    replay()
    end.record()
    device.settle()
    return float(begin.elapsed_time(end)) * 1e3


def quick_us(contender: Contender, device: Device) -> float:
    """The median of a few samples, by itself. Raises what it fails with."""
    prepare(contender, device)
    (_by_clock if device.rehearsal else _by_events)([contender], _FEW_SAMPLES, device)
    median_us = contender.median_us
    contender.samples_us.clear()
    return median_us


def alone_us(call: Call, device: Device) -> float:
    return quick_us(Contender("", [call]), device)
