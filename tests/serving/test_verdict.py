"""What a model's evaluation has to say about serving it: shown, warned of, or a condition that nothing goes around."""

import dataclasses
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import launched
from waiting import wait_until

from burrstone.quant import quality
from burrstone.serving import verdict
from burrstone.serving.cli.main import main
from burrstone.serving.config import ConfigError, ServeConfig
from burrstone.serving.engine.models import ResolvedModel, embedded_model, resolve_model
from burrstone.serving.verdict import QUALITY_FILE, examine, examine_again, files_stamp, shown, warning
from harness import SCRIPT

FOUND = {
    "verdict": "pass",
    "perplexity_ratio": 1.0021,
    "mean_kl": 0.0031,
    "reference": {"name": "tiny"},
    "date": "2026-11-28",
    "margins": {"perplexity": 0.02, "mean_kl": 0.02, "task": 0.02},
    "text": {"name": "chats.jsonl", "shape": [64, 512], "notice": None},
}
PASSED = "passed on 2026-11-28: perplexity x1.0021, mean KL 0.0031 against tiny; allowed x1.02 and 0.02, on 64 rows of chats.jsonl"
QUANTIZED = {"model_type": "llama", "quantization_config": {"quant_method": "compressed-tensors"}}
Capture = pytest.CaptureFixture[str]


def checkpoint(folder: Path, config: dict[str, Any] | None = None, **found: Any) -> Path:
    """A folder with two files of weights, evaluated when something was found."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QUANTIZED if config is None else config))
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(bytes([number]) * 1000)
    if found:
        quality.write_quality(folder, FOUND | found)
    return folder


def flip_a_bit(folder: Path) -> None:
    """In the last file of weights, as a bad disk would: size and times stay."""
    file = folder / "model-00002-of-00002.safetensors"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def rewrite_verdict(folder: Path) -> None:
    """By hand, from failed to passed."""
    file = folder / QUALITY_FILE
    file.write_text(file.read_text().replace('"verdict": "fail"', '"verdict": "pass"'))


def lower_a_scale(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_theta": 1.0}))


# case -> (what the evaluation found, what was done afterwards, state)
_SPOILT: dict[str, tuple[dict[str, Any], Callable[[Path], object], str]] = {
    "never evaluated": ({}, lambda folder: None, "none"),
    "failed": ({"verdict": "fail"}, lambda folder: None, "failed"),
    "weights changed": ({"verdict": "pass"}, flip_a_bit, "stale"),
    "weights gone": ({"verdict": "pass"}, lambda f: (f / "model-00001-of-00002.safetensors").unlink(), "stale"),
    "weights added": ({"verdict": "pass"}, lambda f: (f / "more.safetensors").write_bytes(b"x"), "stale"),
    "config changed": ({"verdict": "pass"}, lower_a_scale, "stale"),
    "verdict rewritten": ({"verdict": "fail"}, rewrite_verdict, "unreadable"),
    "verdict cut": ({"verdict": "pass"}, lambda f: os.truncate(f / QUALITY_FILE, 40), "unreadable"),
    "verdict removed": ({"verdict": "pass"}, lambda f: (f / QUALITY_FILE).unlink(), "none"),
}


def required(on: bool = True, **engine: Any) -> ServeConfig:
    return ServeConfig.model_validate({"require_verdict": on, "engine": engine})


def resolved(folder: Path) -> ResolvedModel:
    return resolve_model(str(folder), folder)


def silent(_: str) -> None:
    pass


def test_passed_weights_are_served_and_shown(tmp_path: Path) -> None:
    model = resolved(checkpoint(tmp_path / "m", verdict="pass"))
    said: list[str] = []
    found = examine(required(), model, said.append)
    assert (found.state, found.line, shown(found, model), warning(found, model)) == ("passed", PASSED, PASSED, None)
    assert said == ["reading the verdict on m: hashing 0.0 GiB"]


@pytest.mark.parametrize("case", sorted(_SPOILT))
def test_anything_else_is_refused_where_a_verdict_is_required(tmp_path: Path, case: str) -> None:
    found, spoil, state = _SPOILT[case]
    folder = checkpoint(tmp_path / "m", **found)
    spoil(folder)
    text = quality.standing(folder).text
    with pytest.raises(ConfigError) as refused:
        examine(required(), resolved(folder), silent)
    for part in ("require_verdict", str(folder), state, text, "`burrstone quantize eval`"):
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("case", sorted(_SPOILT))
def test_it_is_served_with_a_warning_where_none_is_required(tmp_path: Path, case: str) -> None:
    found, spoil, state = _SPOILT[case]
    folder = checkpoint(tmp_path / "m", **found)
    spoil(folder)
    model = resolved(folder)
    verdict = examine(required(False), model, silent)
    assert verdict.state == state
    assert (shown(verdict, model) or "").startswith(state)
    doubt = warning(verdict, model)
    assert doubt is None if state == "none" else (doubt is not None and verdict.text in doubt and str(folder) in doubt)


@pytest.mark.parametrize(
    ("config", "tells"), [({"model_type": "llama"}, False), (QUANTIZED, True), ({"burrstone": {}}, True)]
)
def test_a_plain_checkpoint_without_an_evaluation_has_nothing_to_show(
    tmp_path: Path, config: dict[str, Any], tells: bool
) -> None:
    model = resolved(checkpoint(tmp_path / "m", config))
    found = examine(required(False), model, lambda text: pytest.fail(f"nothing is hashed, but said {text}"))
    assert (shown(found, model) is not None) is tells
    assert not tells or "no quality.json; `burrstone quantize eval" in found.line


def test_a_plain_checkpoint_with_an_evaluation_shows_it(tmp_path: Path) -> None:
    model = resolved(checkpoint(tmp_path / "m", {}, verdict="pass"))
    assert shown(examine(required(False), model, silent), model) == PASSED


def test_a_hub_id_has_no_files_to_judge() -> None:
    model = ResolvedModel("owner/name", ("owner/name",), QUANTIZED)
    found = examine(required(False), model, silent)
    assert (shown(found, model), warning(found, model), found.stamp) == (None, None, None)
    with pytest.raises(
        ConfigError, match=r"require_verdict .* owner/name is none: .* download it first \(`hf download"
    ):
        examine(required(), model, silent)


def test_a_file_that_cannot_be_read_is_no_verdict(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", verdict="pass")
    (folder / "gone.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"is unreadable: a file of the model cannot be read \(.*gone"):
        examine(required(), resolved(folder), silent)


@pytest.mark.parametrize("value", [None, "burrstone.quant.quality:no_such", "burrstone.no_such:standing"])
def test_an_environment_without_the_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """Of an older state of this tree: it serves, and refuses only where a verdict is required."""
    offered = [] if value is None else [importlib.metadata.EntryPoint("quality", value, verdict.QUALITY_GROUP)]
    monkeypatch.setattr(verdict, "entry_points", lambda **_: importlib.metadata.EntryPoints(offered))
    plain, evaluated = resolved(checkpoint(tmp_path / "p", {})), resolved(checkpoint(tmp_path / "e", verdict="pass"))
    found = examine(required(False), plain, silent)
    assert (found.state, shown(found, plain), warning(found, plain)) == ("unknown", None, None)
    found = examine(required(False), evaluated, silent)
    assert (shown(found, evaluated) or "").startswith("unknown: ") and "make setup" in (warning(found, evaluated) or "")
    for model in (plain, evaluated):
        with pytest.raises(ConfigError, match=r"require_verdict .*checkpoint_quality.*; run `make setup`"):
            examine(required(), model, silent)


def test_the_file_is_the_one_that_evaluations_write() -> None:
    assert quality.QUALITY_FILE == QUALITY_FILE


@pytest.mark.parametrize(
    "engine",
    [
        *(
            {"vllm_args": {key: "x"}}
            for key in (
                *("config_format", "hf_config_path", "hf_overrides", "load_format", "model_weights"),
                *("quantization_config", "model_class_overrides", "tokenizer", "worker_cls", "worker_extension_cls"),
                *("kv_cache_dtype_skip_layers", "generation_config", "model_impl", "additional_config", "no_such_key"),
            )
        ),
        {"quantization": "fp8"},
        {"kv_cache_dtype": "fp8"},
        {"kv_cache_dtype": "int8_per_token_head"},
    ],
    ids=str,
)
def test_nothing_takes_the_place_of_what_was_judged(tmp_path: Path, engine: dict[str, Any]) -> None:
    model = resolved(checkpoint(tmp_path / "m", verdict="pass"))
    key = next(iter(engine.get("vllm_args", engine)))
    with pytest.raises(ConfigError, match=rf"require_verdict is on, and engine\.(vllm_args\.)?{key} may compute"):
        examine(required(True, **engine), model, silent)
    assert examine(required(False, **engine), model, silent).state == "passed"


def test_what_changes_nothing_is_taken(tmp_path: Path) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    assert set(verdict.HARMLESS) <= {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    model = resolved(checkpoint(tmp_path / "m", verdict="pass"))
    config = required(True, vllm_args=dict.fromkeys(verdict.HARMLESS, 1))
    assert examine(config, model, silent).state == "passed"


def test_the_cache_that_the_checkpoint_asks_for_is_the_one_that_was_judged(tmp_path: Path) -> None:
    asks = {"burrstone": {"kv_cache_dtype": "int8_per_token_head"}}
    model = resolved(checkpoint(tmp_path / "m", asks, verdict="pass"))
    for dtype in ("auto", "int8_per_token_head"):
        assert examine(required(True, kv_cache_dtype=dtype), model, silent).state == "passed"
    with pytest.raises(ConfigError, match=r"engine\.kv_cache_dtype may compute something else"):
        examine(required(True, kv_cache_dtype="fp8"), model, silent)


def test_the_replica_reads_weights_again_only_when_a_file_has_changed(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", verdict="pass")
    model = resolved(folder)
    stamp = examine(required(), model, silent).stamp
    examine_again(required(), model, stamp, lambda text: pytest.fail(text))
    hashed: list[str] = []
    (folder / "README.md").write_text("changed, but nothing that counts")
    examine_again(required(), model, stamp, hashed.append)
    examine_again(required(), model, None, hashed.append)
    assert len(hashed) == 2
    flip_a_bit(folder)
    with pytest.raises(ConfigError, match="is stale: "):
        examine_again(required(), model, stamp, silent)
    examine_again(required(False), model, stamp, lambda text: pytest.fail(text))


def test_the_replica_serves_no_hub_id_that_the_command_took_for_a_folder() -> None:
    with pytest.raises(ConfigError, match="download it first"):
        examine_again(required(), ResolvedModel("owner/name", ("owner/name",), {}), "a stamp", silent)


def test_a_stamp_holds_while_nothing_changes(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", verdict="pass")
    first = files_stamp(folder)
    assert files_stamp(folder) == first
    flip_a_bit(folder)
    assert files_stamp(folder) != first


@pytest.mark.parametrize("case", ["weights changed", "verdict rewritten"])
def test_the_command_refuses_a_sabotaged_model_before_ray_starts(tmp_path: Path, case: str) -> None:
    found, spoil, state = _SPOILT[case]
    folder = checkpoint(tmp_path / "m", **found)
    spoil(folder)
    command = [sys.executable, "-m", "burrstone.serving.cli.main", "serve", str(folder), "--require-verdict", "true"]
    command += ["--http-port", "0", "--grpc-port", "0"]
    environ = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}  # joining a cluster goes around nothing
    for env in (dict(os.environ), environ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=env)
        assert done.returncode == 2, done.stderr
        assert f"burrstone: require_verdict is on, and the verdict on {folder} is {state}" in done.stderr
        assert "hashing" in done.stderr or state != "stale"
        assert "Ray" not in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_the_command_refuses_a_checkpoint_for_int8_kv_on_the_cpu(tmp_path: Path, capsys: Capture) -> None:
    folder = checkpoint(tmp_path / "m", {"burrstone": {"kv_cache_dtype": "int8_per_token_head"}})
    flags = ["--profile", "cpu", "--http-port", "0", "--grpc-port", "0"]
    assert main(["serve", str(folder), *flags]) == 2
    refusal = capsys.readouterr().err
    assert "burrstone: engine.kv_cache_dtype is auto" in refusal and "--engine.kv-cache-dtype" in refusal
    assert "Ray" not in refusal


def test_ctrl_c_ends_the_reading_of_weights(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", verdict="pass")
    for number in range(64):  # all holes: no disk, but long to read
        with (folder / f"more-{number}.safetensors").open("wb") as file:
            file.truncate(2**29)
    with launched(tmp_path / "log", str(folder)) as server:
        wait_until(lambda: "hashing 32.0 GiB" in server.output())
        server.interrupt()
        assert server.exit_code() == 130
        assert "Traceback" not in server.output() and "warning" not in server.output()


def test_a_served_model_shows_its_verdict_and_is_not_replaced_by_another(tmp_path: Path) -> None:
    """The whole way: greeting, then weights that change under the server, then a replica that has to be replaced."""
    source = embedded_model(Path("~/.cache/burrstone").expanduser())
    folder = tmp_path / "m"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    quality.write_quality(folder, FOUND)
    flags = [folder.name, "--require-verdict", "true", "--engine.kind", "scripted", "--engine.script", str(SCRIPT)]
    flags += ["--replica.health-check-period-s", "0.5", "--replica.drain-grace-s", "1"]
    with launched(tmp_path / "log", *flags, directory=tmp_path) as server:
        wait_until(lambda: server.process.poll() is not None or "burrstone serves" in server.output(), 300.0)
        assert f"\nverdict    {PASSED}\n" in server.output()
        logs = server.ray_logs() / "serve"
        (folder / "extra.safetensors").write_bytes(b"other weights")
        [replica] = server.find("ray::ServeReplica")
        os.kill(replica, signal.SIGKILL)
        refusal = "require_verdict is on, and the verdict on"
        wait_until(lambda: any(refusal in log.read_text(errors="replace") for log in logs.glob("*.log")), 300.0)
        assert not server.ready()
