"""A pass over vLLM's compiled graph: INT8 rows are made in the launch of the norm or the activation that stands before them.

    int8_rows(rms_norm(x))                       -> rms_norm_int8
    int8_rows(fused_add_rms_norm(x, residual))   -> rms_norm_int8, the sum beside
    int8_rows(silu(gate) * up)                   -> silu_mul_int8

Only where nobody else reads what the norm or the activation gives. Without compilation (enforce_eager) there is no graph
to rewrite, and all stays as it was.
"""

import logging
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.auto_functionalize import auto_functionalized
from torch._inductor import pattern_matcher

# Registers the ops that the replacements call.
from burrstone.kernels.ops import rms_norm_int8, silu_mul_int8  # noqa: F401
from burrstone.quant.engine import int8_ops
from burrstone.quant.engine import vllm_compat as vllm

_log = logging.getLogger(__name__)
# Inductor's name for what runs over a graph after everything else; vLLM appends what it finds there to its own passes.
HOOK = "post_grad_custom_post_pass"
# The epsilon that patterns are traced with: any one that no model has, for a wildcard stands in its place.
_ANY_EPS = 0.123456789


class FuseInt8Rows(vllm.InductorPass):
    """Found by vLLM under HOOK; made new in each process, for its patterns hold functions."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.joined = 0

    @classmethod
    def join(cls, vllm_config: Any) -> None:
        """Make it a pass of the engine whose model is being built."""
        settings = vllm_config.compilation_config.inductor_compile_config
        if isinstance(settings.get(HOOK), cls):
            return
        if HOOK in settings:
            _log.warning("int8_fusion is off: the compilation config has a %s of its own", HOOK)
            return
        settings[HOOK] = cls(vllm.current_platform.device_type)

    def __call__(self, graph: fx.Graph) -> None:
        found = _patterns(self.device).apply(graph)
        self.joined += found
        _log.info("int8_fusion: %d INT8 rows joined with what stands before them", found)
        graph.lint()

    def uuid(self) -> str:
        source: str = self.hash_source(type(self), _patterns)
        return source


def _patterns(device: str) -> pattern_matcher.PatternMatcherPass:
    """Traced on each use: a graph or two are compiled in a process's life."""
    found = pattern_matcher.PatternMatcherPass(pass_name="int8_fusion")
    ir = torch.ops.vllm_ir

    def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        rows, scales = int8_ops.int8_rows(ir.rms_norm.default(x, weight, eps))
        return rows, scales

    def joined_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        outputs = _outputs(x, x.shape[1]) | {"total": None}
        done = auto_functionalized(
            torch.ops.burrstone.rms_norm_int8.default, **outputs, x=x, weight=weight, eps=eps, residual=None
        )
        return done[1], done[2]

    def add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        y, total = ir.fused_add_rms_norm.default(x, residual, weight, eps)
        rows, scales = int8_ops.int8_rows(y)
        return rows, scales, total

    def joined_add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        outputs = _outputs(x, x.shape[1]) | {"total": torch.empty(x.shape, dtype=x.dtype, device=x.device)}
        done = auto_functionalized(
            torch.ops.burrstone.rms_norm_int8.default, **outputs, x=x, weight=weight, eps=eps, residual=residual
        )
        return done[1], done[2], done[3]

    def silu(x: Tensor) -> tuple[Tensor, Tensor]:
        half = x.shape[1] // 2
        rows, scales = int8_ops.int8_rows(torch.nn.functional.silu(x[..., :half]) * x[..., half:])
        return rows, scales

    def joined_silu(x: Tensor) -> tuple[Tensor, Tensor]:
        done = auto_functionalized(torch.ops.burrstone.silu_mul_int8.default, **_outputs(x, x.shape[1] // 2), x=x)
        return done[1], done[2]

    for dtype in (torch.bfloat16, torch.float16):
        x, weight = torch.empty(5, 16, dtype=dtype, device=device), torch.empty(16, dtype=dtype, device=device)
        eps = {"eps": _ANY_EPS}
        for before, after, inputs, scalars in (
            (norm, joined_norm, [x, weight], eps),
            (add_norm, joined_add_norm, [x, x.clone(), weight], eps),
            (silu, joined_silu, [x], {}),
        ):
            pattern_matcher.register_replacement(
                before,
                after,
                inputs,
                pattern_matcher.fwd_only,
                found,
                extra_check=_has_its_tensors,
                scalar_workaround=scalars,
                skip_duplicates=True,
            )
    return found


def _has_its_tensors(match: pattern_matcher.Match) -> bool:
    """A norm without a weight looks the same, with nothing where the weight would be."""
    return all(isinstance(value, fx.Node) for name, value in match.kwargs.items() if name != "eps")


def _outputs(x: Tensor, n: int) -> dict[str, Tensor]:
    return {
        "out": torch.empty(x.shape[0], n, dtype=torch.int8, device=x.device),
        "scales": torch.empty(x.shape[0], dtype=torch.float32, device=x.device),
    }
