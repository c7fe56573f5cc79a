"""What hangs together in a decoder layer, and what may be folded where: proven by folding powers of two, which are exact."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.streamed import StreamedModel
from burrstone.quant.structure import Fold, Unit, find_units, gain_offset, is_norm

ATTENTION, VALUES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.v_proj"
LLAMA = [
    (ATTENTION, "input_layernorm"),
    (("self_attn.o_proj",), VALUES),
    (("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
    (("mlp.down_proj",), "mlp.up_proj"),
]
GEMMA3 = [*LLAMA[:2], (("mlp.gate_proj", "mlp.up_proj"), "pre_feedforward_layernorm"), LLAMA[3]]
# Nothing scales what attention and MLP read.
OLMO2 = [(ATTENTION, None), LLAMA[1], (("mlp.gate_proj", "mlp.up_proj"), None), LLAMA[3]]
# Attention and MLP read the same norm.
COHERE = [((*ATTENTION, "mlp.gate_proj", "mlp.up_proj"), "input_layernorm"), LLAMA[1], LLAMA[3]]
PHI3 = [
    (("self_attn.qkv_proj",), "input_layernorm"),
    (("self_attn.o_proj",), None),
    (("mlp.gate_up_proj",), "post_attention_layernorm"),
    (("mlp.down_proj",), None),
]
FOLDED = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gemma", "cohere")


@contextmanager
def layer_of(
    folder: Path, model_type: str, **changes: Any
) -> Iterator[tuple[nn.Module, list[Unit], Callable[[], Tensor]]]:
    """A layer, its units, and how to run it on some tokens."""
    model = StreamedModel(Checkpoint(tiny_model(folder, model_type, **changes)))
    batch = model.embed(torch.arange(24).reshape(2, 12))
    with torch.no_grad(), model.layer(1) as layer:

        def run() -> Tensor:
            return model.apply(layer, 1, batch)

        yield layer, find_units(layer, run), run


@pytest.mark.parametrize(
    ("model_type", "wanted"),
    [
        *((model_type, LLAMA) for model_type in ("llama", "qwen2", "qwen3", "mistral", "gemma")),
        ("gemma3_text", GEMMA3),
        ("olmo2", OLMO2),
        ("cohere", COHERE),
        ("phi3", PHI3),
    ],
)
def test_units_and_their_producers(
    tmp_path: Path, model_type: str, wanted: list[tuple[tuple[str, ...], str | None]]
) -> None:
    with layer_of(tmp_path, model_type) as (layer, units, _):
        # Of units that are reached, in the order in which they are.
        assert [(unit.linears, unit.fold.producer if unit.fold else None) for unit in units] == wanted
        assert [unit.name for unit in units] == [linears[0] for linears, _ in wanted]
        linears = {name for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
        assert linears == {name for unit in units for name in unit.linears}


@pytest.mark.parametrize(("heads", "value_heads"), [(4, 4), (4, 2), (4, 1), (6, 3), (6, 2), (1, 1)])
def test_query_heads_read_the_value_head_of_their_group(tmp_path: Path, heads: int, value_heads: int) -> None:
    sizes = {"hidden_size": 96, "num_attention_heads": heads, "num_key_value_heads": value_heads, "head_dim": 8}
    with layer_of(tmp_path, "llama", **sizes) as (layer, units, run):
        fold = units[1].fold
        assert fold is not None
        group = heads // value_heads
        wanted = [(head // group) * 8 + channel for head in range(heads) for channel in range(8)]
        assert fold.source.tolist() == wanted
        assert_exact(layer, units[1], fold, run)


@pytest.mark.parametrize("model_type", FOLDED)
@pytest.mark.parametrize("bias", [False, True])
def test_folds_change_no_bit_of_what_a_layer_computes(tmp_path: Path, model_type: str, bias: bool) -> None:
    changes = {"attention_bias": bias, "mlp_bias": bias} if model_type in ("llama", "qwen3", "gemma3_text") else {}
    with layer_of(tmp_path, model_type, **changes) as (layer, units, run):
        folded = [(unit, unit.fold) for unit in units if unit.fold is not None]
        assert len(folded) >= 3
        for unit, fold in folded:
            assert_exact(layer, unit, fold, run)


def assert_exact(layer: nn.Module, unit: Unit, fold: Fold, run: Callable[[], Tensor]) -> None:
    """Fold a power of two for each of the producer's rows."""
    before = run()
    producer = layer.get_submodule(fold.producer)
    gain = producer.weight
    rows = len(gain)
    assert int(fold.source.min()) >= 0 and sorted(set(fold.source.tolist())) == list(range(rows))
    factors = 2.0 ** torch.randint(-3, 4, (rows,), generator=torch.Generator().manual_seed(5))
    bias = getattr(producer, "bias", None)
    if isinstance(producer, nn.Linear):
        gain.div_(factors[:, None])
    else:
        offset = gain_offset(producer)
        gain.copy_((gain + offset) / factors - offset)
    if bias is not None:
        bias.div_(factors)
    for name in unit.linears:
        layer.get_submodule(name).weight.mul_(factors[fold.source])
    # Where one is added to the gain, the division rounds.
    slack = 1e-5 if is_norm(producer) and gain_offset(producer) else 0.0
    torch.testing.assert_close(run(), before, rtol=0.0, atol=slack * float(before.abs().max()))


class Gated(nn.Module):
    """y = o_proj(...) of parts that can be left out; `mlp` and `attention` are named as in a decoder."""

    def __init__(self, up: int, down: int, head_dim: object) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(8)
        self.up_proj, self.down_proj = nn.Linear(8, up), nn.Linear(down, 8)
        self.v_proj, self.o_proj = nn.Linear(8, up), nn.Linear(down, 8)
        self.head_dim = head_dim
        self.down = down


class Decoder(nn.Module):
    def __init__(self, up: int, down: int, head_dim: object) -> None:
        super().__init__()
        self.block = Gated(up, down, head_dim)

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        same, copy = block.norm(x), block.norm(x) * 2.0
        up, values = block.up_proj(same), block.v_proj(copy)
        wide = torch.zeros(*x.shape[:-1], block.down)
        answer: Tensor = block.down_proj(wide + up.sum()) + block.o_proj(wide + values.sum())
        return answer


def folds_of(up: int, down: int, head_dim: object) -> dict[str, str | None]:
    decoder = Decoder(up, down, head_dim)
    units = find_units(decoder, lambda: decoder(torch.randn(2, 3, 8)))
    return {unit.name: unit.fold.producer if unit.fold else None for unit in units}


def test_only_a_norms_very_output_can_be_folded_into_it() -> None:
    folds = folds_of(6, 6, 3)
    assert folds["block.up_proj"] == "block.norm"
    assert folds["block.v_proj"] is None


@pytest.mark.parametrize(
    ("up", "down", "head_dim", "from_up", "from_values"),
    [
        (6, 6, 3, True, True),
        (6, 12, 3, False, True),  # two query heads a value head
        (6, 15, 3, False, False),  # two and a half
        (6, 6, 4, True, False),  # a head and a half
        (6, 6, None, True, False),
        (6, 6, "3", True, False),
    ],
)
def test_sizes_that_do_not_fit_are_not_folded(
    up: int, down: int, head_dim: object, from_up: bool, from_values: bool
) -> None:
    folds = folds_of(up, down, head_dim)
    assert folds["block.down_proj"] == ("block.up_proj" if from_up else None)
    assert folds["block.o_proj"] == ("block.v_proj" if from_values else None)


def test_equal_inputs_are_not_the_same_input() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.c(x.clone()) + self.a(x) + self.b(x)
            return answer

    twins = Twins()
    units = find_units(twins, lambda: twins(torch.randn(2, 4)))
    assert [unit.linears for unit in units] == [("c",), ("a", "b")]


def test_no_hook_outlives_the_search() -> None:
    decoder = Decoder(6, 6, 3)

    def fail() -> None:
        decoder(torch.randn(1, 8))
        raise RuntimeError("in the middle of it")

    with pytest.raises(RuntimeError, match="in the middle"):
        find_units(decoder, fail)
    find_units(decoder, lambda: decoder(torch.randn(1, 8)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in decoder.modules())


class OneMoreNorm(nn.RMSNorm):
    """As Gemma's."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape, 1.0 + self.weight)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize(
    ("kind", "offset"), [(nn.RMSNorm, 0.0), (nn.LayerNorm, 0.0), (OneMoreNorm, 1.0)], ids=["rms", "layer", "gemma"]
)
def test_gains_offset_is_found_by_trying_and_leaves_no_trace(kind: Any, offset: float, size: int) -> None:
    norm = kind(size)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(size) * 3)
        kept = {name: parameter.clone() for name, parameter in norm.named_parameters()}
        assert gain_offset(norm) == offset
    assert all(torch.equal(parameter, kept[name]) for name, parameter in norm.named_parameters())


@pytest.mark.parametrize(("model_type", "offset"), [("llama", 0.0), ("qwen3", 0.0), ("gemma3_text", 1.0)])
def test_gains_offset_of_transformers_norms(tmp_path: Path, model_type: str, offset: float) -> None:
    with layer_of(tmp_path, model_type) as (layer, _, _):
        norms = [module for module in layer.modules() if is_norm(module)]
        assert len(norms) >= 2
        assert {gain_offset(norm) for norm in norms} == {offset}


def test_what_counts_as_a_norm() -> None:
    assert is_norm(nn.LayerNorm(4)) and is_norm(nn.RMSNorm(4)) and is_norm(OneMoreNorm(4))
    assert not is_norm(nn.LayerNorm(4, elementwise_affine=False))
    assert not is_norm(nn.LayerNorm((2, 4)))
    assert not is_norm(nn.Linear(4, 4))
