"""A workload: what is asked of the engines, when, and by whom. Arrays, one entry a request."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from burrstone.batching.core.requests import NO_DEADLINE_S, UNKNOWN_LENGTH
from burrstone.batching.errors import UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NONE = -1


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Hashes of a request's first blocks, request after request: starts[i]:starts[i + 1] of `hashes` are request i's.

    A hash stands for the whole text up to the end of its block, so equal hashes mean equal prefixes. They may reach
    past the prompt into the output, for a next turn to find; blocks without a hash are the request's alone. A last hash
    whose block the prompt ends in stands for the prompt's part of it.
    """

    starts: Ints  # [requests + 1]
    hashes: NDArray[np.uint64]
    block_tokens: int = 16  # tokens that one hash covers; a multiple of the engine's block size

    def __post_init__(self) -> None:
        if self.block_tokens < 1:
            raise UsageError(f"prefixes: block_tokens must be >= 1, got {self.block_tokens}")
        starts = self.starts
        if len(starts) < 1 or starts[0] != 0 or starts[-1] != len(self.hashes) or np.any(np.diff(starts) < 0):
            raise UsageError("prefixes: starts must rise from 0 to the number of hashes")


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival. `after` makes agent programs: a request with after[i] = j >= 0 comes think_s[i]
    after request j's last token, and its arrival_s is only where it is sorted. Raises UsageError for what cannot be.
    """

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints  # what the model will say, which no policy sees
    tenant: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # default 0
    program: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # default NONE
    turn: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # of its program, from 0
    priority: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # lower first, default 0
    max_tokens: Ints = field(
        default_factory=lambda: np.empty(0, np.int64)
    )  # default output_tokens, which tells policies more than clients do
    predicted_tokens: Floats = field(default_factory=lambda: np.empty(0, np.float64))  # default UNKNOWN_LENGTH
    ttft_s: Floats = field(default_factory=lambda: np.empty(0, np.float64))  # SLOs, default NO_DEADLINE_S
    tpot_s: Floats = field(default_factory=lambda: np.empty(0, np.float64))
    e2e_s: Floats = field(default_factory=lambda: np.empty(0, np.float64))
    cancel_s: Floats = field(default_factory=lambda: np.empty(0, np.float64))  # client leaves so long after arrival
    after: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # default NONE
    think_s: Floats = field(default_factory=lambda: np.empty(0, np.float64))  # default 0
    final: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # 1: calls no tool; default 0
    tenant_weight: Floats = field(default_factory=lambda: np.empty(0, np.float64))  # one a tenant, default 1
    prefixes: Prefixes | None = None

    def __post_init__(self) -> None:
        self._fill()
        self._check()

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def num_tenants(self) -> int:
        """Tenants are numbered below this."""
        return len(self.tenant_weight)

    def take(self, rows: Ints) -> Self:
        """These requests alone, in the given order. Raises UsageError if one of them follows a request left out."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        place = np.full(len(self) + 1, NONE, np.int64)
        place[rows] = np.arange(len(rows))
        follows = columns["after"] >= 0
        columns["after"] = place[columns["after"]]
        if np.any(columns["after"][follows] < 0):
            raise UsageError("workload: take() needs whole programs, a request follows one that is left out")
        prefixes = None
        if self.prefixes is not None:
            given = self.prefixes
            parts = [given.hashes[given.starts[row] : given.starts[row + 1]] for row in rows]
            starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
            hashes = np.concatenate([*parts, np.empty(0, np.uint64)])
            prefixes = Prefixes(starts, hashes, given.block_tokens)
        return type(self)(**columns, tenant_weight=self.tenant_weight, prefixes=prefixes)

    def _fill(self) -> None:
        size = len(self.arrival_s)
        for name, (kind, default) in _COLUMNS.items():
            given = np.asarray(getattr(self, name), dtype=kind)
            if len(given) == 0 and default is not None:
                source = getattr(self, default) if isinstance(default, str) else np.full(size, default)
                given = np.asarray(source, dtype=kind)
            if given.shape != (size,):
                raise UsageError(f"workload: {name} must have {size} entries, as arrival_s has; got {given.shape}")
            object.__setattr__(self, name, np.ascontiguousarray(given))
        tenants = int(self.tenant.max()) + 1 if size else 1
        weights = np.asarray(self.tenant_weight, dtype=np.float64)
        object.__setattr__(self, "tenant_weight", weights if len(weights) else np.ones(tenants))

    def _check(self) -> None:
        def need(ok: NDArray[np.bool_] | bool, rule: str) -> None:
            if not np.all(ok):
                where = "" if isinstance(ok, bool | np.bool_) else f" (request {int(np.argmin(ok))})"
                raise UsageError(f"workload: {rule}{where}")

        need(np.isfinite(self.arrival_s) & (self.arrival_s >= 0), "arrival_s must be numbers >= 0")
        need(np.diff(self.arrival_s, prepend=0.0) >= 0, "arrival_s must not fall; sort the requests by it")
        for name in ("input_tokens", "output_tokens"):
            need(getattr(self, name) >= 1, f"{name} must be >= 1")
        need(self.max_tokens >= self.output_tokens, "max_tokens must be at least output_tokens")
        for name in ("ttft_s", "tpot_s", "e2e_s", "cancel_s"):
            need(getattr(self, name) >= 0, f"{name} must be >= 0, infinite for none")
        known = (self.predicted_tokens >= 0) | (self.predicted_tokens == UNKNOWN_LENGTH)
        need(known, "predicted_tokens must be >= 0, or -1 for unknown")
        need(np.isfinite(self.think_s) & (self.think_s >= 0), "think_s must be numbers >= 0")
        need((self.tenant >= 0) & (self.tenant < self.num_tenants), "tenant must be a row of tenant_weight")
        need(self.tenant_weight > 0, "tenant_weight must be > 0")
        need(self.program >= NONE, "program must be >= 0, or -1 for none")
        need((self.final == 0) | (self.final == 1), "final must be 0 or 1")
        need((self.after >= NONE) & (self.after < np.arange(len(self))), "after must be an earlier request, or -1")
        if self.prefixes is not None:
            need(len(self.prefixes.starts) == len(self) + 1, "prefixes.starts must have one entry more than requests")


# Name -> type and what stands where nothing is given: a number, another column, or None for a must.
_COLUMNS: dict[str, tuple[type[np.generic], float | str | None]] = {
    "arrival_s": (np.float64, None),
    "input_tokens": (np.int64, None),
    "output_tokens": (np.int64, None),
    "tenant": (np.int64, 0),
    "program": (np.int64, NONE),
    "turn": (np.int64, 0),
    "priority": (np.int64, 0),
    "max_tokens": (np.int64, "output_tokens"),
    "predicted_tokens": (np.float64, UNKNOWN_LENGTH),
    "ttft_s": (np.float64, NO_DEADLINE_S),
    "tpot_s": (np.float64, NO_DEADLINE_S),
    "e2e_s": (np.float64, NO_DEADLINE_S),
    "cancel_s": (np.float64, NO_DEADLINE_S),
    "after": (np.int64, NONE),
    "think_s": (np.float64, 0),
    "final": (np.int64, 0),
}
