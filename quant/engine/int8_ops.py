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
# A launch's place for parts, kept between launches, so that a graph's replay finds it. vLLM runs a model's layers on one
# stream, one after the other.
_workspaces: dict[torch.device, Workspace] = {}


def wins_somewhere(arch: str) -> bool:
    """Whether any product was measured on this architecture to be faster with ours."""
    return any(row["arch"] == arch and row["wins"] for row in tuned_rows(ours.NAME))


def is_ours(arch: str, tokens: int, n: int, k: int, *, always: bool) -> bool:
    """Whether our kernel computes this product; always: not only where the table says that it wins."""
    return 0 < tokens <= MAX_TOKENS and (always or select(ours.NAME, arch, tokens, n, k).wins is True)


def prepare(device: torch.device, n: int, k: int) -> None:
    """Make room for all products of [tokens, k] and [n, k], before a graph is captured."""
    needed = [ours.workspace_for(device, tokens, n, k) for tokens in (16, 32, MAX_TOKENS)]
    if device in _workspaces:
        needed.append(_workspaces[device])
    _workspaces[device] = Workspace(
        max((one.parts for one in needed), key=Tensor.numel), max((one.arrivals for one in needed), key=Tensor.numel)
    )


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
    always: bool,
) -> Tensor:
    tokens, k = rows.shape
    n = weight.shape[0]
    if is_ours(library.arch_of(rows.device), tokens, n, k, always=always):
        return ours.gemm_w8a8_decode(
            rows, scales, weight, weight_scales, bias, dtype=dtype, workspace=_workspaces[rows.device]
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
    always: bool,
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
    always: bool,
) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[0], dtype=dtype)


_LIBRARY.define("int8_rows(Tensor x) -> (Tensor, Tensor)")
_LIBRARY.impl("int8_rows", _rows_on_gpu, "CUDA")
_LIBRARY.impl("int8_rows", quantize_rows, "CPU")
torch.library.register_fake("burrstone::int8_rows", _fake_rows, lib=_LIBRARY)

_LIBRARY.define(
    "int8_product(Tensor rows, Tensor scales, Tensor weight, Tensor weight_scales, Tensor? bias, ScalarType dtype, "
    "bool always) -> Tensor"
)
_LIBRARY.impl("int8_product", _product_on_gpu, "CUDA")
_LIBRARY.impl("int8_product", _product_elsewhere, "CPU")
torch.library.register_fake("burrstone::int8_product", _fake_product, lib=_LIBRARY)

int8_rows = torch.ops.burrstone.int8_rows
int8_product = torch.ops.burrstone.int8_product
