"""A recipe is checked once, when it is made: what is refused says what there is."""

import dataclasses
import itertools
import json
import math
from typing import Any

import pytest

from burrstone.quant.errors import QuantizeError
from burrstone.quant.formats import KV_INT8, SCHEMES
from burrstone.quant.recipe import METHODS, Recipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"schemes": "w4a16"},
            "scheme 'w4a16' is not known; there are w8a8-int8, w8a16-int8, bnb-int8, neuron-int8, kv",
        ),
        ({"schemes": ""}, "scheme '' is not known"),
        ({"schemes": "w8a8-int8+"}, "scheme '' is not known"),
        ({"schemes": "W8A8-INT8"}, "scheme 'W8A8-INT8' is not known"),
        ({"schemes": "w8a8-int8 + kv-int8"}, "scheme 'w8a8-int8 ' is not known"),
        ({"schemes": "w8a8-int8+w8a16-int8"}, r"at most one scheme for weights, and `\+kv-int8` beside it"),
        ({"schemes": "w8a8-int8+w8a8-int8"}, "at most one scheme for weights"),
        ({"schemes": "kv-int8+kv-int8"}, "at most one scheme for weights"),
        ({"method": "awq"}, r"method 'awq' is not known; there are rtn, smoothquant, gptq, smoothquant\+gptq"),
        ({"method": "gptq+smoothquant"}, "method 'gptq.smoothquant' is not known"),
        ({"observer": "minmax"}, "observer is one of absmax, percentile, mse, got 'minmax'"),
        ({"granularity": "per-group"}, "granularity is one of per-channel, per-tensor, got 'per-group'"),
        ({"granularity": "per-tensor", "schemes": "w8a16-int8"}, "w8a16-int8 is per channel; engines read it no other"),
        ({"granularity": "per-tensor", "schemes": "bnb-int8"}, "bnb-int8 is per channel"),
        ({"strength": -0.1}, "smoothing strength lies between 0 and 1, got -0.1"),
        ({"strength": 1.1}, "smoothing strength lies between 0 and 1, got 1.1"),
        ({"strength": math.nan}, "smoothing strength lies between 0 and 1, got nan"),
        ({"strength": math.inf}, "smoothing strength lies between 0 and 1"),
        ({"dampening": 0.0}, "dampening lies above 0 and at most at 1, got 0.0"),
        ({"dampening": 1.01}, "dampening lies above 0"),
        ({"dampening": math.nan}, "dampening lies above 0"),
    ],
)
def test_what_is_not_known_or_out_of_range_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizeError, match=message):
        Recipe(**given)


def test_every_scheme_goes_with_every_method_and_with_the_kv_cache() -> None:
    for (name, scheme), method in itertools.product(SCHEMES.items(), METHODS):
        for schemes in (name, f"{name}+{KV_INT8}", f"{KV_INT8}+{name}"):
            recipe = Recipe(schemes=schemes, method=method)
            assert recipe.scheme is scheme
            assert recipe.kv_int8 == (KV_INT8 in schemes)
            assert recipe.smooths == ("smoothquant" in method)
            assert recipe.compensates == ("gptq" in method)
            assert recipe.needs_data == (method != "rtn")


def test_the_kv_cache_alone_has_no_weights_and_needs_no_data() -> None:
    recipe = Recipe(schemes=KV_INT8)
    assert (recipe.scheme, recipe.kv_int8, recipe.needs_data) == (None, True, False)


def test_the_bounds_themselves_are_allowed() -> None:
    Recipe(strength=0.0), Recipe(strength=1.0), Recipe(dampening=1.0), Recipe(dampening=1e-9)
    Recipe(granularity="per-tensor"), Recipe(granularity="per-tensor", schemes="neuron-int8")


@pytest.mark.parametrize(
    ("pattern", "module", "kept"),
    [
        ("*.down_proj", "model.layers.11.mlp.down_proj", True),
        ("*.down_proj", "model.layers.11.mlp.DOWN_PROJ", False),
        ("model.layers.0.*", "model.layers.0.mlp.up_proj", True),
        ("model.layers.0.*", "model.layers.01.mlp.up_proj", False),
        ("*.layers.1.*", "model.layers.11.mlp.up_proj", False),
        ("*.layers.[12].*", "model.layers.2.mlp.up_proj", True),
        ("down_proj", "model.layers.0.mlp.down_proj", False),
    ],
)
def test_patterns_are_of_whole_names(pattern: str, module: str, kept: bool) -> None:
    assert Recipe(keep=("nothing", pattern)).keeps(module) == kept
    assert not Recipe().keeps(module)


def test_it_cannot_be_changed_and_is_written_whole() -> None:
    recipe = Recipe(keep=("a", "b"), strength=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.method = "rtn"  # type: ignore[misc]
    assert set(recipe.as_json()) == {field.name for field in dataclasses.fields(Recipe)}
    read = json.loads(json.dumps(recipe.as_json()))
    assert Recipe(**read | {"keep": tuple(read["keep"])}) == recipe


@pytest.mark.parametrize(
    "given",
    [
        {"method": "rtn", "strength": 0.5},
        {"method": "gptq", "strength": 0.5},
        {"method": "smoothquant", "dampening": 0.5},
        {"schemes": KV_INT8, "keep": ("*.down_proj",)},
        {"schemes": KV_INT8, "quantize_lm_head": True},
        {"schemes": KV_INT8, "observer": "mse"},
        {"quantize_lm_head": True, "keep": ("lm_head",)},
    ],
    ids=str,
)
def test_a_setting_without_effect_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(QuantizeError):
        Recipe(**given)
