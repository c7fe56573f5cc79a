"""Virtual token counters: each tenant's weighted service, and the order that serves whoever had least (OSDI'24)."""

import numpy as np

from burrstone.batching.core.kernel import kernel


@kernel
def lift_tenant(requests: np.ndarray, row: int, tenants: np.ndarray, lift: float) -> None:
    """A tenant of whom nobody waited starts at the least served tenant that waits: having no work earns no credit."""
    tenant = requests[row]["tenant"]
    tenants[tenant]["weight"] = requests[row]["weight"]
    if tenants[tenant]["waiting"] == 0:
        least = np.inf
        for other in range(tenants.shape[0]):
            if tenants[other]["waiting"] > 0 and tenants[other]["service"] < least:
                least = tenants[other]["service"]
        if least == np.inf:
            least = lift
        tenants[tenant]["service"] = max(tenants[tenant]["service"], least)
    tenants[tenant]["waiting"] += 1


@kernel
def charge(requests: np.ndarray, row: int, tokens: float, tenants: np.ndarray) -> float:
    """Add served tokens, already weighted by kind, to the request's tenant; returns the tenant's counter."""
    tenant = requests[row]["tenant"]
    tenants[tenant]["service"] += tokens / max(tenants[tenant]["weight"], 1e-9)
    return tenants[tenant]["service"]


@kernel
def interleave(
    requests: np.ndarray, rows: np.ndarray, num_rows: int, prompt_weight: float, tenants: np.ndarray
) -> None:
    """Reorder rows[:num_rows]: always the next request of the tenant with least service, charging its prompt as if
    it were admitted at once. Within a tenant the order stays. O(num_rows * tenants that wait)."""
    given = rows[:num_rows].copy()
    after = np.full(num_rows, -1, np.int64)  # the tenant's next request, by position
    head = np.full(tenants.shape[0], -1, np.int64)
    waiting = np.empty(min(num_rows, tenants.shape[0]), np.int64)
    num_waiting = 0
    for position in range(num_rows - 1, -1, -1):
        tenant = requests[given[position]]["tenant"]
        if head[tenant] < 0:
            waiting[num_waiting] = tenant
            num_waiting += 1
        after[position] = head[tenant]
        head[tenant] = position
    service = np.empty(num_waiting, np.float64)
    for index in range(num_waiting):
        service[index] = tenants[waiting[index]]["service"]
    for place in range(num_rows):
        best = 0
        for index in range(1, num_waiting):
            earlier = head[waiting[index]] < head[waiting[best]]
            if service[index] < service[best] or (service[index] == service[best] and earlier):
                best = index
        tenant = waiting[best]
        row = given[head[tenant]]
        rows[place] = row
        prompt = requests[row]["prompt_tokens"]
        service[best] += prompt_weight * prompt / max(tenants[tenant]["weight"], 1e-9)
        head[tenant] = after[head[tenant]]
        if head[tenant] < 0:
            num_waiting -= 1
            waiting[best] = waiting[num_waiting]
            service[best] = service[num_waiting]
