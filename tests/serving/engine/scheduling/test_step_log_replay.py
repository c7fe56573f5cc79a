"""The simulator decides as vLLM's scheduler did under our policies: every plan and everything scheduled, step by step."""

import random
from pathlib import Path

import pytest
from bare_scheduler import BareEngine, make_scheduler, vllm_config

from burrstone.batching.sim.replay import Replay, replay
from burrstone.serving.engine.scheduling.options import SchedulerOptions
from burrstone.serving.engine.scheduling.scheduler import BurrstoneScheduler
from burrstone.serving.engine.scheduling.watchdog import Watchdog

POLICIES = ("fcfs", "priority", "slo", "vtc", "program", "sjf-rank", "vtc > slo", "program > slo")


class Clock:
    """Moves on by itself, so that every step takes time."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 0.011
        return self.now_s


def _live(folder: Path, policy: str, seed: int, *, num_blocks: int, caching: bool, mid_step: bool) -> Path:
    """The log of a random life: shared prefixes, conversations, programs with gaps, clients that leave."""
    log = folder / f"{policy}-{seed}"
    config = vllm_config(folder, max_num_seqs=6, max_num_batched_tokens=48, num_blocks=num_blocks, caching=caching)
    scheduler = make_scheduler(BurrstoneScheduler, config)
    clock = Clock()
    scheduler.start_policy(
        SchedulerOptions(policy, step_log=str(log)), clock=clock, watchdog=Watchdog(slow_hook_s=60.0)
    )
    engine, rng = BareEngine(scheduler), random.Random(seed)
    said: dict[str, list[int]] = {f"p{number}": [number + 3] * 20 for number in range(8)}
    for number in range(150):
        program = f"p{rng.randrange(8)}"
        earlier = [name for name in engine.finished if name.startswith(f"{program}-")]
        prompt = said[program] if not earlier or rng.random() < 0.3 else said[program] + engine.outputs[earlier[-1]]
        prompt = prompt[:200] + [rng.randrange(3, 900) for _ in range(rng.randrange(30))]
        said[program] = prompt if rng.random() < 0.8 else [rng.randrange(3, 900)] * 30
        meta = {
            "tenant": f"t{number % 3}",
            "weight": rng.choice([1.0, 2.5]),
            "priority": rng.randrange(2),
            "ttft_s": rng.choice([None, 0.2, 5.0]),
            "tpot_s": rng.choice([None, 0.1]),
            "program_id": program if rng.random() < 0.7 else None,
            "rested": [(f"t{rng.randrange(3)}", f"p{rng.randrange(8)}")] * rng.randrange(2),
        }
        engine.add(f"{program}-{number}", prompt, rng.randrange(1, 16), meta)
        for _ in range(rng.choice([0, 1, 2, 10])):
            engine.decide()
            here = list(scheduler.requests)
            if mid_step and here and rng.random() < 0.1:
                engine.abort(rng.choice(here))
            engine.settle()
        if scheduler.requests and rng.random() < 0.1:
            engine.abort(rng.choice(list(scheduler.requests)))
    engine.run()
    scheduler.shutdown()
    assert not scheduler.watchdog.fallen
    return log


def _replay(log: Path) -> Replay:
    with log.open() as lines:
        return replay(lines)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_decision_is_decided_again(tmp_path: Path, policy: str, caching: bool) -> None:
    for seed, num_blocks in enumerate((24, 40)):
        log = _live(tmp_path, policy, seed, num_blocks=num_blocks, caching=caching, mid_step=True)
        result = _replay(log)
        assert result.difference is None
        assert result.steps == result.equal_plans == result.equal_schedules > 300


def test_a_difference_is_told_in_words(tmp_path: Path) -> None:
    log = _live(tmp_path, "fcfs", 0, num_blocks=24, caching=True, mid_step=False)
    lines = log.read_text().splitlines()
    lines[60] = (
        lines[60].replace('"num_tokens": ', '"num_tokens": 1').replace('"scheduled_hash": ', '"scheduled_hash": 1')
    )
    result = replay(lines)
    assert (result.steps, result.equal_plans, result.equal_schedules) == (60, 60, 59)
    assert "step 59: the plan is equal, but" in str(result.difference)
