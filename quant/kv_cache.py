"""What an INT8 KV cache does to keys and values: one scale for each token and head, found as the token is written.

vLLM calls it `int8_per_token_head`; nothing is calibrated and nothing is stored with the checkpoint.
"""

from typing import Any

from torch import Tensor

from burrstone.quant.rounding import round_tokens

INT8_PER_TOKEN_HEAD = "int8_per_token_head"


class RoundingCache:
    """Stands in for a transformers cache in a pass over whole sequences: keeps nothing, rounds what attention will read."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """keys, values: [rows, heads, length, head_dim]."""
        return round_tokens(keys).to(keys.dtype), round_tokens(values).to(values.dtype)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0
