"""vLLM's scheduler, or ours over it, driven step by step without a model: every finished prompt gets made-up tokens."""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig, set_current_vllm_config
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

BLOCK_TOKENS = 16
_MODEL_CONFIG = """{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 1000,
"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 64,
"max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}"""


def vllm_config(
    folder: Path, *, max_num_seqs: int = 8, max_num_batched_tokens: int = 64, num_blocks: int = 64, caching: bool = True
) -> VllmConfig:
    """A configuration for a model of which there is only config.json, written into `folder`."""
    (folder / "config.json").write_text(_MODEL_CONFIG)
    model = ModelConfig(
        model=str(folder), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=1024, trust_remote_code=False
    )
    scheduler = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=1024,
        enable_chunked_prefill=True,
        is_encoder_decoder=False,
    )
    cache = CacheConfig(block_size=BLOCK_TOKENS, gpu_memory_utilization=0.9, enable_prefix_caching=caching)
    # On the CPU vLLM writes libraries to preload into the environment, which servers of other tests would inherit.
    before = dict(os.environ)
    config = VllmConfig(
        model_config=model, scheduler_config=scheduler, cache_config=cache, device_config=DeviceConfig("cpu")
    )
    os.environ.clear()
    os.environ.update(before)
    config.cache_config.num_gpu_blocks = num_blocks
    return config


def make_scheduler(cls: Any, config: VllmConfig) -> Any:
    """A scheduler of this class, as the engine core makes it."""
    import torch

    spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.float32)
    kv = KVCacheConfig(
        num_blocks=config.cache_config.num_gpu_blocks or 0,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )
    with set_current_vllm_config(config):
        return cls(
            vllm_config=config,
            kv_cache_config=kv,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_TOKENS,
            log_stats=True,
        )


class AnyText:
    """A compiled grammar that allows everything."""

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        return True


class BareEngine:
    """An engine core's loop over a scheduler. `depth`: steps that are decided before the first one has ended.

    `num_drafts`: tokens that are drafted for each decoding request, of which none to all are accepted.
    """

    def __init__(self, scheduler: Any, *, depth: int = 1, num_drafts: int = 0) -> None:
        self.scheduler = scheduler
        self.steps: list[dict[str, int]] = []
        self.outputs: dict[str, list[int]] = {}
        self.finished: list[str] = []
        self._depth = depth
        self._num_drafts = num_drafts
        scheduler.num_spec_tokens = num_drafts
        self._flying: deque[Any] = deque()
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)

    def add(
        self,
        name: str,
        prompt: Sequence[int],
        max_tokens: int = 4,
        meta: dict[str, Any] | None = None,
        grammar: Future[Any] | None = None,
    ) -> Request:
        """A request of these tokens, at most so many to come; `meta` as the seam writes it. It waits for `grammar`."""
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, extra_args={"burrstone": meta or {}})
        if grammar is not None:
            params.structured_outputs = StructuredOutputsParams(regex=".*")
        params.update_from_generation_config({}, 2)
        request = Request(
            request_id=name,
            prompt_token_ids=list(prompt),
            sampling_params=params,
            pooling_params=None,
            block_hasher=self._hasher,
        )
        if request.structured_output_request is not None:
            request.structured_output_request.grammar = grammar
        self.outputs[name] = []
        self.scheduler.add_request(request)
        return request

    def abort(self, *names: str) -> None:
        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)

    def decide(self) -> Any:
        """The first half of a step."""
        output = self.scheduler.schedule()
        self.steps.append(dict(output.num_scheduled_tokens))
        self._flying.append(output)
        return output

    def end(self) -> None:
        """The second half of the oldest step that flies: each request whose tokens are all computed gets another."""
        output = self._flying.popleft()
        ids = list(output.num_scheduled_tokens)
        drafted = output.scheduled_spec_decode_tokens
        sampled = [self._sample(request_id, len(drafted.get(request_id, ()))) for request_id in ids]
        result = EMPTY_MODEL_RUNNER_OUTPUT
        if ids:
            result = ModelRunnerOutput(ids, {name: place for place, name in enumerate(ids)}, sampled)
        for core_outputs in self.scheduler.update_from_output(output, result).values():
            for one in core_outputs.outputs:
                self.outputs[one.request_id] += one.new_token_ids
                if one.finish_reason is not None:
                    self.finished.append(one.request_id)

        if self._num_drafts:
            names = [request.request_id for request in self.scheduler.running]
            drafts = [[5] * self._num_drafts for _ in names]
            self.scheduler.update_draft_token_ids(DraftTokenIds(names, drafts))

    def settle(self) -> None:
        """End the oldest step if as many fly as may."""
        if len(self._flying) >= self._depth:
            self.end()

    def step(self) -> None:
        self.decide()
        self.settle()

    def run(self, max_steps: int = 2000) -> int:
        """Until nothing is left; returns the number of steps. Raises when it does not end."""
        for count in range(max_steps):
            if not self.scheduler.has_requests():
                while self._flying:
                    self.end()
                return count
            self.step()
        raise RuntimeError(f"{max_steps} steps and no end")

    def _sample(self, name: str, num_drafts: int) -> list[int]:
        request = self.scheduler.requests.get(name)
        if request is None or request.is_prefill_chunk:
            return []
        made_up = len(request.all_token_ids) * 7 + sum(map(ord, name))
        return [3 + (made_up + place) % 900 for place in range(1 + made_up % (num_drafts + 1))]
