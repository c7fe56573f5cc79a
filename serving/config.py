"""The whole configuration: frozen, typed, parsed once. Unknown keys are refused by burrstone.serving.config_load."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from burrstone.batching.errors import UsageError
from burrstone.batching.policies.spec import Knobs, PolicySpec

Profile = Literal["auto", "cpu", "cuda", "neuron-inf2", "neuron-trn1", "neuron-trn2"]
EMBEDDED_MODEL = "smollm2-135m-instruct"


class ConfigError(UsageError):
    """A configuration that cannot be served; the message names the key, the rule and the fix."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class SpeculativeConfig(_Section):
    """Speculative decoding: draft cheaply, verify in the target model. Greedy output does not change."""

    method: Literal["ngram", "draft_model", "eagle", "eagle3", "suffix"] = Field(description="How drafts are made.")
    num_tokens: int = Field(4, ge=1, le=32, description="Draft tokens per step.")
    model: str | None = Field(None, description="Draft model path or hub id; draft_model, eagle and eagle3 need one.")
    prompt_lookup_max: int = Field(4, ge=1, description="ngram: longest n-gram looked up in the prompt.")
    prompt_lookup_min: int = Field(2, ge=1, description="ngram: shortest n-gram looked up in the prompt.")

    @model_validator(mode="after")
    def _needs_model(self) -> "SpeculativeConfig":
        if self.method in ("draft_model", "eagle", "eagle3") and self.model is None:
            raise ValueError(f"speculative.model is required when speculative.method is {self.method!r}")
        return self


class LoraModule(_Section):
    """One adapter served under its own model name."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Model name that clients ask for.")
    path: Path = Field(description="Folder with adapter_config.json and adapter_model.safetensors.")


class LoraConfig(_Section):
    """LoRA adapters named at start."""

    modules: tuple[LoraModule, ...] = Field((), description="Adapters to serve; any entry turns LoRA on.")
    max_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = Field(16, description="Largest adapter rank accepted.")
    max_active: int = Field(4, ge=1, description="Distinct adapters in one batch.")


class KernelsConfig(_Section):
    """Our own INT8 kernels on NVIDIA GPUs. None was measured on one yet, so none is used unless it is asked for here."""

    int8_linear: Literal["auto", "on", "off"] = Field(
        "auto",
        description="INT8 products of few tokens: `on`, `off`, or `auto`: where measured to be faster on this kind of GPU.",
    )
    int8_fusion: bool = Field(
        False, description="Make INT8 inputs in one launch with the norm or activation before them; needs compilation."
    )
    int8_attention: bool = Field(False, description="Attention over an INT8 KV cache (kv_cache_dtype).")
    lora_configs: Path | None = Field(
        None, description="Folder of launch configurations for vLLM's LoRA kernels, tuned for this GPU."
    )

    @field_validator("int8_linear", mode="before")
    @classmethod
    def _as_yaml_reads_it(cls, value: object) -> object:
        """Unquoted, YAML takes on and off for true and false."""
        return ("on" if value else "off") if isinstance(value, bool) else value


class EngineConfig(_Section):
    """The vLLM engine. Anything vLLM offers that has no key here goes into `vllm_args`."""

    kind: Literal["vllm", "scripted"] = Field("vllm", description="`scripted` replays token lists; for tests only.")
    script: Path | None = Field(None, description="Script file of the scripted engine (YAML).")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="Weights and activations.")
    max_model_len: int | None = Field(None, ge=16, description="Longest prompt + answer in tokens; the model's own.")
    max_num_seqs: int | None = Field(None, ge=1, description="Requests in one batch; the profile's default.")
    max_num_batched_tokens: int | None = Field(None, ge=16, description="Tokens in one step; chunks longer prefills.")
    tensor_parallel_size: int = Field(1, ge=1, description="Workers that share each layer.")
    enable_prefix_caching: bool = Field(True, description="Reuse the KV cache of equal prompt prefixes.")
    enable_chunked_prefill: bool = Field(True, description="Split long prefills so that decoding never waits.")
    kv_cache_gib: float | None = Field(None, gt=0, description="KV cache memory in GiB; sized from the machine.")
    kv_cache_dtype: str = Field(
        "auto", description="KV cache type; `auto`: the checkpoint's, else the model's. No int8 on the CPU."
    )
    quantization: str | None = Field(None, description="Override; normally read from the checkpoint.")
    enforce_eager: bool = Field(False, description="No compilation: slower, but starts sooner.")
    speculative: SpeculativeConfig | None = Field(None, description="Speculative decoding; off when absent.")
    lora: LoraConfig = Field(LoraConfig(), description="LoRA adapters.")
    kernels: KernelsConfig = Field(KernelsConfig(), description="Our own kernels.")
    tool_call_parser: str | None = Field("auto", description="vLLM tool parser; `auto` picks by model, null for none.")
    reasoning_parser: str | None = Field(None, description="vLLM reasoning parser.")
    chat_template: Path | None = Field(None, description="Jinja chat template in place of the model's own.")
    seed: int = Field(0, description="Seed of the engine.")
    vllm_args: dict[str, JsonValue] = Field({}, description="Any other AsyncEngineArgs field, by its vLLM name.")


class LimitsConfig(_Section):
    """What a request may ask for. Beyond a limit it is refused with 400 or 413, never cut in silence."""

    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="HTTP body and gRPC message, in bytes.")
    max_header_bytes: int = Field(16 * 2**10, ge=1024, description="All HTTP headers together, in bytes.")
    max_json_depth: int = Field(64, ge=4, description="Nesting of a JSON body.")
    max_n: int = Field(16, ge=1, le=128, description="Choices per request (`n`, `best_of`).")
    max_logprobs: int = Field(20, ge=0, description="`top_logprobs` and completions' `logprobs`.")
    max_stop_sequences: int = Field(4, ge=1, description="Entries in `stop`.")
    max_tools: int = Field(128, ge=0, description="Entries in `tools`.")
    max_grammar_bytes: int = Field(64 * 2**10, ge=64, description="JSON schema, regex or grammar, in bytes.")
    max_grammar_depth: int = Field(32, ge=2, description="Nesting of a JSON schema.")
    max_choices: int = Field(1000, ge=1, description="Entries in `structured_outputs.choice`.")
    max_prompts: int = Field(64, ge=1, description="Prompts in one completions or embeddings request.")
    default_max_tokens: int = Field(1024, ge=1, description="Output tokens when the request names no limit.")
    max_queued_requests: int = Field(
        512, ge=1, description="Generations in flight before 429; every prompt of a request is one."
    )
    request_timeout_s: float = Field(1800.0, gt=0, description="Longest a request may run, in seconds.")


class HttpConfig(_Section):
    """The replica's own HTTP listener."""

    host: str = Field("127.0.0.1", description="Address to bind. Anything but loopback needs an API key.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port.")
    docs: bool = Field(True, description="Serve /docs and /openapi.json.")
    cors_origins: tuple[str, ...] = Field((), description="Origins allowed by CORS; none by default.")
    idle_timeout_s: float = Field(75.0, gt=0, description="Keep-alive of an idle connection, in seconds.")
    body_timeout_s: float = Field(30.0, gt=0, description="Longest wait for the rest of a body, in seconds.")


class GrpcConfig(_Section):
    """The replica's own gRPC listener. It binds the HTTP section's host."""

    enabled: bool = Field(True, description="Serve gRPC.")
    port: int = Field(9000, ge=0, le=65535, description="TCP port.")
    reflection: bool = Field(True, description="Server reflection, for grpcurl.")
    max_concurrent_rpcs: int = Field(1024, ge=1, description="RPCs in flight before RESOURCE_EXHAUSTED.")


class TlsConfig(_Section):
    """TLS for both listeners; a client CA turns on mutual TLS."""

    cert: Path | None = Field(None, description="PEM certificate chain.")
    key: Path | None = Field(None, description="PEM private key.")
    client_ca: Path | None = Field(None, description="PEM CA that client certificates must come from.")

    @model_validator(mode="after")
    def _pair(self) -> "TlsConfig":
        if (self.cert is None) != (self.key is None):
            raise ValueError("tls.cert and tls.key are set together")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("tls.client_ca needs tls.cert and tls.key")
        return self


class AuthConfig(_Section):
    """API keys. None configured: loopback only."""

    keys_file: Path | None = Field(
        None, description="File with a key a line: `key`, `name:key`, or `name:sha256:HEX` with its digest."
    )
    keys_env: str = Field("BURRSTONE_API_KEYS", description="Environment variable with comma-separated keys.")


class ObservabilityConfig(_Section):
    """Logs and metrics."""

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Our log level.")
    log_request_text: bool = Field(False, description="Write prompts and answers to the log. Off: never.")
    metrics_public: bool = Field(False, description="/metrics without a key, where keys are configured.")


class ReplicaConfig(_Section):
    """How Ray Serve runs the engine replica."""

    drain_grace_s: float = Field(30.0, ge=0, description="Running streams may finish this long on shutdown.")
    health_check_period_s: float = Field(2.0, gt=0, description="How often Serve asks the replica for its health.")
    health_check_timeout_s: float = Field(30.0, gt=0, description="How long Serve waits for the answer.")
    start_timeout_s: float = Field(1800.0, gt=0, description="Longest engine start, in seconds.")


class TenantConfig(_Section):
    """What a tenant is owed and what it may use. Tenants are the names of the API keys."""

    weight: float = Field(1.0, gt=0, le=1e6, description="Share of service against tenants of the same priority.")
    priority: int = Field(0, ge=-1000, le=1000, description="Lower goes first, always; for few and trusted tenants.")
    ttft_s: float | None = Field(None, gt=0, description="Target for the time to the first token, in seconds.")
    tpot_s: float | None = Field(None, gt=0, description="Target for the time per further token, in seconds.")
    tokens_per_s: float | None = Field(
        None, gt=0, description="`token-bucket`: prompt and output tokens a second, in the long run; no limit."
    )
    burst_tokens: float | None = Field(
        None, gt=0, description="`token-bucket`: tokens that may be used at once; ten seconds' worth."
    )
    max_concurrent: int | None = Field(None, ge=1, description="Sequences that run at once; further ones wait.")

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> "TenantConfig":
        if self.burst_tokens is not None and self.tokens_per_s is None:
            raise ValueError("burst_tokens needs tokens_per_s beside it")
        return self


class SchedulerConfig(_Section):
    """Who is served next, in the engine (`policy`) and at the gate before it (`admission`, `max_running`)."""

    policy: str = Field("fcfs", description="Order in the engine: tiers joined by `>`, the first one deciding first.")
    knobs: dict[str, float] = Field({}, description="What the policy's tiers can be tuned by, where not the default.")
    step_model: Path | None = Field(
        None, description="How long steps take, from `burrstone sim calibrate`; the profile's own guess."
    )
    step_log: Path | None = Field(None, description="Every step of the engine is written here, a line each; off.")
    admission: Literal["open", "token-bucket", "predictive", "brownout"] = Field(
        "open", description="Who is let in: everybody, by rate, by predicted TTFT, or with shorter answers under load."
    )
    max_running: int | None = Field(
        None, ge=1, description="Sequences let into the engine; more wait at the gate in fair order. The engine's own."
    )
    tenants: dict[str, TenantConfig] = Field({}, description="Tenant -> its terms, with the keys of `default`.")
    default: TenantConfig = Field(TenantConfig(), description="The terms of every other tenant.")

    @model_validator(mode="after")
    def _known_policy(self) -> "SchedulerConfig":
        PolicySpec.parse(self.policy, Knobs.from_dict(self.knobs))
        return self

    @model_validator(mode="after")
    def _terms_that_count(self) -> "SchedulerConfig":
        rated = any(terms.tokens_per_s is not None for terms in self._all_terms())
        if rated != (self.admission == "token-bucket"):
            raise ValueError(
                "tokens_per_s is the rate of admission token-bucket: set both, or neither "
                f"(admission is {self.admission!r})"
            )
        if self.admission == "predictive" and all(terms.ttft_s is None for terms in self._all_terms()):
            raise ValueError("admission predictive needs ttft_s for some tenant or in scheduler.default")
        return self

    @property
    def stock(self) -> bool:
        """Whether vLLM's own scheduler does all that is asked for, so that nothing of ours runs in the engine core."""
        return PolicySpec.parse(self.policy).neutral and self.step_log is None

    def terms(self, tenant: str) -> TenantConfig:
        """What holds for this tenant."""
        return self.tenants.get(tenant, self.default)

    def priorities(self) -> set[int]:
        """Those that a tenant may have."""
        return {terms.priority for terms in self._all_terms()}

    def _all_terms(self) -> tuple[TenantConfig, ...]:
        return (*self.tenants.values(), self.default)


class RouterConfig(_Section):
    """How requests are spread over several replicas."""

    policy: Literal["round-robin", "least-load", "p2c", "session", "min-ttft"] = Field(
        "min-ttft", description="Which replica gets a request. Takes effect with several replicas; one has no choice."
    )


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/:@-]{1,128}$")]


class ServeConfig(_Section):
    """Everything `burrstone serve` needs."""

    model: str = Field(EMBEDDED_MODEL, description="Folder, hub id, or the embedded model's name.")
    served_names: tuple[Name, ...] = Field((), description="Names clients may ask for; from the model when empty.")
    profile: Profile = Field("auto", description="Hardware profile; `auto` looks at the machine.")
    trust_remote_code: Literal[False] = Field(False, description="Code from a model repository is never run.")
    cache_dir: Path = Field(Path("~/.cache/burrstone"), description="Converted models and compiled artifacts.")
    require_verdict: bool = Field(
        False, description="Serve only a model folder whose evaluation has passed, on the very files that are there."
    )
    unknown_fields: Literal["reject", "ignore"] = Field(
        "reject",
        description="Request fields we do not know: 400, or `ignore` those of the body's top level; the log names them.",
    )
    engine: EngineConfig = Field(EngineConfig(), description="The engine.")
    limits: LimitsConfig = Field(LimitsConfig(), description="Request limits.")
    scheduler: SchedulerConfig = Field(SchedulerConfig(), description="Scheduling and admission.")
    router: RouterConfig = Field(RouterConfig(), description="Spread over replicas.")
    http: HttpConfig = Field(HttpConfig(), description="HTTP listener.")
    grpc: GrpcConfig = Field(GrpcConfig(), description="gRPC listener.")
    tls: TlsConfig = Field(TlsConfig(), description="TLS.")
    auth: AuthConfig = Field(AuthConfig(), description="API keys.")
    observability: ObservabilityConfig = Field(ObservabilityConfig(), description="Logs and metrics.")
    replica: ReplicaConfig = Field(ReplicaConfig(), description="Ray Serve replica.")

    @model_validator(mode="after")
    def _two_ports(self) -> "ServeConfig":
        if self.grpc.enabled and self.http.port == self.grpc.port != 0:
            raise ValueError(f"http.port and grpc.port are both {self.http.port}; each listener needs its own")
        return self
