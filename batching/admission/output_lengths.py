"""What a generation will most likely cost in output tokens, by what its tenant's earlier ones took."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from burrstone.batching.core.requests import new_tenants
from burrstone.batching.policies.lengths import observe_length, predict_length

_MEDIAN = 0.5


class OutputLengths:
    """A history for each tenant. Where too little is known, everybody is expected to use all that was asked for."""

    def __init__(self) -> None:
        self._tenants: dict[str, np.void] = {}

    def expected(self, tenant: str, max_tokens: int) -> float:
        """Output tokens of one choice, at most max_tokens."""
        return float(predict_length(self._of(tenant), _MEDIAN, float(max_tokens)))

    def observe(self, tenant: str, tokens: float) -> None:
        """A choice of this tenant's ended after so many tokens."""
        observe_length(self._of(tenant), tokens)

    def save(self) -> dict[str, Any]:
        return {tenant: record["lengths"].tolist() for tenant, record in self._tenants.items()}

    def load(self, saved: Mapping[str, Any]) -> None:
        self._tenants = {}
        for tenant, lengths in saved.items():
            self._of(tenant)["lengths"] = lengths

    def _of(self, tenant: str) -> np.void:
        if tenant not in self._tenants:
            self._tenants[tenant] = new_tenants(1)[0]
        return self._tenants[tenant]
