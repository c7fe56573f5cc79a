"""The KV cache's type: the configuration's, else the checkpoint's, and refused where it would be computed wrongly."""

import json
import typing
from typing import Any

import pytest

from burrstone.serving.config import ConfigError, ServeConfig
from burrstone.serving.engine import kv_cache
from burrstone.serving.engine.arguments import engine_arguments
from burrstone.serving.engine.kv_cache import kv_cache_dtype
from burrstone.serving.engine.models import ResolvedModel

INT8 = {"burrstone": {"kv_cache_dtype": "int8_per_token_head", "scheme": "kv-int8"}}


def config(profile: str, dtype: str = "auto") -> ServeConfig:
    return ServeConfig.model_validate({"profile": profile, "engine": {"kv_cache_dtype": dtype}})


@pytest.mark.parametrize("profile", ["cpu", "cuda"])
@pytest.mark.parametrize("model_config", [{}, {"burrstone": {}}, {"burrstone": {"scheme": "w8a8"}}])
def test_a_checkpoint_that_asks_for_nothing_gets_vllms_own(profile: str, model_config: dict[str, Any]) -> None:
    assert kv_cache_dtype(config(profile), model_config) == "auto"


def test_a_gpu_gets_what_the_checkpoint_asks_for() -> None:
    assert kv_cache_dtype(config("cuda"), INT8) == "int8_per_token_head"


def test_the_cpu_refuses_it_and_says_what_to_set() -> None:
    with pytest.raises(ConfigError) as refused:
        kv_cache_dtype(config("cpu"), INT8)
    for part in ("engine.kv_cache_dtype", "'int8_per_token_head'", "wrong output", "--engine.kv-cache-dtype", "a GPU"):
        assert part in str(refused.value)


@pytest.mark.parametrize("profile", ["cpu", "cuda"])
@pytest.mark.parametrize("model_config", [INT8, {"burrstone": {"kv_cache_dtype": "int3"}}, {"burrstone": 8}])
def test_an_explicit_type_wins(profile: str, model_config: dict[str, Any]) -> None:
    assert kv_cache_dtype(config(profile, "fp8"), model_config) == "fp8"


@pytest.mark.parametrize("profile", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "asked", ["int3", "INT8_PER_TOKEN_HEAD", "auto", "fp8", "", 8, None, ["int8_per_token_head"], {}]
)
def test_what_is_not_known_is_refused(profile: str, asked: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        kv_cache_dtype(config(profile), {"burrstone": {"kv_cache_dtype": asked}})
    for part in (f"burrstone.kv_cache_dtype {asked!r}", "int8_per_token_head", "engine.kv_cache_dtype"):
        assert part in str(refused.value)


@pytest.mark.parametrize("ours", ["int8", 8, None, ["kv_cache_dtype"]])
def test_what_is_no_object_is_refused(ours: Any) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: burrstone must hold an object, not "):
        kv_cache_dtype(config("cuda"), {"burrstone": ours})


def test_it_arrives_at_vllm(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(INT8 | {"model_type": "qwen3"}))
    model = ResolvedModel(str(tmp_path), ("tiny",), INT8)
    arguments = [engine_arguments(config("cuda", dtype), model, kv_cache_bytes=None) for dtype in ("auto", "fp8")]
    assert [each.kv_cache_dtype for each in arguments] == ["int8_per_token_head", "fp8"]
    with pytest.raises(ConfigError, match="wrong output"):
        engine_arguments(config("cpu"), model, kv_cache_bytes=None)


def test_the_types_are_vllms() -> None:
    from vllm.config.cache import CacheDType

    assert {*kv_cache._KNOWN, "bfloat16", "fp8"} <= set(typing.get_args(CacheDType))


def test_the_quantizer_writes_what_is_known() -> None:
    from burrstone.quant.formats import OUR_KEY
    from burrstone.quant.kv_cache import INT8_PER_TOKEN_HEAD

    assert (OUR_KEY, (INT8_PER_TOKEN_HEAD,)) == (kv_cache._OURS, kv_cache._KNOWN)
