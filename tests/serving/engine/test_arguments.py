"""Our configuration as vLLM's arguments."""

import json
from pathlib import Path
from typing import Any

import pytest

from burrstone.serving.config import ConfigError, ServeConfig
from burrstone.serving.engine.arguments import engine_arguments, serving_arguments
from burrstone.serving.engine.models import ResolvedModel


@pytest.fixture
def model(tmp_path: Path) -> ResolvedModel:
    model_config = {"model_type": "qwen3"}
    (tmp_path / "config.json").write_text(json.dumps(model_config))
    return ResolvedModel(str(tmp_path), ("tiny", "default"), model_config)


def config(engine: dict[str, Any] | None = None, **sections: Any) -> ServeConfig:
    return ServeConfig.model_validate({"engine": engine or {}, **sections})


def test_every_key_arrives(model: ResolvedModel) -> None:
    keys = {
        "dtype": "float32",
        "seed": 7,
        "max_model_len": 512,
        "max_num_seqs": 3,
        "max_num_batched_tokens": 256,
        "tensor_parallel_size": 2,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": False,
        "kv_cache_dtype": "fp8",
        "quantization": "compressed-tensors",
        "enforce_eager": True,
        "reasoning_parser": "qwen3",
    }
    arguments = engine_arguments(config(keys, limits={"max_logprobs": 5}), model, kv_cache_bytes=1024)
    assert {key: getattr(arguments, key) for key in keys} == keys
    assert (arguments.model, arguments.served_model_name) == (model.path, ["tiny", "default"])
    assert (arguments.max_logprobs, arguments.kv_cache_memory_bytes) == (5, 1024)


def test_what_is_not_set_is_left_to_vllm(model: ResolvedModel) -> None:
    arguments = engine_arguments(config(), model, kv_cache_bytes=None)
    for key in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "quantization", "kv_cache_memory_bytes"):
        assert getattr(arguments, key) is None
    assert arguments.enable_prefix_caching is True and arguments.trust_remote_code is False
    assert arguments.enable_lora is False and arguments.speculative_config is None


def test_names_of_the_configuration_win(model: ResolvedModel) -> None:
    arguments = engine_arguments(config(served_names=["ours"]), model, kv_cache_bytes=None)
    assert arguments.served_model_name == ["ours"]


@pytest.mark.parametrize(
    ("speculative", "expected"),
    [
        (
            {"method": "ngram", "num_tokens": 3},
            {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2},
        ),
        (
            {"method": "draft_model", "model": "/draft"},
            {"method": "draft_model", "num_speculative_tokens": 4, "model": "/draft"},
        ),
        ({"method": "suffix"}, {"method": "suffix", "num_speculative_tokens": 4}),
    ],
)
def test_speculation(model: ResolvedModel, speculative: dict[str, Any], expected: dict[str, Any]) -> None:
    arguments = engine_arguments(config({"speculative": speculative}), model, kv_cache_bytes=None)
    assert arguments.speculative_config == expected


@pytest.mark.parametrize(("num_modules", "max_loras"), [(1, 1), (3, 2)])
def test_adapters(model: ResolvedModel, num_modules: int, max_loras: int) -> None:
    modules = [{"name": f"a{number}", "path": f"~/a{number}"} for number in range(num_modules)]
    wanted = config({"lora": {"modules": modules, "max_rank": 64, "max_active": 2}})
    arguments = engine_arguments(wanted, model, kv_cache_bytes=None)
    assert (arguments.enable_lora, arguments.max_lora_rank, arguments.max_loras) == (True, 64, max_loras)
    front = serving_arguments(wanted, model, arguments)
    assert [module.name for module in front.lora_modules] == [f"a{number}" for number in range(num_modules)]
    assert front.lora_modules[0].path == str(Path.home() / "a0")


def test_other_arguments_of_vllm_are_passed_on(model: ResolvedModel) -> None:
    arguments = engine_arguments(config({"vllm_args": {"block_size": 64}}, profile="cpu"), model, kv_cache_bytes=None)
    assert arguments.block_size == 64


@pytest.mark.parametrize(("profile", "block_tokens"), [("cpu", 32), ("cuda", None)])
def test_blocks_are_small_on_the_cpu(model: ResolvedModel, profile: str, block_tokens: int | None) -> None:
    arguments = engine_arguments(config(profile=profile), model, kv_cache_bytes=None)
    assert arguments.block_size == block_tokens


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("trust_remote_code", "is not allowed: code from a model repository is never run"),
        ("enable_prompt_embeds", "is not allowed: embeddings"),
        ("enable_log_requests", "is not allowed: use observability.log_request_text"),
        ("allowed_local_media_path", "is not allowed: local files"),
        ("kv_cache_dtype", "is not allowed: set engine.kv_cache_dtype"),
        ("model", "is not allowed: set model"),
        ("tensor_parallel_size", "is not allowed: set engine.tensor_parallel_size"),
        ("speculative_config", "is not allowed: set engine.speculative"),
        ("blok_size", "vLLM has no such engine argument; did you mean 'block_size'?"),
        ("zzzzzzzz", "vLLM has no such engine argument"),
    ],
)
def test_arguments_that_are_refused(model: ResolvedModel, key: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        engine_arguments(config({"vllm_args": {key: "int8"}}), model, kv_cache_bytes=None)
    assert str(refused.value).startswith(f"engine.vllm_args.{key}")
    assert message in str(refused.value)


@pytest.mark.parametrize(("wanted", "parser"), [("auto", "hermes"), ("mistral", "mistral"), (None, None)])
def test_the_tool_parser(model: ResolvedModel, wanted: str | None, parser: str | None) -> None:
    wish = config({"tool_call_parser": wanted})
    front = serving_arguments(wish, model, engine_arguments(wish, model, kv_cache_bytes=None))
    assert (front.tool_call_parser, front.enable_auto_tool_choice) == (parser, parser is not None)
    assert front.enable_prompt_tokens_details is True


@pytest.mark.parametrize("wanted", [True, False])
def test_request_text_is_logged_only_when_asked_for(model: ResolvedModel, wanted: bool) -> None:
    wish = config({"chat_template": "/t.jinja"}, observability={"log_request_text": wanted})
    front = serving_arguments(wish, model, engine_arguments(wish, model, kv_cache_bytes=None))
    assert (front.enable_log_requests, front.chat_template) == (wanted, "/t.jinja")
