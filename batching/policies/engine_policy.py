"""The scheduler's memory in one engine: the table of requests, the tenants, the policy's counters, and what it decides."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from burrstone.batching.core.requests import (
    FREE,
    NEVER_S,
    NO_DEADLINE_S,
    REQUEST,
    RUNNING,
    TENANT,
    UNKNOWN_LENGTH,
    WAITING,
    new_requests,
    new_tenants,
)
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.policies import plan as kernels
from burrstone.batching.policies.spec import STATE, PolicySpec, new_state

_FIRST_CAPACITY = 256


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it comes to an engine. Times are seconds on the engine's clock; `program` -1 for none."""

    prompt_tokens: int
    max_tokens: int
    tenant: int = 0
    weight: float = 1.0
    program: int = -1
    program_arrival_s: float | None = None
    priority: int = 0
    predicted_tokens: float = UNKNOWN_LENGTH
    ttft_s: float = NO_DEADLINE_S
    tpot_s: float = NO_DEADLINE_S
    deadline_s: float = NO_DEADLINE_S


class Plan(NamedTuple):
    """One step's decision: rows in order, how many of running's last sit it out, the token budget, the decision's hash."""

    waiting: np.ndarray
    running: np.ndarray
    parked: int
    budget: int
    hash: int


class EnginePolicy:
    """One policy at work in one engine. No clock: every call is told the time. Not thread-safe.

    Rows are small integers that the caller keeps; `requests[row]` holds what policies see of a request.
    """

    def __init__(
        self, spec: PolicySpec, model: StepModel, *, max_step_tokens: int, block_tokens: int, decode_tokens: int = 1
    ) -> None:
        """decode_tokens: that a decode takes of a step; more than one where tokens are drafted."""
        self.spec = spec
        self.model = model
        self.max_step_tokens = max_step_tokens
        self.block_tokens = block_tokens
        self.requests = new_requests(_FIRST_CAPACITY)
        self.tenants = new_tenants(8)
        self.next_seq = 0
        self._record = spec.record(decode_tokens=decode_tokens)
        self._coefficients = model.coefficients()
        self._state = new_state()
        self._free = list(range(_FIRST_CAPACITY - 1, -1, -1))

    def add(self, arrival: Arrival, now_s: float) -> int:
        """A request has come; returns its row."""
        row = self._take_row()
        self._make_room_for_tenant(arrival.tenant)
        request = self.requests[row]
        request["seq"] = self.next_seq
        request["phase"] = WAITING
        request["arrival_s"] = now_s
        request["prompt_tokens"] = arrival.prompt_tokens
        request["max_tokens"] = arrival.max_tokens
        request["predicted_tokens"] = min(arrival.predicted_tokens, arrival.max_tokens)
        request["computed_tokens"] = request["output_tokens"] = request["preemptions"] = 0
        request["tenant"] = arrival.tenant
        request["weight"] = arrival.weight
        request["program"] = arrival.program
        request["program_arrival_s"] = now_s if arrival.program_arrival_s is None else arrival.program_arrival_s
        request["priority"] = arrival.priority
        request["ttft_deadline_s"] = now_s + arrival.ttft_s
        request["tpot_s"] = arrival.tpot_s
        request["deadline_s"] = arrival.deadline_s
        request["first_token_s"] = NEVER_S
        self.next_seq += 1
        kernels.on_arrival(self._record, self.requests, row, self.tenants, self._state)
        return row

    def plan(
        self, waiting: np.ndarray, running: np.ndarray, *, free_slots: int, free_blocks: int, now_s: float
    ) -> Plan:
        """Decide a step. waiting, running: int64 rows in queue order; both are reordered in place."""
        budget, parked, hash_ = kernels.plan(
            self._record,
            self.requests,
            waiting,
            len(waiting),
            running,
            len(running),
            free_slots,
            free_blocks,
            self.block_tokens,
            self.max_step_tokens,
            now_s,
            self._coefficients,
            self.tenants,
            self._state,
        )
        return Plan(waiting, running, parked, budget, int(hash_))

    def admitted(self, row: int, cached_tokens: int) -> None:
        """The request starts to run, with so many tokens of its prompt found in the prefix cache."""
        kernels.on_admit(self._record, self.requests, row, cached_tokens, self.tenants, self._state)
        self.requests[row]["phase"] = RUNNING

    def preempted(self, row: int) -> None:
        """The request lost its KV cache and waits again."""
        kernels.on_preempt(self.requests, row, self.tenants)

    def served(self, row: int, new_output_tokens: int, now_s: float) -> None:
        """A step, ending now, gave the request so many tokens."""
        self.served_rows(np.array([row]), np.array([new_output_tokens]), now_s)

    def served_rows(self, rows: np.ndarray, new_output_tokens: np.ndarray, now_s: float) -> None:
        """As `served`, for all that a step served, in that order. rows, new_output_tokens: int64."""
        kernels.serve_rows(self._record, self.requests, rows, new_output_tokens, now_s, self.tenants, self._state)

    def remove(self, row: int) -> None:
        """The request has ended: finished or cancelled. Its row may be given out again."""
        kernels.on_finish(self._record, self.requests, row, self.tenants)
        self.requests[row]["phase"] = FREE
        self._free.append(row)

    def save(self) -> dict[str, Any]:
        """Everything that decisions depend on, as plain values; `load` gives back a policy that decides the same."""
        return {
            "policy": str(self.spec),
            "next_seq": self.next_seq,
            "requests": self.requests.tobytes(),
            "tenants": self.tenants.tobytes(),
            "state": self._state.tobytes(),
            "free": list(self._free),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Take up where `save` was called. Raises ValueError when the policy is another one."""
        if saved["policy"] != str(self.spec):
            raise ValueError(f"saved state is of policy {saved['policy']!r}, this is {str(self.spec)!r}")
        self.next_seq = saved["next_seq"]
        self.requests = np.frombuffer(saved["requests"], dtype=REQUEST).copy()
        self.tenants = np.frombuffer(saved["tenants"], dtype=TENANT).copy()
        self._state = np.frombuffer(saved["state"], dtype=STATE).copy()[0]
        self._free = list(saved["free"])

    def _take_row(self) -> int:
        if not self._free:
            capacity = len(self.requests)
            self.requests = np.concatenate([self.requests, new_requests(capacity)])
            self._free = list(range(2 * capacity - 1, capacity - 1, -1))
        return self._free.pop()

    def _make_room_for_tenant(self, tenant: int) -> None:
        while tenant >= len(self.tenants):
            self.tenants = np.concatenate([self.tenants, new_tenants(len(self.tenants))])
