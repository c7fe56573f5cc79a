"""The INT8 KV cache: each page holds its keys, its values, and the scales of both, one plane after the other.

keys, values: int8 [pages, kv_heads, page_tokens, head_dim]; their scales: float32 [pages, kv_heads, page_tokens], one for each
token and head. Planes keep every load at sixteen aligned bytes, which scales between the values would not; a page in one
piece can be copied, moved or cleared by whoever knows pages and not what is in them. A token's slot is
page * page_tokens + its place in the page; -1 is nowhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from burrstone.kernels.rows import quantize_rows

SCALE_BYTES = 4


def page_bytes(kv_heads: int, page_tokens: int, head_dim: int) -> int:
    return 2 * kv_heads * page_tokens * (head_dim + SCALE_BYTES)


@dataclass(frozen=True, slots=True)
class KVCache:
    """Of one layer."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor
    value_scales: Tensor

    @classmethod
    def over(cls, memory: Tensor, kv_heads: int, page_tokens: int, head_dim: int) -> "KVCache":
        """Views of `memory`: int8 [pages, at least page_bytes], a page's bytes side by side.

        Raises ValueError where a page does not begin at a multiple of 16 bytes, or its scales at one of 4.
        """
        rows = kv_heads * page_tokens
        if memory.data_ptr() % 16 or memory.stride(0) % 16 or rows * head_dim % 16:
            raise ValueError(
                f"pages of {kv_heads} KV heads, {page_tokens} tokens, {head_dim} values, {memory.stride(0)} bytes apart, are "
                "not aligned to 16 bytes"
            )
        sizes = (rows * head_dim, rows * head_dim, rows * SCALE_BYTES, rows * SCALE_BYTES)
        planes = memory[:, : sum(sizes)].split(sizes, dim=1)
        keys, values = (plane.unflatten(1, (kv_heads, page_tokens, head_dim)) for plane in planes[:2])
        scales = (plane.view(torch.float32).unflatten(1, (kv_heads, page_tokens)) for plane in planes[2:])
        return cls(keys, values, *scales)

    @classmethod
    def empty(cls, pages: int, kv_heads: int, page_tokens: int, head_dim: int, device: torch.device) -> "KVCache":
        size = -(-page_bytes(kv_heads, page_tokens, head_dim) // 16) * 16
        memory = torch.zeros(pages, size, dtype=torch.int8, device=device)
        return cls.over(memory, kv_heads, page_tokens, head_dim)

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


def unlike_pages(keys: Tensor, values: Tensor, key_scales: Tensor, value_scales: Tensor) -> str | None:
    """Why the kernels do not take these planes: they know one distance between pages, and one between pages of scales."""
    for plane in (keys, values, key_scales, value_scales):
        if plane.numel() and not plane[0].is_contiguous():
            return "a page's plane is not in one piece"
    alike = keys.stride(0) == values.stride(0) and key_scales.stride(0) == value_scales.stride(0)
    return None if alike else "pages of the cache's planes are not equally far apart"
