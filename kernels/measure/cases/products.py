"""The products: K3, K4, K5 and K9."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from burrstone.kernels.builds import LLAMA_8B
from burrstone.kernels.measure.bars import assert_bfloat16, assert_relative, assert_rows
from burrstone.kernels.measure.cases.case import Arguments, Cost, Goal, Kernel, Make, Ratios, Shape
from burrstone.kernels.measure.peers import Absent, Peer, compiled, imported, in_turn, missing, quantized_rows, vllm_op
from burrstone.kernels.ops import gemm_w8a8_decode, gemm_w8a16, llm_int8

INT_MM = "torch._int_mm, scaled"
CUTLASS = "vLLM: cutlass_scaled_mm"
_BF16 = "torch, bfloat16 weights"
_MARLIN = "vLLM: marlin_gemm, 8 bits"
_BITSANDBYTES = "bitsandbytes Linear8bitLt"
_OUTLIERS = 16
# torch._int_mm takes no fewer rows on a GPU.
_INT_MM_ROWS = 32
# vLLM's id of unsigned 8 bits with a bias of 128: fields of 8 (exponent), 8 (mantissa), 1 (signed), 32 (bias), 1, 8 bits.
_UINT8_BIAS_128 = 8 << 8 | 128 << 17 | 1 << 50


def _shapes(*ms: int) -> tuple[Shape, ...]:
    """Attention's output and the MLP's input first: they are the least and the most."""
    order = [LLAMA_8B[1], LLAMA_8B[2], LLAMA_8B[0], LLAMA_8B[3]]
    return tuple({"m": m, "n": n, "k": k} for m in ms for n, k in order)


_AWKWARD = ({"m": 1, "n": 65, "k": 128}, {"m": 17, "n": 576, "k": 1536}, {"m": 63, "n": 130, "k": 400})
_TINY = ({"m": 3, "n": 64, "k": 128}, {"m": 17, "n": 40, "k": 96})


def _w8a8_inputs(make: Make, shape: Shape) -> Arguments:
    m, n, k = shape.values()
    return {
        "out": make.empty(m, n),
        "a": make.int8(m, k),
        "a_scales": make.uniform(m) + 0.01,
        "weight": make.int8(n, k),
        "weight_scales": make.uniform(n) / 127,
        "bias": None,
    }


def _decode_inputs(make: Make, shape: Shape) -> Arguments:
    workspace = gemm_w8a8_decode.workspace_for(make.device, *shape.values())
    return _w8a8_inputs(make, shape) | {"parts": workspace.parts, "arrivals": workspace.arrivals}


def _w8a8_value(given: Arguments) -> Tensor:
    y = given["a"].double() @ given["weight"].double().T
    return y.mul_(given["a_scales"].double()[:, None]).mul_(given["weight_scales"].double())


def _w8a8_check(given: Arguments, found: Arguments) -> None:
    assert_bfloat16(found["out"], _w8a8_value(given))


def _scaled(acc: Tensor, a_scales: Tensor, weight_scales: Tensor) -> Tensor:
    return (acc.float() * a_scales[:, None] * weight_scales[None, :]).to(torch.bfloat16)


def _int_mm(given: Arguments) -> Callable[[], Any]:
    a, weight, scales = given["a"], given["weight"].T, (given["a_scales"], given["weight_scales"])
    m = len(a)
    if m < _INT_MM_ROWS:
        a = torch.cat((a, a.new_zeros(_INT_MM_ROWS - m, a.shape[1])))
    scaled = compiled(_scaled, dynamic=True)
    return lambda: scaled(torch._int_mm(a, weight)[:m], *scales)


def _cutlass(given: Arguments) -> Callable[[], Any]:
    out = torch.empty_like(given["out"])
    scales = {"a_scales": given["a_scales"][:, None], "b_scales": given["weight_scales"][:, None]}
    return in_turn(
        (vllm_op("cutlass_scaled_mm", out=out, a=given["a"], b=given["weight"].T, bias=None, **scales),), out
    )


def _bf16_of(a: Tensor, weight: Tensor, weight_scales: Tensor) -> Callable[[], Any]:
    wide = (weight.float() * weight_scales[:, None]).to(torch.bfloat16)
    return lambda: torch.nn.functional.linear(a, wide)


def _bf16_of_rounded(given: Arguments) -> Callable[[], Any]:
    a = (given["a"].float() * given["a_scales"][:, None]).to(torch.bfloat16)
    return _bf16_of(a, given["weight"], given["weight_scales"])


def _product_cost(shape: Shape, a_bytes: int, unit: str) -> Cost:
    m, n, k = shape.values()
    return Cost(num_bytes=n * k + a_bytes * m * k + 2 * m * n + 4 * (m + n), operations=2 * m * n * k, unit=unit)


def _decode_goal(shape: Shape) -> Goal:
    n, k = shape["n"], shape["k"]
    narrow = (n, k) in (LLAMA_8B[0], LLAMA_8B[1])
    roof = {LLAMA_8B[1]: 0.75, LLAMA_8B[2]: 0.85}.get((n, k))
    return Goal({(CUTLASS,): 1.15 if narrow else 0.95}, roof=roof)


GEMM_W8A8_DECODE = Kernel(
    name="gemm_w8a8_decode",
    inputs=_decode_inputs,
    check=_w8a8_check,
    value=_w8a8_value,
    cost=lambda shape: _product_cost(shape, 1, "int8"),
    goal=_decode_goal,
    shapes=_shapes(1, 64, 16, 32, 8),
    awkward=_AWKWARD,
    tiny=_TINY,
    peers=(Peer(INT_MM, _int_mm), Peer(CUTLASS, _cutlass), Peer(_BF16, _bf16_of_rounded)),
    rival=CUTLASS,
)


def _prefill_goal(shape: Shape) -> Goal:
    bf16: Ratios = {(_BF16,): 1.5} if shape["m"] >= 2048 else {}
    return Goal({(CUTLASS, INT_MM): 0.9, **bf16})


GEMM_W8A8_PREFILL = Kernel(
    name="gemm_w8a8_prefill",
    inputs=_w8a8_inputs,
    check=_w8a8_check,
    value=_w8a8_value,
    cost=lambda shape: _product_cost(shape, 1, "int8"),
    goal=_prefill_goal,
    shapes=_shapes(2048, 8192, 512),
    awkward=({"m": 1, "n": 63, "k": 160}, {"m": 200, "n": 130, "k": 64}, {"m": 300, "n": 576, "k": 1536}),
    tiny=({"m": 33, "n": 40, "k": 96}, {"m": 70, "n": 64, "k": 128}),
    peers=(Peer(INT_MM, _int_mm), Peer(CUTLASS, _cutlass), Peer(_BF16, _bf16_of_rounded)),
)


def _w8a16_inputs(make: Make, shape: Shape) -> Arguments:
    m, n, k = shape.values()
    workspace = gemm_w8a16.workspace_for(make.device, m, n, k)
    return {
        "out": make.empty(m, n),
        "a": make.normal(m, k),
        "weight": make.int8(n, k),
        "weight_scales": make.uniform(n) / 127,
        "bias": None,
        "parts": workspace.parts,
        "arrivals": workspace.arrivals,
    }


def _w8a16_value(given: Arguments) -> Tensor:
    return (given["a"].double() @ given["weight"].double().T).mul_(given["weight_scales"].double())


def _marlin(given: Arguments) -> Callable[[], Any]:
    """Its own order of weights and scales; it is for float types, so scales are bfloat16."""
    a, weight = given["a"], given["weight"]
    (m, k), n = a.shape, len(weight)
    words = (weight.int() + 128).to(torch.uint8).contiguous().view(torch.int32).T.contiguous()
    none = torch.empty(0, dtype=torch.int32, device=a.device)
    repack = vllm_op("gptq_marlin_repack", b_q_weight=words, perm=none, size_k=k, size_n=n, num_bits=8)
    turns = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    scales = given["weight_scales"].to(a.dtype).reshape(-1, len(turns))[:, turns].reshape(1, n).contiguous()
    locks = torch.zeros(4 * torch.cuda.get_device_properties(a.device).multi_processor_count, dtype=torch.int32).to(
        a.device
    )
    return vllm_op(
        "marlin_gemm",
        a=a,
        c=torch.empty_like(given["out"]),
        b_q_weight=repack(),
        b_scales=scales,
        g_idx=none,
        perm=none,
        workspace=locks,
        b_q_type=_UINT8_BIAS_128,
        b_q_type_id=_UINT8_BIAS_128,
        b_type_id=_UINT8_BIAS_128,
        size_m=m,
        size_n=n,
        size_k=k,
        is_k_full=True,
        use_atomic_add=False,
        use_fp32_reduce=True,
        is_zp_float=False,
    )


GEMM_W8A16 = Kernel(
    name="gemm_w8a16",
    inputs=_w8a16_inputs,
    check=lambda given, found: assert_relative(found["out"], _w8a16_value(given), 4e-3),
    value=_w8a16_value,
    cost=lambda shape: _product_cost(shape, 2, "bf16"),
    goal=lambda _: Goal({(_MARLIN,): 0.9, (_BF16,): 1.6}, roof=0.75),
    shapes=_shapes(1, 16, 4),
    awkward=_AWKWARD,
    tiny=_TINY,
    peers=(
        Peer(_BF16, lambda given: _bf16_of(given["a"], given["weight"], given["weight_scales"])),
        Peer(_MARLIN, _marlin),
        missing("gemlite", "its sources are not carried"),
    ),
    rival=_MARLIN,
)


def _llm_inputs(make: Make, shape: Shape) -> Arguments:
    m, n, k = shape.values()
    outliers = make.order(k)[:_OUTLIERS].sort().values.to(torch.int32)
    x, weight = make.normal(m, k), make.int8(n, k)
    x[:, outliers.long()] *= 60
    weight[:, outliers.long()] = 0
    workspace = llm_int8.workspace_for(make.device, m, n, k)
    return {
        "out": make.empty(m, n),
        "rounded": make.empty(m, k, dtype=torch.int8),
        "scales": make.empty(m, dtype=torch.float32),
        "x": x,
        "weight": weight,
        "weight_scales": make.uniform(n) / 127,
        "outliers": outliers,
        "is_outlier": llm_int8.outlier_mask(outliers, k),
        "outlier_weight": make.normal(n, _OUTLIERS),
        "bias": None,
        "parts": workspace.parts,
        "arrivals": workspace.arrivals,
    }


def _llm_product(given: Arguments, kept: Tensor) -> Tensor:
    """kept: x without its outliers, rounded or not, float64."""
    y = (kept @ given["weight"].double().T).mul_(given["weight_scales"].double())
    return y + given["x"][:, given["outliers"].long()].double() @ given["outlier_weight"].double().T


def _llm_kept(given: Arguments) -> Tensor:
    return torch.where(given["is_outlier"].bool(), 0.0, given["x"].double())


def _llm_check(given: Arguments, found: Arguments) -> None:
    assert_rows(found["rounded"], found["scales"], _llm_kept(given))
    kept = found["rounded"].double() * found["scales"].double()[:, None]
    assert_relative(found["out"], _llm_product(given, kept), 4e-3)


def _llm_torch(given: Arguments) -> Callable[[], Any]:
    """Two products and what is between them."""
    x, keeps, weight = given["x"], ~given["is_outlier"].bool(), given["weight"].T
    outliers, outlier_weight = given["outliers"].long(), given["outlier_weight"].T
    m = len(x)

    def call() -> Tensor:
        rounded, scales = quantized_rows(torch.where(keeps, x, 0.0).float())
        if m < _INT_MM_ROWS:
            rounded = torch.nn.functional.pad(rounded, (0, 0, 0, _INT_MM_ROWS - m))
        y = _scaled(torch._int_mm(rounded, weight)[:m], scales[:, 0], given["weight_scales"])
        return torch.addmm(y, x[:, outliers], outlier_weight)

    return call


def _bitsandbytes(given: Arguments) -> Callable[[], Any]:
    """It rounds the weights itself, outlier columns with the others, and finds outliers in each call."""
    bnb = imported("bitsandbytes")
    wide = given["weight"].float() * given["weight_scales"][:, None]
    wide[:, given["outliers"].long()] = given["outlier_weight"].float()
    n, k = wide.shape
    layer = bnb.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=20.0)
    layer.weight = bnb.nn.Int8Params(wide.to("cpu", torch.float16), requires_grad=False, has_fp16_weights=False)
    layer = layer.to(wide.device)
    x = given["x"].half()

    def call() -> Tensor:
        with torch.no_grad():
            result: Tensor = layer(x)
        return result

    try:
        call()
    except Exception as error:
        raise Absent(f"{type(error).__name__}: {error}"[:200]) from error
    return call


LLM_INT8 = Kernel(
    name="llm_int8",
    inputs=_llm_inputs,
    check=_llm_check,
    value=lambda given: _llm_product(given, _llm_kept(given)),
    cost=lambda shape: _product_cost(shape, 2, "int8"),
    goal=lambda _: Goal({(_BITSANDBYTES,): 2.0}),
    shapes=_shapes(1, 64, 16),
    awkward=_AWKWARD,
    tiny=_TINY,
    peers=(Peer(_BITSANDBYTES, _bitsandbytes, graph=False), Peer("torch, two products", _llm_torch)),
    rival=_BITSANDBYTES,
)
