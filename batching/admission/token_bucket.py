"""A token bucket for each tenant: so many tokens a second, so many at once. Prompt and expected output are charged at
the door; what was not used comes back when the request leaves, what was used beyond is owed."""

from collections.abc import Mapping
from typing import Any

from burrstone.batching.admission.decision import Decision, GateRequest, GateView, Reject
from burrstone.batching.admission.policy import Admission, taken

DEFAULT_BURST_S = 10.0
REASON = "token_rate"
# The sum of many refills may fall short of what one refill would give by its last bits.
_ROUNDING = 1e-9


class TokenBucket(Admission):
    """Tenants without `tokens_per_s` are not limited. A request larger than the bucket needs it full, and is then owed."""

    name = "token-bucket"

    def __init__(self) -> None:
        super().__init__()
        self._tokens: dict[str, tuple[float, float]] = {}  # tenant -> tokens in its bucket, at this time
        self._charged: dict[int, float] = {}  # seq -> what was taken at the door

    def _judge(self, request: GateRequest, view: GateView, now_s: float) -> Decision:
        if request.tokens_per_s is None:
            return taken(request, view)
        tokens = self._refilled(request, request.tokens_per_s, now_s)
        cost = request.prompt_tokens + view.expected_tokens
        missing = min(cost, _burst(request, request.tokens_per_s)) - tokens
        if missing > _ROUNDING * cost:
            return Reject(missing / request.tokens_per_s, REASON)
        self._tokens[request.tenant] = (tokens - cost, now_s)
        self._charged[request.seq] = cost
        return taken(request, view)

    def left(self, request: GateRequest, output_tokens: float, now_s: float, *, started: bool, finished: bool) -> None:
        charged = self._charged.pop(request.seq, None)
        if charged is None or request.tokens_per_s is None:
            return
        used = request.prompt_tokens + output_tokens if started else 0
        tokens = self._refilled(request, request.tokens_per_s, now_s)
        burst = _burst(request, request.tokens_per_s)
        self._tokens[request.tenant] = (min(burst, tokens + charged - used), now_s)

    def _refilled(self, request: GateRequest, tokens_per_s: float, now_s: float) -> float:
        burst = _burst(request, tokens_per_s)
        tokens, then_s = self._tokens.get(request.tenant, (burst, now_s))
        return min(burst, tokens + tokens_per_s * max(0.0, now_s - then_s))

    def _save(self, now_s: float) -> dict[str, Any]:
        buckets = {tenant: [tokens, now_s - then_s] for tenant, (tokens, then_s) in self._tokens.items()}
        return {"buckets": buckets, "charged": [[seq, cost] for seq, cost in self._charged.items()]}

    def _load(self, saved: Mapping[str, Any], now_s: float) -> None:
        self._tokens = {tenant: (tokens, now_s - age_s) for tenant, (tokens, age_s) in saved["buckets"].items()}
        self._charged = {seq: cost for seq, cost in saved["charged"]}


def _burst(request: GateRequest, tokens_per_s: float) -> float:
    return tokens_per_s * DEFAULT_BURST_S if request.burst_tokens is None else request.burst_tokens
