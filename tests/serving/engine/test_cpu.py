"""The CPU profile: cores, memory and environment of the engine's processes."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.serving.config import ConfigError, ServeConfig
from burrstone.serving.engine import cpu
from burrstone.serving.engine.cpu import (
    block_tokens,
    check_cpu,
    cpu_environment,
    kv_bytes_per_token,
    kv_cache_bytes,
    omp_binding,
)
from burrstone.serving.hardware import Hardware

GIB = 2**30
MACHINE = Hardware("cpu", (0, 1), 20 * GIB, frozenset(), (), 0, "")
SMALL_MODEL = {
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "max_position_embeddings": 8192,
}


def config(**engine: Any) -> ServeConfig:
    return ServeConfig.model_validate({"cache_dir": "/cache", "engine": engine})


@given(st.sets(st.integers(0, 255), min_size=1, max_size=64), st.integers(1, 8))
@settings(deadline=None)
def test_each_worker_gets_cores_of_its_own(ids: set[int], num_workers: int) -> None:
    cores = tuple(sorted(ids))
    if len(cores) < num_workers:
        with pytest.raises(ConfigError, match=r"engine\.tensor_parallel_size is .* cores can be used; lower it"):
            omp_binding(cores, num_workers)
        return
    binding = omp_binding(cores, num_workers)
    if binding == "auto":
        assert num_workers == 1 and len(cores) > 16
        return
    groups = [[int(core) for core in group.split(",")] for group in binding.split("|")]
    used = [core for group in groups for core in group]
    assert len(groups) == num_workers and len(set(used)) == len(used) and set(used) <= ids
    assert {len(group) for group in groups} == {len(cores) // num_workers}


def test_a_token_takes_keys_and_values_of_every_layer() -> None:
    assert kv_bytes_per_token(SMALL_MODEL) == 2 * 2 * 30 * 3 * 64
    assert kv_bytes_per_token(SMALL_MODEL | {"head_dim": 128}) == 2 * 2 * 30 * 3 * 128
    no_groups = {key: value for key, value in SMALL_MODEL.items() if key != "num_key_value_heads"}
    assert kv_bytes_per_token(no_groups) == 3 * kv_bytes_per_token(SMALL_MODEL)


@pytest.mark.parametrize(
    "own", [{"kv_lora_rank": 512}, {"text_config": {"kv_lora_rank": 512}}, {"model_type": "deepseek_v4"}]
)
def test_models_whose_blocks_are_vllms_to_choose(own: dict[str, Any]) -> None:
    assert block_tokens(SMALL_MODEL) == 32
    assert block_tokens(SMALL_MODEL | own) is None


@pytest.mark.parametrize(
    ("engine", "free_gib", "expected"),
    [
        ({"max_model_len": 8192}, 20, 4 * 8192 * 23040),
        ({}, 20, 4 * 8192 * 23040),
        ({}, 2, int(0.2 * 2 * GIB)),
        ({"max_model_len": 128}, 20, 256 * 2**20),
        ({"kv_cache_gib": 1.5}, 20, int(1.5 * GIB)),
    ],
)
def test_kv_memory_is_four_contexts_within_a_fifth_of_the_machine(
    engine: dict[str, Any], free_gib: int, expected: int
) -> None:
    assert kv_cache_bytes(config(**engine), replace(MACHINE, memory_bytes=free_gib * GIB), SMALL_MODEL) == expected


@pytest.mark.parametrize(
    "dtype", ["int8_per_token_head", "int4_per_token_head", "int8", "nvfp4", "fp8_per_token_head", "turboquant_k8v4"]
)
def test_kv_types_that_the_cpu_does_not_compute_are_refused(dtype: str) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.kv_cache_dtype '{dtype}' .*; use auto or fp8"):
        check_cpu(config(kv_cache_dtype=dtype), MACHINE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_kv_cache_of_16_bits_is_refused_beside_32(dtype: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"engine\.kv_cache_dtype '{dtype}' .* engine\.dtype float32; use auto or fp8"
    ):
        check_cpu(config(kv_cache_dtype=dtype, dtype="float32"), MACHINE)
    check_cpu(config(kv_cache_dtype="fp8", dtype="float32"), MACHINE)


@pytest.mark.parametrize("dtype", ["auto", "fp8", "fp8_e4m3", "fp8_e5m2", "bfloat16"])
def test_other_kv_types_are_taken(dtype: str) -> None:
    check_cpu(config(kv_cache_dtype=dtype), MACHINE)


def test_more_kv_memory_than_there_is_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine\.kv_cache_gib asks for 21 GiB but 20\.0 GiB are free; lower it"):
        check_cpu(config(kv_cache_gib=21), MACHINE)


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An environment with libiomp5 and a system with tcmalloc."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "lib").mkdir()
    openmp = tmp_path / "lib" / "libiomp5.so"
    openmp.touch()
    allocator = tmp_path / "libtcmalloc_minimal.so.4"
    monkeypatch.setattr(cpu, "tcmalloc", lambda: allocator)
    return openmp, allocator


def test_the_recipe(libraries: tuple[Path, Path]) -> None:
    environment = cpu_environment(config(tensor_parallel_size=2), MACHINE, {})
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0|1"
    assert environment["LD_PRELOAD"] == f"{libraries[0]}:{libraries[1]}"
    assert (environment["VLLM_CACHE_ROOT"], environment["TORCHINDUCTOR_CACHE_DIR"]) == (
        "/cache/vllm",
        "/cache/inductor",
    )
    assert environment["VLLM_HOST_IP"] == "127.0.0.1" and environment["VLLM_NO_USAGE_STATS"] == "1"


def test_what_the_user_set_is_kept(libraries: tuple[Path, Path]) -> None:
    theirs = {"VLLM_CPU_OMP_THREADS_BIND": "5", "VLLM_CACHE_ROOT": "/theirs", "LD_PRELOAD": "/their.so", "OTHER": "x"}
    environment = cpu_environment(config(), MACHINE, theirs)
    assert (environment["VLLM_CPU_OMP_THREADS_BIND"], environment["VLLM_CACHE_ROOT"]) == ("5", "/theirs")
    assert environment["LD_PRELOAD"] == f"/their.so:{libraries[0]}:{libraries[1]}"
    assert "OTHER" not in environment


@pytest.mark.parametrize("theirs", ["/x/libgomp.so.1:/their.so", "/their.so /x/libgomp-24e2ab19.so.1.0.0"])
def test_another_openmp_runtime_is_not_preloaded_beside_ours(libraries: tuple[Path, Path], theirs: str) -> None:
    environment = cpu_environment(config(), MACHINE, {"LD_PRELOAD": theirs})
    assert environment["LD_PRELOAD"] == f"/their.so:{libraries[0]}:{libraries[1]}"
    libraries[0].unlink()
    kept = ":".join([*theirs.replace(":", " ").split(), str(libraries[1])])
    assert cpu_environment(config(), MACHINE, {"LD_PRELOAD": theirs})["LD_PRELOAD"] == kept


def test_what_is_not_there_is_not_preloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader complains at every start of every process about a library that it cannot find."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(cpu, "tcmalloc", lambda: None)
    assert cpu_environment(config(), MACHINE, {})["LD_PRELOAD"] == ""
