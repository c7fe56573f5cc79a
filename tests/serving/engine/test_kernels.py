"""engine.kernels: what becomes of it in vLLM's arguments, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from burrstone.serving.config import ConfigError, ServeConfig
from burrstone.serving.engine.kernels import KEY, check_kernels, kernel_arguments, kernel_environment


def config(kernels: dict[str, Any], *, profile: str = "cuda", **engine: Any) -> ServeConfig:
    return ServeConfig.model_validate({"profile": profile, "engine": {"kernels": kernels, **engine}})


def test_nothing_is_said_on_a_cpu() -> None:
    assert kernel_arguments(config({}, profile="cpu"), "auto") == {} == kernel_environment(config({}))
    check_kernels(config({"int8_linear": "auto"}), "cpu")


def test_switches_reach_the_engine_beside_what_is_there() -> None:
    asked = config({"int8_linear": "on", "int8_fusion": True}, vllm_args={"additional_config": {"other": 1}})
    assert kernel_arguments(asked, "auto") == {
        "additional_config": {KEY: {"int8_linear": "on", "int8_fusion": True}, "other": 1}
    }


def test_attention_is_a_backend_by_name() -> None:
    arguments = kernel_arguments(config({"int8_attention": True}), "int8_per_token_head")
    assert arguments["attention_backend"] == "CUSTOM"


def test_attention_over_another_cache_is_refused() -> None:
    told = r"engine.kernels.int8_attention reads an INT8 KV cache, and this one is '(auto|fp8)'"
    with pytest.raises(ConfigError, match=told):
        kernel_arguments(config({"int8_attention": True}), "auto")
    with pytest.raises(ConfigError, match=told):
        check_kernels(config({"int8_attention": True}, kv_cache_dtype="fp8"), "cuda")


@pytest.mark.parametrize("value", [[1], {KEY: {}}])
def test_an_additional_config_that_cannot_be_added_to_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"engine.vllm_args.additional_config"):
        kernel_arguments(config({}, vllm_args={"additional_config": value}), "auto")


@pytest.mark.parametrize(
    "kernels", [{"int8_linear": "on"}, {"int8_fusion": True}, {"int8_attention": True}, {"lora_configs": "/tmp"}]
)
def test_gpu_kernels_are_refused_elsewhere(kernels: dict[str, Any]) -> None:
    (name,) = kernels
    with pytest.raises(ConfigError, match=rf"engine.kernels.{name} is for NVIDIA GPUs, and the profile is cpu"):
        check_kernels(config(kernels), "cpu")


def test_fusion_without_compilation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine.enforce_eager compiles none"):
        check_kernels(config({"int8_fusion": True}, enforce_eager=True), "cuda")


def test_attention_and_speculation_are_refused_together() -> None:
    with pytest.raises(ConfigError, match=r"engine\.speculative checks several"):
        check_kernels(config({"int8_attention": True}, speculative={"method": "ngram", "num_tokens": 3}), "cuda")


def test_lora_configurations_are_a_folder_of_vllms_names(tmp_path: Path) -> None:
    asked = config({"lora_configs": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"is named GPU_SHRINK.json"):
        check_kernels(asked, "cuda")
    (tmp_path / "NVIDIA_H100_80GB_HBM3_SHRINK.json").write_text("{}")
    check_kernels(asked, "cuda")
    assert kernel_environment(asked) == {"VLLM_TUNED_CONFIG_FOLDER": str(tmp_path.resolve())}


def test_the_documented_configuration_is_one() -> None:
    text = (Path(__file__).parents[3] / "docs" / "kernels.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    documented = ServeConfig.model_validate(yaml.safe_load(block))
    check_kernels(documented, "cuda")
    assert kernel_arguments(documented, documented.engine.kv_cache_dtype)["attention_backend"] == "CUSTOM"


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ('"on"', "on")])
def test_on_and_off_as_yaml_reads_them(written: str, meant: str) -> None:
    assert config(yaml.safe_load(f"int8_linear: {written}")).engine.kernels.int8_linear == meant
