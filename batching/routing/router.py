"""A router at work: one policy, what it remembers, and a hash of every decision. No clock: each call is told the time."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from burrstone.batching.core.hashing import SEED, fold
from burrstone.batching.core.step_model import StepModel
from burrstone.batching.errors import NotReady
from burrstone.batching.routing import choose as kernels
from burrstone.batching.routing.memory import DECISION, NO_SESSION, arrays_of, new_memory
from burrstone.batching.routing.probes import NO_ENGINE
from burrstone.batching.routing.spec import RouterSpec


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What a router may know of a request. hashes: of the prompt's full blocks, each standing for the text up to its end."""

    prompt_tokens: int
    session: int = NO_SESSION
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))


@dataclass(frozen=True, slots=True)
class Route:
    """A decision. `record` is what the router wants back when the engine has answered."""

    engine: int
    predicted_ttft_s: float
    claimed_tokens: int  # of the prompt, held to be cached there
    hash: int
    record: np.void


class Router:
    """Routes over engines 0 to num_engines - 1. Not thread-safe."""

    def __init__(
        self,
        spec: RouterSpec,
        num_engines: int,
        model: StepModel,
        *,
        step_tokens: int,
        block_tokens: int = 16,
        index_blocks: int = 4096,
        first_turn: int = 0,
    ) -> None:
        """step_tokens: an engine's max_num_batched_tokens; index_blocks: blocks that its prefix cache holds."""
        self.spec = spec
        self.hash = int(SEED)  # of all decisions, in order
        self._policy = spec.record()
        self._coefficients = model.coefficients()
        self._step_tokens = step_tokens
        self._block_tokens = block_tokens
        self._memory = new_memory(num_engines, index_blocks=index_blocks, first_turn=first_turn)

    @property
    def lead_changes(self) -> int:
        """How often min-ttft has stepped back to a simpler policy or returned."""
        return int(self._memory.counters[0]["lead_changes"])

    def choose(self, request: RouteRequest, views: np.ndarray, now_s: float) -> Route:
        """views: [engines] of ENGINE_VIEW. Raises NotReady if no engine is alive."""
        decision = np.zeros(1, dtype=DECISION)[0]
        engine = kernels.choose(
            self._policy,
            self._memory,
            views,
            request.prompt_tokens,
            request.session,
            request.hashes,
            self._block_tokens,
            now_s,
            self._coefficients,
            self._step_tokens,
            decision,
        )
        self.hash = int(fold(np.uint64(self.hash), decision["hash"].astype(np.int64)))
        if engine == NO_ENGINE:
            raise NotReady("no engine is ready to take requests", retry_after_s=1.0)
        return Route(
            int(engine),
            float(decision["predicted_s"]),
            int(decision["claimed_tokens"]),
            int(decision["hash"]),
            decision,
        )

    def on_dispatch(self, request: RouteRequest, route: Route, now_s: float) -> None:
        """The request has been sent where `choose` said."""
        kernels.on_dispatch(self._memory, route.record, request.prompt_tokens, request.hashes, now_s)

    def on_first_token(self, route: Route, observed_ttft_s: float, cached_tokens: int) -> None:
        """The engine has answered; cached_tokens: prompt tokens that it found in its prefix cache."""
        kernels.on_first_token(self._policy, self._memory, route.record, observed_ttft_s, cached_tokens)

    def on_engine_lost(self, engine: int) -> None:
        """The engine died or started anew; what it had cached is gone."""
        kernels.on_engine_lost(self._memory, engine)

    def save(self) -> dict[str, Any]:
        """Everything that decisions depend on, as plain values; `load` gives back a router that decides the same."""
        arrays = {name: array.tobytes() for name, array in arrays_of(self._memory)}
        return {"policy": self.spec.name, "hash": self.hash, "arrays": arrays}

    def load(self, saved: dict[str, Any]) -> None:
        """Take up where `save` was called. Raises ValueError when that was another policy or another fleet."""
        if saved["policy"] != self.spec.name:
            raise ValueError(f"saved state is of policy {saved['policy']!r}, this is {self.spec.name!r}")
        own = dict(arrays_of(self._memory))
        for name, array in own.items():
            if len(saved["arrays"][name]) != array.nbytes:
                raise ValueError(f"saved state is of another number of engines or blocks: {name} differs in size")
        for name, array in own.items():
            array[...] = np.frombuffer(saved["arrays"][name], dtype=array.dtype).reshape(array.shape)
        self.hash = saved["hash"]
