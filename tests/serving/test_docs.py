"""Pages made from the code are current, and the README names only commands that exist."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from burrstone.serving.cli.main import build_parser, main
from burrstone.serving.docs import pages
from harness import Server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """The README's code block of this language that contains these words."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    found = [text for text in blocks if containing in text]
    assert len(found) == 1, f"{len(found)} blocks contain {containing!r}"
    return str(found[0])


@pytest.mark.parametrize("name", sorted(pages()))
def test_reference_pages_are_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == pages()[name], "run `make docs`"


def test_readme_links_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", README, re.MULTILINE))
    assert named and named <= targets


@pytest.mark.parametrize("command", ["serve", "config", "doctor"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args([command, "--help"])
    assert stopped.value.code == 0
    assert command in capsys.readouterr().out


def test_the_simulator_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, on less traffic."""
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line)[1:] for line in block("sh", "burrstone sim run").splitlines()]
    assert commands
    for command in commands:
        assert main([*command, "--duration-s", "10"]) == 0
    assert (tmp_path / "slo.html").exists()


@pytest.mark.parametrize("source", ["docs/scheduling.md", "batching/sim/cli/commands.py"])
def test_simulator_examples_name_flags_that_exist(source: str) -> None:
    lines = re.findall(r"^ *(burrstone sim \w+ .*)$", (ROOT / source).read_text(), re.MULTILINE)
    # What follows a wide gap or a # says what the command is for.
    examples = [part for line in lines for part in re.split(r"\s{2,}|#", line)[0].split(" && ")]
    assert len(examples) >= 4
    for example in examples:
        _, unknown = build_parser().parse_known_args(shlex.split(example)[1:])
        assert unknown == [], example


def test_the_quantizer_commands_of_the_readme_do_as_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [shlex.split(line)[1:] for line in block("sh", "burrstone quantize").splitlines()]
    codes = [main([word.replace("/tmp/int8", str(tmp_path / "int8")) for word in command]) for command in commands]
    assert codes == [0, 1]
    assert "**FAIL**" in capsys.readouterr().out


def test_the_quantizer_commands_of_its_page_name_flags_that_exist() -> None:
    lines = re.findall(r"^\.venv/bin/(burrstone .*)$", (ROOT / "docs/quantization.md").read_text(), re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        _, unknown = build_parser().parse_known_args(shlex.split(line)[1:])
        assert unknown == [], line


def test_the_load_test_of_the_readme_runs_and_is_reported(scripted: Server, tmp_path: Path) -> None:
    """As it stands, for less time, on another port."""
    commands = [shlex.split(line)[1:] for line in block("sh", "burrstone bench run").splitlines()]
    assert [command[1] for command in commands] == ["run", "report"]
    for command, more in zip(commands, (["--url", scripted.url, "--duration-s", "3"], []), strict=True):
        given = [word.replace("/tmp/", f"{tmp_path}/") for word in command]
        # Lateness, which exit code 1 tells of, is of this machine at this moment.
        assert main([*given, *more]) in (0, 1)
    assert (tmp_path / "chat.html").exists()


def test_the_load_test_examples_name_flags_that_exist() -> None:
    text = (ROOT / "docs/benchmarks.md").read_text()
    lines = re.findall(r"(?:^\.venv/bin/|`)(burrstone bench [^`\n#]*)", text, re.MULTILINE)
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line)[1:]
        if len(words) > 2:
            _, unknown = build_parser().parse_known_args(words)
            assert unknown == [], line


@pytest.mark.engine
def test_the_curl_command_of_the_readme_answers(engine: Server) -> None:
    command = block("sh", "curl http").replace("curl ", "curl -sS ").replace("http://127.0.0.1:8000", engine.url)
    reply = json.loads(subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=120).stdout)
    assert reply["choices"][0]["message"]["content"]


@pytest.mark.engine
@pytest.mark.parametrize("example", ["from openai", "serving.client"], ids=["OpenAI SDK", "gRPC client"])
def test_the_python_examples_of_the_readme_print_an_answer(engine: Server, example: str) -> None:
    code = block("python", example)
    code = code.replace("http://127.0.0.1:8000", engine.url).replace("127.0.0.1:9000", engine.grpc_address)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
