"""An attention backend over our INT8 KV cache: --kv-cache-dtype int8_per_token_head, --attention-backend CUSTOM.

A page of vLLM's cache is as large as one of ours (see kernels.kv_cache), and holds it: keys, values, and their scales in planes.
One new token a sequence, which is what decoding does, is our kernel's. Prompts are computed by PyTorch over the same rounded
keys and values, sequence by sequence, so that an answer does not depend on how its prompt was cut into chunks.
"""

import weakref
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from burrstone.kernels import kv_cache as pages
from burrstone.kernels.kv_cache import KVCache
from burrstone.kernels.ops.attention_kv_int8 import attention_kv_int8, largest_workspace
from burrstone.kernels.ops.rope_kv_int8 import rope_kv_int8
from burrstone.kernels.tall import Workspace
from burrstone.quant.engine import vllm_compat as vllm
from burrstone.quant.kv_cache import INT8_PER_TOKEN_HEAD

# The largest that the kernel is compiled for in the gate.
MAX_HEAD_SIZE = 128
# Rows of one product of queries and keys: new tokens times the heads that share a KV head. They bound the mask.
_PROMPT_ROWS = 2048
# What stays of a prompt's token and KV head beside the cache, in bytes for each value: float32 and twice 16 bits of a key or a
# value, and 16 bits of the other.
_PROMPT_BYTES = 4 + 2 + 2 + 2
# cuDNN makes a plan for each new length, which takes longer than the prompt.
_PROMPT_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Int8AttentionBackend(vllm.AttentionBackend):
    """What it does not take, vLLM refuses with the reason when the engine starts."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = [INT8_PER_TOKEN_HEAD]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type["Int8Attention"]:
        return Int8Attention

    @staticmethod
    def get_builder_cls() -> type["Int8MetadataBuilder"]:
        return Int8MetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return [vllm.MultipleOf(16)]

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size % 16 == 0 and head_size <= MAX_HEAD_SIZE

    @classmethod
    def supports_kv_connector(cls) -> bool:
        """Some cut pages up by heads, as vLLM lays them out."""
        return False

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        """Where prompts begin is read on the host."""
        return False

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[Any, ...]:
        """Those where a page of one layer is in one piece."""
        return (vllm.KVCacheLayout.LBHNC,)

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        """Room for two scales beside each token's and head's key and value."""
        if spec.state_content_bytes is not None:
            return spec
        return replace(spec, state_content_bytes=spec.head_size + spec.head_size_v + 2 * pages.SCALE_BYTES)


@dataclass
class Int8Metadata:
    """Of a step. Sequences with one new token come first, `decodes` of them; of the others, where their tokens begin among
    the step's, and how many they have in the cache afterwards, as plain numbers. positions: zeros, for each token."""

    num_actual_tokens: int
    decodes: int
    tables: Tensor
    lengths: Tensor
    slots: Tensor
    begins: list[int]
    prompt_lengths: list[int]
    positions: Tensor
    workspace: Workspace


class Int8MetadataBuilder(vllm.AttentionMetadataBuilder):
    # A graph holds steps of one token a sequence: prompts need numbers from the host.
    _cudagraph_support: ClassVar[Any] = vllm.AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._init_reorder_batch_threshold(1)
        scheduler = vllm_config.scheduler_config
        heads = vllm_config.model_config.get_num_attention_heads(vllm_config.parallel_config)
        like = torch.empty(1, heads, kv_cache_spec.head_size, device=device).expand(scheduler.max_num_seqs, -1, -1)
        # Before vLLM measures what is left for the cache. Layers use them one after the other, captured graphs too.
        self._workspace = largest_workspace(like, kv_cache_spec.num_kv_heads)
        self._positions = torch.zeros(
            max(scheduler.max_num_batched_tokens, scheduler.max_num_seqs), dtype=torch.int64, device=device
        )

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Int8Metadata:
        common = common_attn_metadata
        decodes, prompts, *_ = vllm.split_decodes_and_prefills(common, decode_threshold=1)
        return Int8Metadata(
            num_actual_tokens=common.num_actual_tokens,
            decodes=decodes,
            tables=common.block_table_tensor,
            lengths=common.seq_lens,
            slots=common.slot_mapping,
            begins=common.query_start_loc_cpu[decodes : decodes + prompts + 1].tolist() if prompts else [],
            # The host's own, where it has them, are exact for prompts, and wait for nothing.
            prompt_lengths=_on_host(common)[decodes : decodes + prompts].tolist() if prompts else [],
            positions=self._positions,
            workspace=self._workspace,
        )


def _on_host(common: Any) -> Tensor:
    known = common.seq_lens_cpu_upper_bound
    lengths: Tensor = common.seq_lens if known is None else known
    return lengths


class Int8Attention(vllm.AttentionImpl):
    """Of one layer."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = INT8_PER_TOKEN_HEAD,
        logits_soft_cap: float | None = None,
        attn_type: Any = None,
        kv_sharing_target_layer_name: str | None = None,
    ) -> None:
        refused = {"ALiBi": alibi_slopes, "sliding windows": sliding_window, "soft caps": logits_soft_cap}
        if told := " and ".join(name for name, given in refused.items() if given):
            raise NotImplementedError(f"our INT8 attention has no {told}; use another attention backend for this model")
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self._max_model_len = vllm.get_current_vllm_config().model_config.max_model_len
        self._no_rotation: Tensor | None = None
        # Views of vLLM's memory, for as long as vLLM has it: a step has many layers.
        self._cache: KVCache | None = None
        self._memory: weakref.ref[Tensor] | None = None

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Int8Metadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """query: [tokens, heads, head_dim]; key, value: [tokens, kv_heads, head_dim]; kv_cache: int8 [pages, kv_heads,
        page_tokens, 2 * (head_dim + 4)]; output: as query. Tokens beyond the step's are padding."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("our INT8 attention does not round its output")
        if attn_metadata is None:
            # vLLM measures the memory that a step needs; the longest prompt's keys and values are most of it.
            longest = self._max_model_len * self.num_kv_heads * self.head_size
            torch.empty(longest * _PROMPT_BYTES, dtype=torch.int8, device=output.device)
            return output.fill_(0)
        cache = self._over(kv_cache)
        tokens = attn_metadata.num_actual_tokens
        if self.kv_sharing_target_layer_name is None:
            self._write(key[:tokens], value[:tokens], attn_metadata, cache)
        heads = output.view(output.shape[0], self.num_heads, self.head_size)
        query = query.view(query.shape[0], self.num_heads, self.head_size)
        if decodes := attn_metadata.decodes:
            attention_kv_int8(
                query[:decodes],
                cache,
                attn_metadata.tables[:decodes],
                attn_metadata.lengths[:decodes],
                self.scale,
                out=heads[:decodes],
                workspace=attn_metadata.workspace,
            )
        for number, length in enumerate(attn_metadata.prompt_lengths):
            begin, end = attn_metadata.begins[number : number + 2]
            self._prompt(heads[begin:end], query[begin:end], cache, attn_metadata.tables[decodes + number], length)
        return output

    def _over(self, kv_cache: Tensor) -> KVCache:
        """Our cache in vLLM's memory."""
        if self._cache is None or self._memory is None or self._memory() is not kv_cache:
            count, kv_heads, page_tokens, _ = kv_cache.shape
            if not kv_cache[0].is_contiguous():
                raise NotImplementedError("our INT8 attention needs a KV cache whose pages are in one piece")
            memory = kv_cache.view(torch.int8).as_strided(
                (count, kv_cache[0].numel()), (kv_cache.stride(0), 1), kv_cache.storage_offset()
            )
            self._cache = KVCache.over(memory, kv_heads, page_tokens, self.head_size)
            self._memory = weakref.ref(kv_cache, self._forget)
        return self._cache

    def _forget(self, _: object) -> None:
        self._cache = None

    def _write(self, key: Tensor, value: Tensor, step: Int8Metadata, cache: KVCache) -> None:
        """Through the rotating kernel, with no query and an angle of zero: vLLM has rotated already."""
        if self._no_rotation is None:
            self._no_rotation = torch.tensor([[1.0, 0.0]], dtype=key.dtype, device=key.device)
        tokens = len(key)
        rope_kv_int8(key[:, :0], key, value, self._no_rotation, step.positions[:tokens], step.slots[:tokens], cache)

    def _prompt(self, out: Tensor, query: Tensor, cache: KVCache, table: Tensor, length: int) -> None:
        """out, query: [new, heads, head_dim], the last `new` of a sequence's `length` tokens, each over those up to itself."""
        used = table[: -(-length // cache.keys.shape[2])].long()
        keys, values = (
            _read(plane, scales, used, query.dtype)
            for plane, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales))
        )
        new, group = query.shape[0], self.num_heads // self.num_kv_heads
        # Heads that share a KV head are rows of one product, so that no key is copied for another head.
        shape = (new, self.num_kv_heads, group, self.head_size)
        rows, results = query.reshape(shape).permute(1, 0, 2, 3), out.view(shape).permute(1, 0, 2, 3)
        step = max(1, _PROMPT_ROWS // group)
        for begin in range(0, new, step):
            end = min(new, begin + step)
            seen = length - new + end
            last = torch.arange(seen - end + begin, seen, device=query.device).repeat_interleave(group)
            mask = torch.arange(seen, device=query.device)[None, :] <= last[:, None]
            with sdpa_kernel(_PROMPT_KERNELS):
                found = torch.nn.functional.scaled_dot_product_attention(
                    rows[:, begin:end].flatten(1, 2)[None],
                    keys[None, :, :seen],
                    values[None, :, :seen],
                    mask,
                    scale=self.scale,
                )
            results[:, begin:end] = found[0].unflatten(1, (end - begin, group))


def _read(plane: Tensor, scales: Tensor, used: Tensor, dtype: torch.dtype) -> Tensor:
    """[kv_heads, tokens of the pages, head_dim] of a sequence whose pages, in order, are `used`."""
    return (plane[used] * scales[used][..., None]).to(dtype).transpose(0, 1).flatten(1, 2)
