"""The two halves of an INT8 linear layer as ops of a compiled graph: rows, then the product.

Apart, so that a pass can join the rows to what stands before them (see int8_fusion). Both return what they make. On a GPU
the rows are vLLM's own; the product is ours or CUTLASS's by the number of tokens, which only a call knows, not the graph.
"""

import torch
from torch import Tensor

from burrstone.kernels import library
from burrstone.kernels.ops import gemm_w8a8_decode as ours
from burrstone.kernels.rows import int8_product as reference_product
from burrstone.kernels.rows import quantize_rows
from burrstone.kernels.select import select, tuned_rows
from burrstone.kernels.tall import MAX_TOKENS, Workspace
from burrstone.quant.engine import vllm_compat as vllm

_LIBRARY = torch.library.Library("burrstone", "FRAGMENT")
# Values that programs leave for one another, and counts of tiles: the most of any layer so far, which is known before a graph
# is captured.
_room = {"parts": 0, "arrivals": 0}
# By the stream that launches are on, for two at once must not share one. The last of a list is in use; those before it may be
# what a captured graph holds.
_workspaces: dict[tuple[torch.device, int], list[Workspace]] = {}


def wins_somewhere(arch: str) -> bool:
    """Whether any product was measured on this architecture to be faster with ours."""
    return any(row["arch"] == arch and row["wins"] for row in tuned_rows(ours.NAME))


def is_ours(arch: str, tokens: int, n: int, k: int, linear: str) -> bool:
    """Whether our kernel computes this product. linear: "off", "auto" for where the table says that it wins, or "on"."""
    if linear == "off" or not 0 < tokens <= MAX_TOKENS:
        return False
    return linear == "on" or select(ours.NAME, arch, tokens, n, k).wins is True


def prepare(device: torch.device, n: int, k: int) -> None:
    """Make room for all products of [tokens, k] and [n, k]."""
    for tokens in (16, 32, MAX_TOKENS):
        tile = select(ours.NAME, library.arch_of(device), tokens, n, k).tile
        parts, arrivals = Workspace.room(tile, tokens, n)
        _room["parts"] = max(_room["parts"], parts)
        _room["arrivals"] = max(_room["arrivals"], arrivals)


def _workspace(device: torch.device) -> Workspace:
    stream = torch.cuda.current_stream(device).stream_id if device.type == "cuda" else 0
    made = _workspaces.setdefault((device, stream), [])
    if not made or made[-1].parts.numel() < _room["parts"] or made[-1].arrivals.numel() < _room["arrivals"]:
        parts = torch.empty(_room["parts"], dtype=torch.int32, device=device)
        made.append(Workspace(parts, torch.zeros(_room["arrivals"], dtype=torch.int32, device=device)))
    return made[-1]


def _rows_on_gpu(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, scales, _ = vllm.scaled_int8_quant(x.contiguous())
    return rows, scales.flatten()


def _product_on_gpu(
    rows: Tensor,
    scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    linear: str,
) -> Tensor:
    tokens, k = rows.shape
    n = weight.shape[0]
    if is_ours(library.arch_of(rows.device), tokens, n, k, linear):
        return ours.gemm_w8a8_decode(
            rows, scales, weight, weight_scales, bias, dtype=dtype, workspace=_workspace(rows.device)
        )
    library.count(
        "int8_product", "CUTLASS", "many tokens" if tokens > MAX_TOKENS else "nothing measured says ours wins"
    )
    out: Tensor = vllm.cutlass_scaled_mm(
        rows, weight.t(), scale_a=scales[:, None], scale_b=weight_scales[:, None], out_dtype=dtype, bias=bias
    )
    return out


def _product_elsewhere(
    rows: Tensor,
    scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    linear: str,
) -> Tensor:
    library.count("int8_product", "reference", "not on a GPU")
    y = reference_product(rows, scales, weight, weight_scales)
    return (y if bias is None else y + bias.float()).to(dtype)


def _fake_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:1], dtype=torch.float32)


def _fake_product(
    rows: Tensor,
    scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    linear: str,
) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[0], dtype=dtype)


_LIBRARY.define("int8_rows(Tensor x) -> (Tensor, Tensor)")
_LIBRARY.impl("int8_rows", _rows_on_gpu, "CUDA")
_LIBRARY.impl("int8_rows", quantize_rows, "CPU")
torch.library.register_fake("burrstone::int8_rows", _fake_rows, lib=_LIBRARY)

_LIBRARY.define(
    "int8_product(Tensor rows, Tensor scales, Tensor weight, Tensor weight_scales, Tensor? bias, ScalarType dtype, "
    "str linear) -> Tensor"
)
_LIBRARY.impl("int8_product", _product_on_gpu, "CUDA")
_LIBRARY.impl("int8_product", _product_elsewhere, "CPU")
torch.library.register_fake("burrstone::int8_product", _fake_product, lib=_LIBRARY)

int8_rows = torch.ops.burrstone.int8_rows
int8_product = torch.ops.burrstone.int8_product
