"""What the policy knows of vLLM's requests: a row each, kept in step with vLLM's own counters, and the events of the log."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from burrstone.batching.core.requests import NO_DEADLINE_S, new_tenants
from burrstone.batching.core.step_log import Arrived, Ended, StepLoad, scheduled_hash
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.policies.engine_policy import Arrival, EnginePolicy, Plan
from burrstone.batching.policies.order import hopeless
from burrstone.batching.policies.spec import PolicySpec
from burrstone.batching.policies.ttl import keep_s, observe_call_end, observe_gap
from burrstone.batching.request import METADATA_KEY
from burrstone.serving.engine.scheduling.program_book import MIN_FORGET_S, Program, ProgramBook, TenantBook

_LOW_64_BITS = 8
# A request that says it is older than this had its clock set; it counts as new.
_MAX_AGE_S = 3600.0


@dataclass(slots=True, eq=False)
class Entry:
    """A request in the engine."""

    row: int
    request: Any
    program: Program | None
    num_hashes: int
    waiting: bool = True


class PolicyLedger:
    """Requests by vLLM's id. `events`: what came and ended since they were last taken; only if `logged`."""

    def __init__(self, policy: EnginePolicy, *, logged: bool, unix_clock: Callable[[], float] = time.time) -> None:
        self.policy = policy
        self.events: list[Arrived | Ended] = []
        self.relegated = 0
        self._logged = logged
        self._unix_clock = unix_clock
        self._entries: dict[str, Entry] = {}
        self._requests: dict[int, Any] = {}
        self._rows: dict[Any, int] = {}
        self._tenants = TenantBook()
        self._programs = ProgramBook(forget_s=max(policy.spec.knobs.ttl_s, MIN_FORGET_S))
        self._counts_late = "slo" in policy.spec.tiers
        self._coefficients = policy.model.coefficients()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forget all requests, for good: the policy is not asked again."""
        for known in (self._entries, self._requests, self._rows, self.events):
            known.clear()

    def entry(self, request: Any) -> Entry:
        return self._entries[request.request_id]

    def arrived(self, request: Any, now_s: float) -> list[Program]:
        """A request has come to the engine; returns the programs that it says are at rest."""
        age_s = self._unix_clock() - request.arrival_time
        arrival_s = now_s - (age_s if 0.0 <= age_s <= _MAX_AGE_S else 0.0)
        told = _metadata(request)
        name = str(told.get("tenant") or "")
        tenant, cleared = self._tenants.enter(name)
        if cleared:
            self.policy.tenants[tenant] = new_tenants(1)[0]
        program = self._enter_program(name, tenant, told.get("program_id"), arrival_s)
        arrival = self._arrival(request, told, tenant, program, now_s)
        seq = self.policy.next_seq
        row = self.policy.add(arrival, arrival_s)
        entry = Entry(row, request, program, len(request.block_hashes))
        self._entries[request.request_id] = entry
        self._requests[row] = request
        self._rows[request] = row
        rested = self._programs.idle(told.get("rested") or ())
        if self._logged:
            numbers = tuple(program.number for program in rested)
            self.events.append(_arrived(arrival, seq, arrival_s, request.block_hashes, numbers))
        return rested

    def rows(self, requests: Collection[Any]) -> np.ndarray:
        """Their rows, in the same order: int64."""
        # By the object, not by its id: hundreds wait, and to look into each costs a cache miss or five.
        return np.fromiter(map(self._rows.__getitem__, requests), np.int64, len(requests))

    def requests(self, rows: np.ndarray) -> list[Any]:
        """Their requests, in the same order."""
        return list(map(self._requests.__getitem__, rows.tolist()))

    def plan(
        self,
        waiting: np.ndarray,
        running: np.ndarray,
        running_requests: Sequence[Any],
        *,
        free_slots: int,
        free_blocks: int,
        now_s: float,
    ) -> Plan:
        """The policy's decision, on counters as vLLM has them; waiting and running stay as they are.

        Tokens on their way count as there.
        """
        if running_requests:
            table = self.policy.requests
            table["computed_tokens"][running] = [request.num_computed_tokens for request in running_requests]
            table["output_tokens"][running] = [
                request.num_output_tokens + request.num_output_placeholders for request in running_requests
            ]
        return self.policy.plan(
            waiting.copy(), running.copy(), free_slots=free_slots, free_blocks=free_blocks, now_s=now_s
        )

    def admitted(self, request: Any, cached_tokens: int, now_s: float) -> None:
        """It starts to run."""
        entry = self.entry(request)
        entry.waiting = False
        if entry.program is not None:
            entry.program.waiting -= 1
            entry.program.running += 1
        row, policy = entry.row, self.policy
        if self._counts_late:
            late = hopeless(
                policy.requests[row], policy.max_step_tokens, policy.spec.knobs.patience_s, now_s, self._coefficients
            )
            self.relegated += int(late)
        policy.admitted(row, cached_tokens)

    def preempted(self, request: Any) -> None:
        """It has lost its KV cache and waits again."""
        entry = self.entry(request)
        if not entry.waiting and entry.program is not None:
            entry.program.waiting += 1
            entry.program.running -= 1
        entry.waiting = True
        self.policy.preempted(entry.row)
        self.policy.requests[entry.row]["output_tokens"] = request.num_output_tokens

    def served(self, served: Sequence[tuple[Any, int]], now_s: float, cancelled: Sequence[Any] = ()) -> None:
        """A step, ending now, gave these requests so many tokens each; vLLM has not counted those of the cancelled."""
        if not served:
            return
        rows = np.array([self._rows[request] for request, _ in served], dtype=np.int64)
        counts = np.array([num_tokens for _, num_tokens in served], dtype=np.int64)
        counted = np.array([request.num_output_tokens for request, _ in served], dtype=np.int64) - counts
        if cancelled:
            uncounted = {request.request_id for request in cancelled}
            counted += counts * [request.request_id in uncounted for request, _ in served]
        self.policy.requests["output_tokens"][rows] = counted
        self.policy.served_rows(rows, counts, now_s)

    def ended(self, request: Any, *, cancelled: bool, during_step: bool = False) -> None:
        """It has left the engine; during_step: it was cancelled while a step ran."""
        entry = self._entries.pop(request.request_id)
        del self._requests[entry.row], self._rows[request]
        program = entry.program
        if program is not None:
            program.waiting -= int(entry.waiting)
            program.running -= int(not entry.waiting)
        record = self.policy.requests[entry.row]
        if self._logged:
            hashes = request.block_hashes[entry.num_hashes :]
            num_tokens = int(record["output_tokens"])
            self.events.append(Ended(int(record["seq"]), cancelled, num_tokens, _low_bits(hashes), during_step))
        self._tenants.leave(int(record["tenant"]))
        self.policy.remove(entry.row)

    def keep_cache_s(self, request: Any, end_s: float) -> tuple[Program, float] | None:
        """A call has finished: its program and until when its KV cache is kept; None if it is not."""
        entry = self.entry(request)
        program = entry.program
        if program is None:
            return None
        tenant = self.policy.tenants[int(self.policy.requests[entry.row]["tenant"])]
        observe_call_end(tenant)
        program.last_end_s = end_s
        ttl_s = keep_s(tenant, self.policy.spec.knobs.ttl_s)
        return (program, end_s + ttl_s) if ttl_s > 0.0 else None

    def take_events(self) -> tuple[Arrived | Ended, ...]:
        events = tuple(self.events)
        self.events.clear()
        return events

    def step(self, num_scheduled_tokens: dict[str, int]) -> tuple[list[tuple[int, int]], StepLoad]:
        """What a step computes, asked before its end: (seq, tokens) in vLLM's order, and its load."""
        entries = [self._entries[request_id] for request_id in num_scheduled_tokens]
        records = self.policy.requests[[entry.row for entry in entries]]
        num_tokens = np.fromiter(num_scheduled_tokens.values(), np.int64, len(entries))
        after = np.array([entry.request.num_computed_tokens for entry in entries], dtype=np.int64)
        before = after - num_tokens
        last = records["prompt_tokens"] + records["output_tokens"] - 1
        prefills = (records["output_tokens"] == 0) | (before < last)
        pairs = (num_tokens * (before + 0.5 * num_tokens))[prefills]
        load = StepLoad(
            prefill_tokens=float(num_tokens[prefills].sum()),
            decode_seqs=float((~prefills).sum()),
            kv_tokens=float(before[~prefills].sum()),
            attention_pairs=float(pairs.sum()),
        )
        return list(zip(records["seq"].tolist(), num_tokens.tolist(), strict=True)), load

    def _enter_program(self, name: str, tenant: int, program_id: Any, arrival_s: float) -> Program | None:
        if not program_id:
            return None
        program = self._programs.enter(name, str(program_id), arrival_s)
        if program.waiting + program.running == 0 and not math.isnan(program.last_end_s):
            observe_gap(self.policy.tenants[tenant], max(arrival_s - program.last_end_s, 0.0))
        program.waiting += 1
        return program

    def _arrival(
        self, request: Any, told: dict[str, Any], tenant: int, program: Program | None, now_s: float
    ) -> Arrival:
        deadline_unix_s = told.get("deadline_unix_s")
        return Arrival(
            prompt_tokens=request.num_prompt_tokens,
            max_tokens=request.max_tokens,
            tenant=tenant,
            weight=_number(told, "weight", 1.0),
            program=-1 if program is None else program.number,
            program_arrival_s=None if program is None else program.arrival_s,
            priority=int(_number(told, "priority", 0)),
            ttft_s=_number(told, "ttft_s", NO_DEADLINE_S),
            tpot_s=_number(told, "tpot_s", NO_DEADLINE_S),
            deadline_s=NO_DEADLINE_S if deadline_unix_s is None else now_s + deadline_unix_s - self._unix_clock(),
        )


def _metadata(request: Any) -> dict[str, Any]:
    params = request.sampling_params
    told = (params.extra_args or {}).get(METADATA_KEY) if params is not None else None
    return told if isinstance(told, dict) else {}


def _number(told: dict[str, Any], key: str, default: float) -> float:
    value = told.get(key)
    return default if value is None else float(value)


def _low_bits(hashes: Iterable[bytes]) -> tuple[int, ...]:
    return tuple(int.from_bytes(block_hash[-_LOW_64_BITS:], "big") for block_hash in hashes)


def _arrived(arrival: Arrival, seq: int, arrival_s: float, hashes: Iterable[bytes], rested: tuple[int, ...]) -> Arrived:
    return Arrived(
        seq=seq,
        arrival_s=arrival_s,
        prompt_tokens=arrival.prompt_tokens,
        max_tokens=arrival.max_tokens,
        predicted_tokens=arrival.predicted_tokens,
        tenant=arrival.tenant,
        weight=arrival.weight,
        program=arrival.program,
        program_arrival_s=arrival_s if arrival.program_arrival_s is None else arrival.program_arrival_s,
        priority=arrival.priority,
        ttft_deadline_s=arrival_s + arrival.ttft_s,
        tpot_s=arrival.tpot_s,
        deadline_s=arrival.deadline_s,
        block_hashes=_low_bits(hashes),
        rested=rested,
    )


def compile_kernels(spec: PolicySpec, model: StepModel) -> None:
    """Live through a short life, so that no step waits for a compiler."""
    policy = EnginePolicy(spec, model, max_step_tokens=1, block_tokens=1)
    rows = np.array([policy.add(Arrival(prompt_tokens=1, max_tokens=1), 0.0)], dtype=np.int64)
    none = np.empty(0, dtype=np.int64)
    policy.plan(rows, none, free_slots=1, free_blocks=1, now_s=0.0)
    policy.admitted(int(rows[0]), 0)
    policy.plan(none, rows, free_slots=1, free_blocks=1, now_s=0.0)
    policy.served_rows(rows, np.ones(1, dtype=np.int64), 0.0)
    hopeless(policy.requests[0], 1, 0.0, 0.0, model.coefficients())
    observe_gap(policy.tenants[0], 0.0)
    observe_call_end(policy.tenants[0])
    keep_s(policy.tenants[0], 0.0)
    scheduled_hash([(0, 1)])
    policy.remove(int(rows[0]))
