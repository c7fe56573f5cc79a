"""An attention backend over our INT8 KV cache: --kv-cache-dtype int8_per_token_head, --attention-backend CUSTOM.

A page of vLLM's cache is as large as one of ours (see kernels.kv_cache), and holds it: keys, values, and their scales in planes.
One new token a sequence, which is what decoding does, is our kernel's. Prompts are computed by PyTorch over the same rounded
keys and values, sequence by sequence, so that an answer does not depend on how its prompt was cut into chunks.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from burrstone.kernels import kv_cache as pages
from burrstone.kernels.kv_cache import KVCache
from burrstone.kernels.ops.attention_kv_int8 import attention_kv_int8, workspace_for
from burrstone.kernels.ops.rope_kv_int8 import rope_kv_int8
from burrstone.kernels.tall import Workspace
from burrstone.quant.engine import vllm_compat as vllm
from burrstone.quant.kv_cache import INT8_PER_TOKEN_HEAD


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
        return head_size % 16 == 0

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
    the step's, and how many they have in the cache afterwards, as plain numbers."""

    num_actual_tokens: int
    decodes: int
    tables: Tensor
    lengths: Tensor
    slots: Tensor
    begins: list[int]
    prompt_lengths: list[int]


class Int8MetadataBuilder(vllm.AttentionMetadataBuilder):
    # A graph holds steps of one token a sequence: prompts need numbers from the host.
    _cudagraph_support: ClassVar[Any] = vllm.AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._init_reorder_batch_threshold(1)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Int8Metadata:
        common = common_attn_metadata
        decodes, prompts, *_ = vllm.split_decodes_and_prefills(common, decode_threshold=1)
        lengths = common.seq_lens[decodes : decodes + prompts].tolist() if prompts else []
        return Int8Metadata(
            num_actual_tokens=common.num_actual_tokens,
            decodes=decodes,
            tables=common.block_table_tensor,
            lengths=common.seq_lens,
            slots=common.slot_mapping,
            begins=common.query_start_loc_cpu[decodes : decodes + prompts + 1].tolist() if prompts else [],
            prompt_lengths=lengths,
        )


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
        self._cache: KVCache | None = None
        self._memory: Tensor | None = None

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
            # vLLM measures the memory that a step needs.
            return output.fill_(0)
        cache = self._over(kv_cache)
        tokens = attn_metadata.num_actual_tokens
        if self.kv_sharing_target_layer_name is None:
            _write(key[:tokens], value[:tokens], attn_metadata.slots[:tokens], cache)
        heads = output.view(output.shape[0], self.num_heads, self.head_size)
        query = query.view(query.shape[0], self.num_heads, self.head_size)
        if decodes := attn_metadata.decodes:
            tables = attn_metadata.tables[:decodes]
            attention_kv_int8(
                query[:decodes],
                cache,
                tables,
                attn_metadata.lengths[:decodes],
                self.scale,
                out=heads[:decodes],
                workspace=_workspace(query[:decodes], cache.keys, tables),
            )
        for number, length in enumerate(attn_metadata.prompt_lengths):
            begin, end = attn_metadata.begins[number : number + 2]
            heads[begin:end] = self._prompt(query[begin:end], cache, attn_metadata.tables[decodes + number], length)
        return output

    def _over(self, kv_cache: Tensor) -> KVCache:
        """Our cache in vLLM's memory; made once for each memory, for a step has many layers."""
        if self._cache is None or self._memory is not kv_cache:
            count, kv_heads, page_tokens, _ = kv_cache.shape
            if not kv_cache[0].is_contiguous():
                raise NotImplementedError("our INT8 attention needs a KV cache whose pages are in one piece")
            memory = kv_cache.view(torch.int8).as_strided(
                (count, kv_cache[0].numel()), (kv_cache.stride(0), 1), kv_cache.storage_offset()
            )
            self._cache = KVCache.over(memory, kv_heads, page_tokens, self.head_size)
            self._memory = kv_cache
        return self._cache

    def _prompt(self, query: Tensor, cache: KVCache, table: Tensor, length: int) -> Tensor:
        """[new, heads, head_dim]: the last `new` of a sequence's `length` tokens, each over those up to itself."""
        new = query.shape[0]
        used = table[: -(-length // cache.keys.shape[2])].long()
        keys, values = (
            pages.read(plane, scales, used, length).to(query.dtype).transpose(0, 1)[None]
            for plane, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales))
        )
        # Without a past PyTorch's own causal mask will do, which its fast kernels take.
        past = length - new
        mask = torch.ones(new, length, dtype=torch.bool, device=query.device).tril(past) if past else None
        found = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(0, 1)[None], keys, values, mask, is_causal=not past, scale=self.scale, enable_gqa=True
        )
        return found[0].transpose(0, 1)


# Shapes of a launch -> the kernel's workspace: a captured graph holds its own, made in the steps before the capture. Layers
# use it one after the other.
_workspaces: dict[tuple[torch.device, torch.Size, int, int], Workspace] = {}
_no_rotation: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _workspace(query: Tensor, keys: Tensor, tables: Tensor) -> Workspace:
    key = (query.device, query.shape, keys.shape[1], tables.shape[1])
    if key not in _workspaces:
        _workspaces[key] = workspace_for(query, keys, tables)
    return _workspaces[key]


def _write(key: Tensor, value: Tensor, slots: Tensor, cache: KVCache) -> None:
    """Through the rotating kernel, with no query and an angle of zero: vLLM has rotated already."""
    place = (key.device, key.dtype)
    if place not in _no_rotation:
        _no_rotation[place] = torch.tensor([[1.0, 0.0]], dtype=key.dtype, device=key.device)
    positions = torch.zeros_like(slots)
    rope_kv_int8(key[:, :0], key, value, _no_rotation[place], positions, slots, cache)
