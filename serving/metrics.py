"""Prometheus metrics of ours; vLLM's own are in the same registry and come out of the same /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_HOOK_SECONDS = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)


class EngineMetrics:
    """What the seam counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.running = Gauge(
            "burrstone_generations_running", "Generations inside the engine or its queue.", registry=registry
        )
        self.cancelled = Counter(
            "burrstone_generations_cancelled", "Generations whose client went away.", registry=registry
        )
        self.refused = Counter(
            "burrstone_generations_refused",
            "Generations refused at the gate; `class` is a configured tenant, or `default`.",
            ["class", "reason"],
            registry=registry,
        )
        self.degraded = Counter(
            "burrstone_generations_degraded",
            "Generations let in with fewer output tokens than they asked for.",
            ["class"],
            registry=registry,
        )
        self.waiting = Gauge(
            "burrstone_gate_waiting", "Generations that wait at the gate for a seat.", ["class"], registry=registry
        )
        self.wait_s = Histogram(
            "burrstone_gate_wait_seconds",
            "From a generation's place in the queue to its seat.",
            ["class"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.time_to_first_token_s = Histogram(
            "burrstone_time_to_first_token_seconds",
            "From the parsed request to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )


class SchedulerMetrics:
    """What the scheduler in the engine core counts, as it arrives with each step."""

    def __init__(self, registry: CollectorRegistry, policy: str) -> None:
        info = Gauge("burrstone_scheduler_info", "1, with the engine's policy.", ["policy"], registry=registry)
        info.labels(policy).set(1)
        self.fallbacks = Counter(
            "burrstone_scheduler_fallback",
            "Times that the policy failed or was slow, so that the engine goes on in vLLM's own order.",
            registry=registry,
        )
        self.preemptions = Counter(
            "burrstone_scheduler_preemptions", "Requests that lost their KV cache to others.", registry=registry
        )
        self.relegated = Counter(
            "burrstone_scheduler_relegated",
            "Requests that started when their first token was bound to be late (policy tier slo).",
            registry=registry,
        )
        self.kept_blocks = Gauge(
            "burrstone_scheduler_kept_blocks",
            "KV blocks of finished calls, kept for their programs (policy tier program).",
            registry=registry,
        )
        self.hook_s = Histogram(
            "burrstone_scheduler_hook_seconds",
            "Time of a step spent on the policy.",
            buckets=_HOOK_SECONDS,
            registry=registry,
        )


class ApiMetrics:
    """What the edges count, by wire (http, grpc) and operation."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "burrstone_requests",
            "Requests answered; outcome is `ok` or the error's label.",
            ["wire", "operation", "outcome"],
            registry=registry,
        )
        self.duration_s = Histogram(
            "burrstone_request_duration_seconds",
            "From the request's headers to the last byte of its answer.",
            ["wire", "operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "burrstone_tokens",
            "Tokens by tenant; kind is prompt, cached or output.",
            ["tenant", "kind"],
            registry=registry,
        )
        self.ready = Gauge("burrstone_ready", "1 when the replica takes requests.", registry=registry)
