"""What the replica is given: environment, GPUs, and whose Ray it runs on."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from burrstone.serving.auth import Authenticator
from burrstone.serving.config import EMBEDDED_MODEL, ConfigError, ServeConfig
from burrstone.serving.engine.models import ResolvedModel
from burrstone.serving.hardware import Hardware
from burrstone.serving.launch import Cluster, engine_environment, num_gpus

MODEL = ResolvedModel("/m", ("m",), {})


def machine(profile: str) -> Hardware:
    return Hardware(profile, (0, 1), 20 * 2**30, frozenset(), (), 0, "")


def config(**fields: Any) -> ServeConfig:
    return ServeConfig.model_validate({"cache_dir": "/cache"} | fields)


@pytest.mark.parametrize(
    ("profile", "engine", "expected"),
    [
        ("cpu", {"tensor_parallel_size": 2}, 0),
        ("cuda", {}, 1),
        ("cuda", {"tensor_parallel_size": 4}, 4),
        ("cuda", {"tensor_parallel_size": 2, "vllm_args": {"pipeline_parallel_size": 3}}, 6),
        ("cuda", {"vllm_args": {"data_parallel_size": 2}}, 2),
    ],
)
def test_every_worker_has_its_gpu(profile: str, engine: dict[str, Any], expected: int) -> None:
    assert num_gpus(config(profile=profile, engine=engine)) == expected


@pytest.mark.parametrize("profile", ["cpu", "cuda"])
def test_caches_are_ours_and_nothing_is_reported_anywhere(profile: str) -> None:
    environment = engine_environment(config(), machine(profile))
    assert environment["VLLM_CACHE_ROOT"] == "/cache/vllm"
    assert environment["VLLM_NO_USAGE_STATS"] == environment["DO_NOT_TRACK"] == "1"
    assert ("VLLM_CPU_OMP_THREADS_BIND" in environment) is (profile == "cpu")


def test_the_configured_profile_wins_over_the_machines() -> None:
    assert "VLLM_CPU_OMP_THREADS_BIND" in engine_environment(config(profile="cpu"), machine("cuda"))
    with pytest.raises(ConfigError, match="Neuron"):
        engine_environment(config(profile="neuron-inf2"), machine("cpu"))


@pytest.mark.parametrize(("address", "joined"), [(None, False), ("", False), ("auto", True)])
def test_an_empty_address_is_no_cluster(monkeypatch: pytest.MonkeyPatch, address: str | None, joined: bool) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert Cluster(config(), machine("cpu"), Authenticator(()), MODEL).joined is joined


def test_a_checkpoint_for_int8_kv_is_refused_on_the_cpu_before_anything_starts() -> None:
    """Whatever `auto` finds: the machine's profile counts."""
    int8 = ResolvedModel("/m", ("m",), {"burrstone": {"kv_cache_dtype": "int8_per_token_head"}})
    with pytest.raises(ConfigError, match="computes wrong output"):
        Cluster(config(), machine("cpu"), Authenticator(()), int8)
    Cluster(config(), machine("cuda"), Authenticator(()), int8)


@pytest.mark.parametrize(
    ("name", "path", "given"),
    [
        ("./m", "/models/m", "/models/m"),
        ("owner/name", "/models/owner/name", "/models/owner/name"),
        ("owner/name", "owner/name", "owner/name"),
        (EMBEDDED_MODEL, "/cache/models/embedded", EMBEDDED_MODEL),
    ],
)
def test_a_name_means_the_same_model_in_the_replica(name: str, path: str, given: str) -> None:
    """It may run in another working directory, as in a cluster that was joined."""
    cluster = Cluster(config(model=name), machine("cpu"), Authenticator(()), ResolvedModel(path, ("m",), {}))
    assert cluster._config.model == given


def test_gpus_that_are_not_there_are_not_waited_for(tmp_path: Path) -> None:
    """The command, as on a machine whose driver is not set up."""
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "burrstone.serving.cli.main", "serve", "--profile", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert done.returncode == 2
    assert "profile cuda needs 1 GPU(s), one for each worker, and Ray sees 0 here" in done.stderr
