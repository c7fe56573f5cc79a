"""Smoothing moves factors about and changes nothing that a layer computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.smoothing import STRENGTHS, InputStats, _best_strength, _loss, smooth
from burrstone.quant.streamed import StreamedModel
from burrstone.quant.structure import Fold, Unit, find_units

TOKENS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(5))


def stats_of(x: Tensor) -> InputStats:
    return InputStats(x.abs().amax(dim=0), x.clone(), x.T @ x / len(x))


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_a_layer_computes_the_same_after_every_fold(kind: str, strength: float, tmp_path: Path) -> None:
    model = StreamedModel(Checkpoint(tiny_model(tmp_path / kind, kind)))
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
            assert smooth(layer, unit, stats, strength, "absmax", torch.bfloat16) == strength
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
    best = _best_strength(weights, stats_of(x), source, "absmax")

    def loss(strength: float) -> float:
        factors = x.abs().amax(dim=0) ** strength / weights[0].abs().amax(dim=0) ** (1 - strength)
        return _loss([weights[0] * factors], x / factors, exact, "absmax")

    assert loss(best) == min(loss(strength) for strength in STRENGTHS)
    assert loss(best) < 0.5 * _loss(weights, x, exact, "absmax")


def test_what_smoothing_would_hurt_stays() -> None:
    # Integers up to 127 in both: rounding to nearest loses nothing at all.
    x = torch.randint(-126, 127, (32, 8)).float()
    x[:, 0], weight = 127.0, torch.randint(-126, 127, (4, 8)).float()
    weight[:, 0] = 127.0
    assert _best_strength([weight], stats_of(x), torch.arange(8), "absmax") == 0.0


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
    smooth(layer, unit, stats_of(read), 0.5, "absmax", torch.float32)
    assert layer["norm"].weight[0].item() == before
    assert all(bool(torch.isfinite(parameter).all()) for parameter in layer.parameters())


def test_a_unit_that_nothing_feeds_stays() -> None:
    layer, unit = pair([1.0, 2.0])
    stats: Any = None
    assert smooth(layer, Unit(unit.linears, None), stats, 0.5, "absmax", torch.float32) == 0.0
