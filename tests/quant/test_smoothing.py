"""Smoothing moves factors about and changes nothing that a layer computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import plant_outliers, tiny_model
from torch import Tensor, nn

from burrstone.quant import layer_job
from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.errors import QuantizeError
from burrstone.quant.layer_job import LayerResult, quantize_layer
from burrstone.quant.recipe import Recipe
from burrstone.quant.rounding import round_tokens, round_trip, weight_scale
from burrstone.quant.smoothing import (
    STRENGTHS,
    InputStats,
    Rounding,
    _best_strength,
    _factors,
    _loss,
    fold_holds,
    smooth,
)
from burrstone.quant.streamed import StreamedModel
from burrstone.quant.structure import Fold, Unit, find_units

W8A8 = Rounding(round_tokens, lambda weight: round_trip(weight, weight_scale(weight)))
W8A16 = Rounding(torch.nn.Identity(), W8A8.weight)
PER_TENSOR = Rounding(round_tokens, lambda weight: round_trip(weight, weight_scale(weight, "absmax", "per-tensor")))
TOKENS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(5))


def stats_of(x: Tensor) -> InputStats:
    return InputStats(x.abs().amax(dim=0), x.clone(), x.T @ x / len(x))


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {}) for kind in ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gemma")),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 1}),
    ],
    ids=str,
)
def test_a_layer_computes_the_same_after_every_fold(
    kind: str, changes: dict[str, Any], strength: float, tmp_path: Path
) -> None:
    model = StreamedModel(Checkpoint(tiny_model(tmp_path / kind, kind, **changes)))
    batch = model.embed(TOKENS)
    with model.layer(0) as layer, torch.inference_mode():
        before = model.apply(layer, 0, batch)
        units = find_units(layer, lambda: model.apply(layer, 0, batch))
        assert all(unit.fold is not None for unit in units) and len(units) == 4
        for unit in reversed(units):
            seen: list[Tensor] = []
            handle = layer.get_submodule(unit.name).register_forward_pre_hook(
                lambda _, arguments, seen=seen: seen.append(arguments[0].flatten(0, 1))
            )
            model.apply(layer, 0, batch)
            stats = stats_of(seen[0])
            assert smooth(layer, unit, stats, strength, W8A8, torch.bfloat16) == strength
            model.apply(layer, 0, batch)
            handle.remove()
            # The statistics went along.
            torch.testing.assert_close(stats.sample, seen[1], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(stats.absmax, seen[1].abs().amax(dim=0), rtol=1e-3, atol=1e-4)
            expected = seen[1].T @ seen[1] / len(seen[1])
            torch.testing.assert_close(stats.hessian, expected, rtol=1e-2, atol=1e-3)
            assert not torch.allclose(seen[0], seen[1])
        torch.testing.assert_close(model.apply(layer, 0, batch), before, rtol=1e-4, atol=1e-4)
        gains = [
            part.weight for name, part in layer.named_modules() if name in {u.fold.producer for u in units if u.fold}
        ]
        assert any(torch.equal(gain, gain.bfloat16().float()) for gain in gains if gain.dim() == 1)


def pair(gain: list[float]) -> tuple[nn.Module, Unit]:
    layer = nn.ModuleDict({"norm": nn.RMSNorm(len(gain)), "reader": nn.Linear(len(gain), 6, bias=False)})
    layer["norm"].weight.data = torch.tensor(gain)
    return layer, Unit(("reader",), Fold("norm", torch.arange(len(gain))))


def test_the_search_loses_no_more_than_any_strength_or_none() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 32) * torch.logspace(-1, 2, 32)
    weights, source = [torch.randn(16, 32)], torch.arange(32)
    exact = [x @ weights[0].T]
    best = _best_strength(weights, stats_of(x), source, W8A8)

    def loss(strength: float) -> float:
        factors = x.abs().amax(dim=0) ** strength / weights[0].abs().amax(dim=0) ** (1 - strength)
        return _loss([weights[0] * factors], x / factors, exact, W8A8)

    assert loss(best) == min(loss(strength) for strength in STRENGTHS)
    assert loss(best) < 0.5 * _loss(weights, x, exact, W8A8)


def test_what_smoothing_would_hurt_stays() -> None:
    # Integers up to 127 in both: rounding to nearest loses nothing at all.
    x = torch.randint(-126, 127, (32, 8)).float()
    x[:, 0], weight = 127.0, torch.randint(-126, 127, (4, 8)).float()
    weight[:, 0] = 127.0
    assert _best_strength([weight], stats_of(x), torch.arange(8), W8A8) == 0.0


@pytest.mark.parametrize("dead", ["input", "weight", "gain"])
def test_channels_that_carry_nothing_stay(dead: str) -> None:
    layer, unit = pair([0.0 if dead == "gain" else 1.5, 2.0, 3.0])
    x = torch.rand(5, 3) + 1
    if dead == "weight":
        layer["reader"].weight.data[:, 0] = 0.0
    read = layer["norm"](x).detach()
    if dead == "input":
        read[:, 0] = 0.0
    before = layer["norm"].weight[0].item()
    smooth(layer, unit, stats_of(read), 0.5, W8A8, torch.float32)
    assert layer["norm"].weight[0].item() == before
    assert all(bool(torch.isfinite(parameter).all()) for parameter in layer.parameters())


def test_a_unit_that_nothing_feeds_stays() -> None:
    layer, unit = pair([1.0, 2.0])
    stats: Any = None
    assert smooth(layer, Unit(unit.linears, None), stats, 0.5, W8A8, torch.float32) == 0.0


def lost(weights: list[Tensor], tokens: Tensor, exact: list[Tensor]) -> float:
    """What INT8 weights and activations lose of the products, by plain arithmetic in float64."""

    def rounded(rows: Tensor) -> Tensor:
        step = (rows.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-10)
        return (rows / step).round().double() * step.double()

    products = [rounded(tokens) @ rounded(weight).T for weight in weights]
    return sum(float((product - want.double()).square().sum()) for product, want in zip(products, exact, strict=True))


class Scaled(nn.Module):
    """A norm's gain alone, with an offset as Gemma's, and two readers."""

    def __init__(self, channels: int, seed: int, offset: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = GainNorm(torch.exp(torch.randn(channels) * torch.rand(1) * 3) - offset, offset)
        self.a, self.b = nn.Linear(channels, 16, bias=False), nn.Linear(channels, 3, bias=False)
        self.tokens = torch.randn(40, channels)
        self.requires_grad_(False)

    def forward(self) -> tuple[Tensor, Tensor]:
        x = self.norm(self.tokens)
        return self.a(x), self.b(x)

    def smoothed(self, strength: float | None, dtype: torch.dtype) -> tuple[float, float, float]:
        """The strength, and what share INT8 loses without and with it."""
        self.norm.weight.copy_(self.norm.weight.to(dtype).float())
        unit = find_units(self, self)[0]
        assert unit.linears == ("a", "b") and unit.fold is not None
        x, exact = self.norm(self.tokens), list(self())
        readers, stats = [self.a.weight, self.b.weight], stats_of(x)
        size = sum(float(product.double().square().sum()) for product in exact)
        before = lost(readers, x, exact) / size
        chosen = smooth(self, unit, stats, strength, W8A8, dtype)
        for got, want in zip(self(), exact, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        return chosen, before, lost(readers, stats.sample, exact) / size


class GainNorm(nn.Module):
    def __init__(self, gain: Tensor, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(gain), offset

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight + self.offset)


@settings(deadline=None, max_examples=40)
@given(channels=st.sampled_from((1, 2, 31, 64, 129)), offset=st.sampled_from((0.0, 1.0)), seed=st.integers(0, 10_000))
def test_smoothing_never_loses_more_than_leaving_it(channels: int, offset: float, seed: int) -> None:
    strength, before, after = Scaled(channels, seed, offset).smoothed(None, torch.float32)
    assert strength in (0.0, *STRENGTHS)
    # With a single channel, nothing is lost but float32's rounding.
    assert after <= before * (1 + 1e-3) + 1e-12


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_nor_where_gains_are_stored_in_16_bits(offset: float) -> None:
    for seed in range(400):
        _, before, after = Scaled(32, seed, offset).smoothed(None, torch.bfloat16)
        assert after <= before * (1 + 1e-3)


def test_a_gain_stays_a_number_in_16_bits() -> None:
    layer = Scaled(8, 0)
    layer.norm.weight.fill_(1.0)
    layer.tokens[:, 0] = 1e-7
    assert layer.smoothed(1.0, torch.float16)[0] == 1.0


@pytest.mark.parametrize("strength", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_factors_are_the_papers_and_shared_by_channels_of_one_row(strength: float, group: int) -> None:
    """Row r of the producer is read by channels r, r + 6, ...: so many query heads, each of six channels."""
    torch.manual_seed(group)
    layer = nn.ModuleDict(
        {"v": nn.Linear(5, 6), "a": nn.Linear(6 * group, 3), "b": nn.Linear(6 * group, 2, bias=False)}
    )
    unit = Unit(("a", "b"), Fold("v", torch.arange(6).repeat(group)))
    x = torch.randn(9, 6 * group)
    stats = stats_of(x)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    assert smooth(layer, unit, stats, strength, W8A8, torch.bfloat16) == strength
    readers = torch.cat([before["a.weight"], before["b.weight"]])
    for row in range(6):
        mine = [row + 6 * copy for copy in range(group)]
        largest_x, largest_w = float(x[:, mine].abs().max()), float(readers[:, mine].abs().max())
        factor = largest_x**strength / largest_w ** (1 - strength)
        for name, parameter in layer.named_parameters():
            if name in ("v.weight", "v.bias"):
                torch.testing.assert_close(parameter[row], before[name][row] / factor)
            elif name != "a.bias":
                torch.testing.assert_close(parameter[:, mine], before[name][:, mine] * factor)
        torch.testing.assert_close(stats.sample[:, mine], x[:, mine] / factor)
        if strength == 0.5 and group == 1:
            # Half of the difficulty each.
            balanced = max(float(layer[name].weight.detach()[:, row].abs().max()) for name in "ab")
            assert float(stats.absmax[row]) == pytest.approx(balanced, rel=1e-4)
    assert torch.equal(layer["a"].bias, before["a.bias"])


def quantized(folder: Path, **recipe: Any) -> LayerResult:
    model = StreamedModel(Checkpoint(folder))
    with model.layer(0) as layer:
        return quantize_layer(model, layer, 0, [model.embed(TOKENS)], Recipe(**recipe))


def test_it_takes_outliers_out_of_activations(tmp_path: Path) -> None:
    plant_outliers(tiny_model(tmp_path))
    plain, smoothed = (quantized(tmp_path, method=method).units for method in ("rtn", "smoothquant"))
    for without, with_it in zip(plain, smoothed, strict=True):
        assert without.strength == 0.0 and with_it.strength in STRENGTHS
        assert with_it.loss <= without.loss
    for unit in (0, 2):  # those whose norms have the outliers
        assert smoothed[unit].loss < 0.2 * plain[unit].loss


def test_the_strength_is_searched_for_what_the_format_rounds() -> None:
    """What is best for one format is not for another."""
    torch.manual_seed(1)
    x, weight = torch.randn(64, 32), torch.randn(16, 32) * torch.where(torch.arange(32) < 2, 100.0, 1.0)
    source, exact = torch.arange(32), [x @ weight.T]
    found = {}
    for rounding in (W8A8, W8A16, PER_TENSOR):
        found[rounding] = _best_strength([weight], stats_of(x), source, rounding)
        losses = {0.0: _loss([weight], x, exact, rounding)}
        for strength in STRENGTHS:
            factors = _factors([weight], x.abs().amax(dim=0), source, strength)
            losses[strength] = _loss([weight * factors], x / factors, exact, rounding)
        assert found[rounding] == min(losses, key=losses.__getitem__)
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("recipe", [{}, {"schemes": "w8a16-int8"}, {"granularity": "per-tensor"}], ids=str)
def test_a_layer_is_smoothed_by_what_its_own_format_rounds(recipe: dict[str, Any], tmp_path: Path) -> None:
    """A given strength never loses less than the one that is found, in the unit that is smoothed first."""
    plant_outliers(tiny_model(tmp_path))
    found = quantized(tmp_path, method="smoothquant", **recipe).units[-1]
    for strength in STRENGTHS:
        given = quantized(tmp_path, method="smoothquant", strength=strength, **recipe).units[-1]
        assert given.strength == strength and found.loss <= given.loss * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_what_a_later_fold_changes_is_smoothed_after_it(kind: str, tmp_path: Path) -> None:
    """At strength 0.5 input and weights share the difficulty, channel by channel, when all is done."""
    model = StreamedModel(Checkpoint(tiny_model(tmp_path, kind)))
    batch, seen = model.embed(TOKENS), list[Tensor]()
    with model.layer(0) as layer:
        result = quantize_layer(model, layer, 0, [batch], Recipe(method="smoothquant", strength=0.5))
        query, *others = result.units[0].modules
        layer.get_submodule(query).register_forward_pre_hook(
            lambda _, arguments: seen.append(arguments[0].flatten(0, 1).abs().amax(dim=0))
        )
        model.apply(layer, 0, batch)
    assert len(others) == 2
    weights = torch.cat([result.unrounded[f"{name}.weight"].float() for name in (query, *others)])
    torch.testing.assert_close(seen[0], weights.abs().amax(dim=0), rtol=2e-2, atol=0)


@pytest.mark.parametrize(
    ("kind", "smoothed"),
    [("llama", 4), ("arcee", 3), ("nemotron", 3), ("diffllama", 3)],
)
def test_a_fold_that_changes_the_layer_is_left_out(kind: str, smoothed: int, tmp_path: Path) -> None:
    # What stands between up_proj and down_proj squares, or a norm between v_proj and o_proj: both look like folds.
    units = quantized(tiny_model(tmp_path, kind), method="smoothquant", strength=0.5).units
    assert len(units) == 4 and [unit.strength for unit in units].count(0.5) == smoothed


def test_a_layer_that_comes_out_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold may hold on the few tokens that it is tried on; the calibration's have the last word."""
    monkeypatch.setattr(layer_job, "fold_holds", lambda *_: True)
    tiny_model(tmp_path, "arcee")
    with pytest.raises(QuantizeError, match="this architecture cannot be smoothed"):
        quantized(tmp_path, method="smoothquant")
    assert len(quantized(tmp_path, method="gptq").units) == 4


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "arcee"])
def test_trying_a_fold_leaves_the_layer_as_it_was(kind: str, tmp_path: Path) -> None:
    model = StreamedModel(Checkpoint(tiny_model(tmp_path, kind)))
    batch = model.embed(TOKENS)
    with model.layer(0) as layer, torch.inference_mode():
        before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        units = find_units(layer, lambda: model.apply(layer, 0, batch))
        holds = [fold_holds(layer, unit, lambda: model.apply(layer, 0, batch)) for unit in units]
        assert holds == [True, True, True, kind != "arcee"]
        assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
        assert not fold_holds(layer, Unit(units[0].linears, None), lambda: model.apply(layer, 0, batch))
