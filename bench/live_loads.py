"""What the live targets let an engine do: decide by each policy and have it decided again, and carry the hook's cost."""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from burrstone.batching.sim.replay import replay
from burrstone.batching.sim.targets.judge import Row, at_least, at_most
from burrstone.bench.live_engine import ENGINE, Limits, LiveEngine
from burrstone.serving.engine.scheduling.options import CPU_STEP_MODEL, SchedulerOptions

POLICIES = ("fcfs", "priority", "slo", "vtc", "program", "sjf-rank", "vtc > slo", "priority > program > slo")
# Few and short, so that a decision costs a few milliseconds; and few blocks, so that requests are preempted.
_MANY_STEPS = Limits(max_num_seqs=4, max_num_batched_tokens=6, num_blocks=20)
_SMALL_CHUNKS = {"min_chunk_tokens": 1.0}
_OUTSTANDING = 10
_NUM_WAITING = 256
_OUTPUT_TOKENS = 24

Say = Callable[[str], None]


def same_code(engine: LiveEngine, decisions: int, say: Say, seed: int = 1) -> dict[str, Row]:
    """Share of the decisions, logged in a live engine under every policy, that the simulator takes alike."""
    equal = total = 0
    with tempfile.TemporaryDirectory(prefix="burrstone-bench-") as folder:
        for place, policy in enumerate(POLICIES):
            log = Path(folder) / f"{place}.jsonl"
            options = SchedulerOptions(policy, _SMALL_CHUNKS, step_log=str(log), model=CPU_STEP_MODEL)
            engine.use(options, _MANY_STEPS)
            say(f"{policy}: {decisions // len(POLICIES)} decisions")
            _mixed_load(engine, -(-decisions // len(POLICIES)), random.Random(seed + place))
            engine.scheduler.shutdown()
            result = replay(log.read_text().splitlines())
            num_logged = sum(1 for _ in log.open()) - 1
            if result.difference is not None:
                say(f"{policy}: {result.difference}")
            equal += min(result.equal_plans, result.equal_schedules)
            total += num_logged
    return {"1-same-code": at_least(equal / total, 1.0), "1-decisions": at_least(total, decisions)}


def _mixed_load(engine: LiveEngine, decisions: int, rng: random.Random) -> None:
    """Tenants, priorities, targets, agents' conversations and cancellations, until so many decisions are taken."""
    here: list[str] = []
    texts = {program: _tokens(rng, 30) for program in "abcdef"}
    done = 0
    while engine.scheduler.counters.steps < decisions and not engine.scheduler.watchdog.fallen:
        while len(here) < _OUTSTANDING and rng.random() < 0.2:
            program = rng.choice([*texts, None, None, None])
            prompt = _tokens(rng, rng.randrange(1, 40))
            if program is not None:
                texts[program] = prompt = (texts[program] + prompt)[-200:]
            meta = {
                "tenant": rng.choice("uvw"),
                "weight": rng.choice([1.0, 2.0]),
                "priority": rng.randrange(3),
                "ttft_s": rng.choice([None, 0.3, 2.0]),
                "tpot_s": rng.choice([None, 0.05]),
                "program_id": program,
            }
            here.append(str(done))
            done += 1
            engine.add(here[-1], prompt, rng.randrange(1, 80), meta)
        if here and rng.random() < 0.02:
            engine.abort([here.pop(rng.randrange(len(here)))])
        finished = set(engine.step())
        here = [name for name in here if name not in finished]
    engine.abort(here)
    while engine.num_unfinished:
        engine.step()


def cost(engine: LiveEngine, rounds: int, say: Say, seed: int = 2) -> dict[str, Row]:
    """Throughput of the neutral policy over stock, in turns (ABBA), and the hook's time with a long queue."""
    neutral = SchedulerOptions("fcfs")
    ratios = []
    for number in range(rounds):
        speeds: dict[bool, list[float]] = {True: [], False: []}
        for ours in (False, True, True, False):
            engine.use(neutral if ours else None)
            speeds[ours].append(_tokens_per_s(engine, random.Random(seed + number)))
        ratios.append(statistics.mean(speeds[True]) / statistics.mean(speeds[False]))
        say(f"round {number + 1} of {rounds}: {ratios[-1]:.3f} of stock")
    rows = {"10-neutral-throughput": at_least(statistics.median(ratios), 0.98)}
    for policy in ("fcfs", "vtc > slo"):
        engine.use(SchedulerOptions(policy, model=CPU_STEP_MODEL))
        hook_us = sorted(_hook_us(engine, random.Random(seed)))
        say(f"{policy}: hook p50 {hook_us[len(hook_us) // 2]:.0f} us over {len(hook_us)} steps")
        rows[f"10-hook-p99-us-{policy.replace(' > ', '-')}"] = at_most(hook_us[int(len(hook_us) * 0.99)], 200.0)
    return rows


def _tokens_per_s(engine: LiveEngine, rng: random.Random) -> float:
    """Three batches' worth of requests at once."""
    count = 3 * ENGINE.max_num_seqs
    for number in range(count):
        engine.add(str(number), _tokens(rng, 16), _OUTPUT_TOKENS)
    started_s = time.perf_counter()
    while engine.num_unfinished:
        engine.step()
    return count * _OUTPUT_TOKENS / (time.perf_counter() - started_s)


def _hook_us(engine: LiveEngine, rng: random.Random, num_steps: int = 300) -> Iterator[float]:
    """Time in the hook of each step that had so many waiting."""
    number = 0
    for _ in range(num_steps):
        while engine.num_unfinished < _NUM_WAITING + ENGINE.max_num_seqs:
            meta = {"tenant": f"t{number % 8}", "ttft_s": 5.0, "tpot_s": 0.1, "priority": number % 3}
            engine.add(str(number), _tokens(rng, 16), 8 + number % 32, meta)
            number += 1
        engine.step()
        yield engine.scheduler.counters.hook_ns / 1e3
    engine.abort([str(each) for each in range(number)])
    while engine.num_unfinished:
        engine.step()


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(100, 40_000) for _ in range(count)]
