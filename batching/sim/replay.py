"""Decide again what a live engine has logged, and compare step by step. Same code, same bits: any difference is a fault.

Steps must be complete when the next one is decided, as on vLLM's synchronous scheduler.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from burrstone.batching.core.requests import NEVER_S, REQUEST
from burrstone.batching.core.step_log import Arrived, Ended, LogHeader, StepRecord, read_log, scheduled_hash
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.policies.spec import Knobs
from burrstone.batching.sim import kv
from burrstone.batching.sim.engine import add, cancel, complete, finish, schedule
from burrstone.batching.sim.pins import rest
from burrstone.batching.sim.spec import EngineSpec, new_world
from burrstone.batching.sim.world import JOB, NOWHERE, World, give_row, take_row

# As many finished calls as a live engine would ever keep.
_MAX_PINS = 4096
_GIVEN = [name for name in REQUEST.names or () if name in Arrived.__dataclass_fields__ and name != "seq"]


@dataclass(frozen=True, slots=True)
class Replay:
    """Steps that were compared and were equal in both hashes; the first difference in words, None without one."""

    steps: int
    equal_plans: int
    equal_schedules: int
    difference: str | None


def replay(lines: Iterable[str]) -> Replay:
    """Decide every logged step again, until one differs. Raises UsageError for what is not a log."""
    header, records = read_log(lines)
    steps = list(records)
    engine = _Engine(header, steps)
    plans = schedules = 0
    for done, record in enumerate(steps):
        difference = engine.events(record)
        if difference is None:
            plan_equal, difference = engine.decide(record)
            plans += plan_equal
            schedules += difference is None
        if difference is not None:
            return Replay(done + 1, plans, schedules, f"step {record.step}: {difference}")
        engine.end_of_step(record, steps[done + 1] if done + 1 < len(steps) else None)
    return Replay(len(steps), plans, schedules, None)


class _Engine:
    """The simulator's engine, told by the log what comes and when steps end."""

    def __init__(self, header: LogHeader, steps: list[StepRecord]) -> None:
        arrived = [event for record in steps for event in record.events if isinstance(event, Arrived)]
        self._ends = {event.seq: event for record in steps for event in record.events if isinstance(event, Ended)}
        self._rows: dict[int, int] = {}
        self._hashes = _hashes(arrived, self._ends)
        self.world = _world(header, arrived, self._hashes)

    def events(self, record: StepRecord) -> str | None:
        """What ended and came before this step; a difference where other requests have finished than the log says."""
        world, engine = self.world, self.world.engines[0]
        finished = {int(world.requests[row]["seq"]) for row in world.queues[0, _ended_places(engine)]}
        logged = {event.seq for event in record.events if isinstance(event, Ended) and not event.cancelled}
        if finished != logged:
            return f"finished requests {sorted(finished)} in the simulator, {sorted(logged)} in the log"
        for seq in finished:
            give_row(world, self._rows.pop(seq))
        engine["num_ended"] = 0
        for event in record.events:
            if isinstance(event, Arrived):
                self._arrive(event)
            elif event.cancelled:
                if event.seq not in self._rows:
                    return f"request {event.seq} was cancelled, which is not in the engine"
                cancel(world, 0, self._rows[event.seq])
                give_row(world, self._rows.pop(event.seq))
        return None

    def decide(self, record: StepRecord) -> tuple[bool, str | None]:
        """Whether the plan is the logged one, and the first difference in words."""
        world, engine = self.world, self.world.engines[0]
        engine["now_s"] = record.now_s
        before = int(engine["free_blocks"])
        num_tokens = schedule(world, 0, True)
        if int(engine["step_plan_hash"]) != record.plan_hash:
            return False, (
                f"another plan: {engine['num_waiting']} waiting and {engine['num_running']} running after it, "
                f"{before} blocks free before it (log: {record.free_blocks})"
            )
        pairs = self._scheduled()
        if scheduled_hash(pairs) != record.scheduled_hash:
            return True, (
                f"the plan is equal, but {num_tokens} tokens were scheduled (log: {record.num_tokens}), as (request, "
                f"tokens) {pairs[:8]}{'...' if len(pairs) > 8 else ''}; {before} blocks were free (log: "
                f"{record.free_blocks})"
            )
        return True, None

    def end_of_step(self, record: StepRecord, after: StepRecord | None) -> None:
        """Let the step end when the log says so; without its length, when the next one was decided."""
        engine = self.world.engines[0]
        if record.elapsed_s is not None:
            engine["now_s"] = record.now_s + record.elapsed_s
        elif after is not None:
            engine["now_s"] = after.now_s
        complete(self.world, 0)
        for event in () if after is None else after.events:
            if isinstance(event, Ended) and event.during_step:
                kv.release(self.world, 0, self._rows[event.seq])
        finish(self.world, 0)

    def _scheduled(self) -> list[tuple[int, int]]:
        world = self.world
        rows = world.queues[0, : world.engines[0]["num_running"]]
        rows = rows[world.jobs["scheduled"][rows] > 0]
        seqs, tokens = world.requests["seq"][rows].tolist(), world.jobs["scheduled"][rows].tolist()
        return list(zip(seqs, tokens, strict=True))

    def _arrive(self, event: Arrived) -> None:
        world = self.world
        row = take_row(world)
        world.requests[row], world.jobs[row] = np.zeros((), REQUEST), np.zeros((), JOB)
        request, job = world.requests[row], world.jobs[row]
        for name in _GIVEN:
            request[name] = getattr(event, name)
        request["first_token_s"] = NEVER_S
        end = self._ends.get(event.seq)
        job["target_tokens"] = end.output_tokens if end is not None and not end.cancelled else event.max_tokens + 1
        job["hash_start"], num_hashes = self._hashes[event.seq][:2]
        job["hashed_tokens"] = num_hashes * world.engines[0]["block_size"]
        job["slot"] = NOWHERE
        job["scheduled_s"] = job["ended_s"] = NEVER_S
        self._rows[event.seq] = row
        world.engines[0]["next_seq"] = event.seq
        add(world, 0, row)
        for program in event.rested:
            rest(world, 0, program)


def _ended_places(engine: np.void) -> slice:
    return slice(int(engine["max_num_seqs"]), int(engine["max_num_seqs"] + engine["num_ended"]))


def _hashes(arrived: list[Arrived], ends: dict[int, Ended]) -> dict[int, tuple[int, int, tuple[int, ...]]]:
    """Of each request: where its block hashes start, how many there are, and which."""
    found = {}
    start = 0
    for event in arrived:
        hashes = event.block_hashes
        if event.seq in ends:
            hashes += ends[event.seq].block_hashes
        found[event.seq] = (start, len(hashes), hashes)
        start += len(hashes)
    return found


def _world(header: LogHeader, arrived: list[Arrived], hashes: dict[int, tuple[int, int, tuple[int, ...]]]) -> World:
    longest = max((event.prompt_tokens + event.max_tokens for event in arrived), default=1)
    spec = EngineSpec(
        policy=header.policy,
        max_num_seqs=header.max_num_seqs,
        max_num_batched_tokens=header.max_num_batched_tokens,
        block_size=header.block_size,
        num_blocks=header.num_blocks,
        prefix_caching=header.prefix_caching,
        step_model=StepModel.from_dict(header.model),
        knobs=Knobs.from_dict(header.knobs),
        max_pins=_MAX_PINS,
    )
    world = new_world(
        spec,
        num_engines=1,
        num_rows=max(len(arrived), 1),
        num_waiting=max(len(arrived), 1),
        tenant_weight=np.ones(header.num_tenants),
        blocks_per_sequence=longest // header.block_size + 2,
        block_hashes=np.array([hash_ for _, _, own in hashes.values() for hash_ in own], np.uint64),
        hash_tokens=header.block_size,
        num_programs=max((event.program for event in arrived), default=NOWHERE) + 1,
    )
    # The live scheduler keeps caches as cached blocks, so without prefix caching it keeps none.
    world.engines["pins"] &= header.prefix_caching
    return world
