"""The INT8 KV cache: values and scales in planes of their own, so that every load is of sixteen aligned bytes.

keys, values: int8 [pages, kv_heads, page_tokens, head_dim]; their scales: float32 [pages, kv_heads, page_tokens], one for each
token and head. A token's slot is page * page_tokens + its place in the page; -1 is nowhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from burrstone.kernels.rows import quantize_rows


@dataclass(frozen=True, slots=True)
class KVCache:
    """Of one layer."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor
    value_scales: Tensor

    @classmethod
    def empty(cls, pages: int, kv_heads: int, page_tokens: int, head_dim: int, device: torch.device) -> "KVCache":
        shape = (pages, kv_heads, page_tokens)

        def plane() -> Tensor:
            return torch.zeros(*shape, head_dim, dtype=torch.int8, device=device)

        def scales() -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        return cls(plane(), plane(), scales(), scales())

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.key_scales, self.value_scales


def write(plane: Tensor, scales: Tensor, x: Tensor, slots: Tensor) -> None:
    """The reference. x: [tokens, kv_heads, head_dim] into a plane of the cache; slots: [tokens]."""
    page_tokens = plane.shape[2]
    kept = slots >= 0
    pages, places = slots[kept] // page_tokens, slots[kept] % page_tokens
    plane[pages, :, places], scales[pages, :, places] = quantize_rows(x[kept])


def read(plane: Tensor, scales: Tensor, pages: Tensor, tokens: int) -> Tensor:
    """The reference. float32 [tokens, kv_heads, head_dim] of a sequence whose pages, in order, are `pages`."""
    rows = plane[pages].float() * scales[pages][..., None]
    return rows.transpose(1, 2).flatten(0, 1)[:tokens]
