"""The vLLM plugin: found by its name, harmless when called twice, and the two repairs it makes on a CPU."""

import ctypes
import importlib.metadata
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import platforms
from vllm.plugins import load_plugins_by_group
from waiting import wait_until

from burrstone.serving.engine import plugin
from burrstone.serving.engine.forkserver import FORKSERVER_ENV
from burrstone.serving.engine.plugin import (
    prepare_engine_core,
    register,
    request_amx_permission,
    tolerate_plain_compiled_functions,
)


def test_vllm_finds_it() -> None:
    (entry,) = (e for e in importlib.metadata.entry_points(group="vllm.general_plugins") if e.name == "burrstone")
    assert entry.load() is register
    assert load_plugins_by_group("vllm.general_plugins")["burrstone"] is register


def test_registering_twice_changes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "load_compiled_function", lambda *_, **__: None)
    register()
    once = torch.compiler.load_compiled_function
    register()
    assert torch.compiler.load_compiled_function is once
    assert hasattr(once, "_burrstone_original") is platforms.current_platform.is_cpu()


def test_it_does_nothing_on_other_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    for name in ("prepare_engine_core", "request_amx_permission", "tolerate_plain_compiled_functions"):
        monkeypatch.setattr(plugin, name, lambda *_: pytest.fail("called"))
    register()


def loader(loaded: Any) -> Any:
    """A torch that loads this artifact."""
    return SimpleNamespace(compiler=SimpleNamespace(load_compiled_function=lambda file, *, f_globals: loaded))


def artifact(compiled: Any) -> Any:
    return SimpleNamespace(_artifacts=SimpleNamespace(compiled_fn=compiled))


def test_a_plain_function_can_be_finalized() -> None:
    """As vLLM does with what it loaded; without this it compiles for half a minute at every start."""

    def compiled() -> str:
        return "ran"

    fake = loader(artifact(compiled))
    tolerate_plain_compiled_functions(fake)
    loaded = fake.compiler.load_compiled_function("file", f_globals={})
    assert loaded._artifacts.compiled_fn.finalize_loading("vllm config") is None
    assert loaded._artifacts.compiled_fn() == "ran"


def test_what_can_be_finalized_keeps_its_own_way() -> None:
    finalized: list[Any] = []
    fake = loader(artifact(SimpleNamespace(finalize_loading=finalized.append)))
    tolerate_plain_compiled_functions(fake)
    fake.compiler.load_compiled_function("file", f_globals={})._artifacts.compiled_fn.finalize_loading("vllm config")
    assert finalized == ["vllm config"]


@pytest.mark.parametrize("loaded", [None, SimpleNamespace(), artifact(None)])
def test_other_artifacts_pass_untouched(loaded: Any) -> None:
    fake = loader(loaded)
    tolerate_plain_compiled_functions(fake)
    assert fake.compiler.load_compiled_function("file", f_globals={}) is loaded


def test_a_loading_error_stays_an_error() -> None:
    def fail(*_: Any) -> Any:
        raise OSError("truncated")

    fake = SimpleNamespace(compiler=SimpleNamespace(load_compiled_function=fail))
    tolerate_plain_compiled_functions(fake)
    with pytest.raises(OSError, match="truncated"):
        fake.compiler.load_compiled_function()


@pytest.mark.parametrize(("supported", "asked"), [(True, 1), (False, 0)])
def test_amx_is_asked_for_where_the_machine_has_it(supported: bool, asked: int) -> None:
    calls: list[int] = []
    fake = SimpleNamespace(
        cpu=SimpleNamespace(
            _init_amx=lambda: calls.append(1) or True,  # type: ignore[func-returns-value]
            _is_amx_tile_supported=lambda: supported,
        )
    )
    assert request_amx_permission(fake) is supported
    assert len(calls) == asked


def test_a_torch_without_the_amx_hook_is_no_error() -> None:
    assert request_amx_permission(SimpleNamespace(cpu=SimpleNamespace())) is False


def test_torch_has_the_amx_hook_we_call() -> None:
    assert isinstance(torch.cpu._is_amx_tile_supported(), bool)
    assert callable(torch.cpu._init_amx)


@pytest.mark.parametrize(("ours", "child", "forks"), [(True, True, True), (True, False, False), (False, True, False)])
def test_only_cores_of_ours_fork_their_worker(
    monkeypatch: pytest.MonkeyPatch, ours: bool, child: bool, forks: bool
) -> None:
    controlled: list[tuple[int, ...]] = []
    libc = SimpleNamespace(prctl=lambda *arguments: controlled.append(arguments))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object() if child else None)
    monkeypatch.setattr(multiprocessing.util, "Finalize", lambda *_, **__: None)
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    monkeypatch.delenv(FORKSERVER_ENV, raising=False)
    if ours:
        monkeypatch.setenv(FORKSERVER_ENV, "1")
    prepare_engine_core()
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == ("fork" if forks else "spawn")
    assert len(controlled) == forks


_FAILING_CORE = """
import multiprocessing, signal, time
from burrstone.serving.engine.plugin import prepare_engine_core

def worker():
    signal.signal(signal.SIGTERM, lambda *_: None)
    time.sleep(600)

def core():
    prepare_engine_core()
    fork.Process(target=worker, daemon=True).start()
    time.sleep(0.5)
    raise SystemExit(3)

if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=core)
    process.start()
    process.join(20)
    print("ended with", process.exitcode)
    process.kill()
"""


def test_a_core_that_fails_does_not_wait_for_a_worker_that_is_deaf_to_sigterm(tmp_path: Path) -> None:
    script = tmp_path / "core.py"
    script.write_text(_FAILING_CORE)
    environment = os.environ | {FORKSERVER_ENV: "1"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "ended with 3\n", done.stderr


_PARENT = """
import multiprocessing, os, time
from burrstone.serving.engine.plugin import end_with_parent

def child(pids):
    end_with_parent()
    pids.put(os.getpid())
    time.sleep(600)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    pids = spawn.Queue()
    spawn.Process(target=child, args=(pids,)).start()
    print(pids.get(), flush=True)
    time.sleep(600)
"""


def test_a_spawned_process_ends_with_its_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        assert child.is_dir()
        parent.kill()
    # A zombie that nobody reaps (process 1 may not) has ended as well.
    wait_until(lambda: not child.is_dir() or "\nState:\tZ" in (child / "status").read_text())
