"""`--workload`: traffic by name, made up from a seed, or a stretch of a recorded trace."""

import argparse
import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from burrstone.batching.errors import UsageError
from burrstone.batching.sim.traffic.agents import AgentLoad, agent_programs
from burrstone.batching.sim.traffic.arrivals import LogNormal
from burrstone.batching.sim.traffic.servegen import client_mix, read_servegen
from burrstone.batching.sim.traffic.shared import SharedLoad, fixed, shared_beginnings
from burrstone.batching.sim.traffic.traces import read_trace
from burrstone.batching.sim.traffic.workload import Stream, at_rate, chat_and_code, flood, generate
from burrstone.batching.sim.traffic.workload_types import Ints, Workload

DEFAULT_RATE = 4.0
DEFAULT_TTFT_S, DEFAULT_TPOT_S = 1.0, 0.05
TRACE = "trace:"
_SERVEGEN_ENDING = ".tar.xz"


@dataclass(frozen=True, slots=True)
class Generator:
    """Traffic that is made up. make(rate, duration_s, seed, **parameters)."""

    text: str
    make: Callable[..., Workload]
    parameters: dict[str, float]
    tenants: tuple[str, ...] = ()


def _lengths(
    rate: float, duration_s: float, seed: int, *, input: float, output: float, spread: float, cv: float
) -> Workload:
    return generate([Stream(rate, LogNormal(input, spread), LogNormal(output, spread), cv=cv)], duration_s, seed)


def _flood(rate: float, duration_s: float, seed: int, *, victim: float) -> Workload:
    if victim >= 1:
        raise UsageError(f"--workload flood: victim is a share of the requests, below 1; got {victim:g}")
    return flood(duration_s, seed, victim_rate=rate * victim, flood_rate=rate * (1 - victim))


def _tenants(rate: float, duration_s: float, seed: int, *, tenants: float, cv: float) -> Workload:
    # Zipf's law: the n-th busiest sends 1 / n of what the busiest does.
    parts = 1.0 / np.arange(1, max(int(tenants), 1) + 1)
    return generate([Stream(rate * float(part / parts.sum()), cv=cv) for part in parts], duration_s, seed)


def _agents(rate: float, duration_s: float, seed: int, *, turns: float, tool_s: float) -> Workload:
    return agent_programs(AgentLoad(rate / turns, turns, tool_median_s=tool_s), duration_s, seed)


def _fixed(rate: float, duration_s: float, seed: int, *, input: float, output: float, cv: float) -> Workload:
    return generate([Stream(rate, fixed(input), fixed(output), cv=cv)], duration_s, seed)


def _shared(
    rate: float, duration_s: float, seed: int, *, texts: float, shared: float, own: float, output: float
) -> Workload:
    load = SharedLoad(rate, max(1, round(texts)), round(shared), LogNormal(own, 0.5), fixed(output))
    return shared_beginnings(load, duration_s, seed)


GENERATORS = {
    "chat": Generator(
        "one tenant's chats, lengths as in Azure's traces; cv > 1 makes bursts",
        lambda rate, duration_s, seed, cv: generate([Stream(rate, cv=cv)], duration_s, seed),
        {"cv": 1},
    ),
    "mix": Generator(
        "chats, and bursts of code completion as a batch job, with SLOs of their own",
        chat_and_code,
        {},
        ("chat", "code"),
    ),
    "tenants": Generator("chats of several tenants, few of them busy", _tenants, {"tenants": 8, "cv": 2}),
    "flood": Generator(
        "a tenant with a share `victim` of the requests, and one that floods",
        _flood,
        {"victim": 0.13},
        ("victim", "flood"),
    ),
    "agents": Generator("programs whose calls follow one another", _agents, {"turns": 10, "tool_s": 2}),
    "lengths": Generator(
        "prompts and answers of these median lengths; spread: sigma of their logarithm",
        _lengths,
        {"input": 512, "output": 128, "spread": 0.5, "cv": 1},
    ),
    "fixed": Generator("prompts and answers of exactly these lengths", _fixed, {"input": 128, "output": 64, "cv": 1}),
    "shared-prefix": Generator(
        "chats of which many begin with the same system prompt, one of `texts`",
        _shared,
        {"texts": 4, "shared": 512, "own": 64, "output": 64},
    ),
    "rag": Generator(
        "short questions about one of some long records, which stand first",
        _shared,
        {"texts": 10, "shared": 1500, "own": 20, "output": 32},
    ),
}


def print_workloads() -> None:
    """What `--workload list` says."""
    for name, generator in GENERATORS.items():
        given = ",".join(f"{parameter}={value:g}" for parameter, value in generator.parameters.items())
        print(f"{name}{':' + given if given else ''}\n    {generator.text}")
    print("trace:PATH\n    Azure's CSV, Mooncake's or our JSONL, vllm bench serve's JSON, ServeGen's .tar.xz;")
    print("    each seed takes another stretch of --duration-s")


class Traffic:
    """What --workload, --duration-s and the SLO flags ask for. Raises UsageError."""

    def __init__(self, arguments: argparse.Namespace, default_rate: float = DEFAULT_RATE) -> None:
        self._duration_s: float = arguments.duration_s
        self._slo = {name: getattr(arguments, name) for name in ("ttft_s", "tpot_s", "e2e_s")}
        self._made: dict[tuple[float | None, int], Workload] = {}
        text: str = arguments.workload
        generator = GENERATORS.get(text.partition(":")[0])
        self.tenant_names = generator.tenants if generator else ()
        self._make = (
            _trace(Path(text.removeprefix(TRACE))) if text.startswith(TRACE) else _generator(text, default_rate)
        )

    def offered(self, rate: float | None, seed: int) -> Workload:
        """The requests at this rate, the traffic's own where there is none; the same object for the same arguments."""
        if (rate, seed) not in self._made:
            made = self._make(rate, self._duration_s, seed)
            if len(made) == 0:
                raise UsageError("--workload: no request comes within --duration-s; make it longer or --rate higher")
            self._made[rate, seed] = self._with_slos(made)
        return self._made[rate, seed]

    def _with_slos(self, workload: Workload) -> Workload:
        """SLOs by the flags: for those requests that have one, for all where none has."""
        wanted = dict(self._slo)
        named = any(np.isfinite(getattr(workload, name)).any() for name in wanted)
        if not named and not any(wanted.values()):
            wanted |= {"ttft_s": DEFAULT_TTFT_S, "tpot_s": DEFAULT_TPOT_S}
        columns: dict[str, Any] = {}
        for name, value in wanted.items():
            own = getattr(workload, name)
            if value is not None:
                columns[name] = np.where(np.isfinite(own) | ~np.isfinite(own).any(), value, own)
        return replace(workload, **columns)


_Make = Callable[[float | None, float, int], Workload]


def _generator(text: str, default_rate: float) -> _Make:
    name, _, rest = text.partition(":")
    if name not in GENERATORS:
        near = difflib.get_close_matches(name, GENERATORS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--workload {text}: one of {', '.join(GENERATORS)}, or trace:PATH{hint}")
    generator = GENERATORS[name]
    parameters = dict(generator.parameters)
    for pair in rest.split(",") if rest else ():
        key, _, value = pair.partition("=")
        known = ", ".join(parameters) or "none"
        if key not in parameters:
            raise UsageError(f"--workload {text}: {name} has no parameter {key!r}; it has {known}")
        try:
            parameters[key] = float(value)
        except ValueError:
            raise UsageError(f"--workload {text}: {key} must be a number, got {value!r}") from None
        if not 0 < parameters[key] < float("inf"):
            raise UsageError(f"--workload {text}: {key} must be a number > 0, got {value}")
    return lambda rate, duration_s, seed: generator.make(rate or default_rate, duration_s, seed, **parameters)


def _trace(path: Path) -> _Make:
    if not path.exists():
        raise UsageError(f"--workload {TRACE}{path}: no such file; name one that exists, with its folder")
    if path.name.endswith(_SERVEGEN_ENDING):
        return _clients(path)
    whole = read_trace(path)
    return lambda rate, duration_s, seed: stretch(whole if rate is None else at_rate(whole, rate), duration_s, seed)


def _clients(path: Path) -> _Make:
    clients = read_servegen(path)
    start_s = min(client.windows[0].start_s for client in clients)
    end_s = max(client.windows[-1].start_s for client in clients)

    def make(rate: float | None, duration_s: float, seed: int) -> Workload:
        begin_s = float(np.random.default_rng(seed).uniform(start_s, max(end_s - duration_s, start_s)))
        active = [
            window.rate
            for client in clients
            for window, ends_s in zip(client.windows, [w.start_s for w in client.windows[1:]] + [np.inf], strict=True)
            if window.start_s <= begin_s < ends_s
        ]
        scale = 1.0 if rate is None else rate / max(sum(active), 1e-9)
        return client_mix(clients, start_s=begin_s, duration_s=duration_s, seed=seed, scale=scale)

    return make


def stretch(whole: Workload, duration_s: float, seed: int) -> Workload:
    """A part of duration_s that begins somewhere, by the seed; all of it where it is shorter. Programs stay whole."""
    spare_s = float(whole.arrival_s[-1]) - duration_s
    if spare_s <= 0:
        return whole
    start_s = float(np.random.default_rng(seed).uniform(0.0, spare_s))
    begins_s = whole.arrival_s[roots(whole.after)]
    part = whole.take(np.flatnonzero((begins_s >= start_s) & (begins_s < start_s + duration_s)))
    return replace(part, arrival_s=part.arrival_s - start_s)


def roots(after: Ints) -> Ints:
    """The first request of each one's chain."""
    roots = np.arange(len(after))
    for row in np.flatnonzero(after >= 0):
        roots[row] = roots[after[row]]
    return roots
