"""`burrstone quantize` as it is typed: what each flag does, which go together, what is printed, and the exit codes."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from quant_runs import contents, layers_done, partial, write_text
from tiny_models import edit_json, tiny_model
from waiting import wait_until

from burrstone.quant import progress
from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.errors import OutOfSpace
from burrstone.quant.evaluate import Evaluation
from burrstone.quant.formats import KV_INT8, SCHEMES
from burrstone.quant.job import Job
from burrstone.quant.quality import standing, weights_digest
from burrstone.quant.recipe import METHODS
from burrstone.quant.rounding import GRANULARITIES, OBSERVERS
from burrstone.quant.texts import SMOKE_NOTICE
from burrstone.serving.cli.main import build_parser, main

BURRSTONE = Path(sys.executable).with_name("burrstone")
SMALL = ("--rows", "8", "--row-tokens", "48")
RTN = ("--method", "rtn")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model(tmp_path_factory.mktemp("cli") / "tiny", num_hidden_layers=2)
    write_text(folder.with_name("text.txt"), seed=1)
    write_text(folder.with_name("held.txt"), seed=2)
    folder.with_name("cases.jsonl").write_text('{"prompt": "a", "choices": ["b", "c"], "answer": 0}\n' * 3)
    return folder


@pytest.fixture
def at(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to type in, with a model `tiny`, its quantized `done`, `text.txt`, `held.txt` and `cases.jsonl`."""
    shutil.copytree(model.parent, tmp_path / "at")
    monkeypatch.chdir(tmp_path / "at")
    yield tmp_path / "at"


@pytest.fixture
def done(at: Path) -> Path:
    assert typed("tiny", "-o", "done", *RTN) == 0
    return at / "done"


def typed(*words: str) -> int:
    """The exit code of `burrstone quantize WORDS`."""
    try:
        return main(["quantize", *words])
    except SystemExit as error:
        return int(str(error.code))


def recipe_of(out: Path) -> dict[str, object]:
    recipe: dict[str, object] = json.loads((out / "quantization.json").read_text())["recipe"]
    return recipe


@pytest.mark.parametrize(
    ("flags", "recipe"),
    [
        (("--scheme", "w8a16-int8"), {"schemes": "w8a16-int8"}),
        (("--observer", "mse"), {"observer": "mse"}),
        (("--granularity", "per-tensor"), {"granularity": "per-tensor"}),
        (("--keep", "*.o_proj", "--keep", "*.layers.0.*"), {"keep": ["*.o_proj", "*.layers.0.*"]}),
        (("--quantize-lm-head",), {"quantize_lm_head": True}),
    ],
)
def test_each_flag_of_making_reaches_the_recipe(flags: tuple[str, ...], recipe: dict[str, object], at: Path) -> None:
    assert typed("tiny", "--out", "out", *RTN, *flags, "--device", "cpu") == 0
    defaults: dict[str, object] = {
        "schemes": "w8a8-int8",
        "strength": None,
        "observer": "absmax",
        "granularity": "per-channel",
    }
    defaults |= {"method": "rtn", "dampening": 0.01, "keep": [], "quantize_lm_head": False}
    assert recipe_of(at / "out") == defaults | recipe


def test_the_flags_of_calibrating_and_of_mixed_precision(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--calibration", "text.txt", *SMALL, "--strength", "0.5", "--dampening", "0.02")
    mixed = ("--mixed-precision", "held.txt", "--margin-perplexity", "9", "--margin-kl", "9", "--margin-task", "1")
    assert typed("tiny", "-o", "out", *flags, *mixed, "--cases", "cases.jsonl") == 0
    assert "units kept" in capsys.readouterr().err
    run = json.loads((at / "out" / "quantization.json").read_text())
    assert (run["recipe"]["strength"], run["recipe"]["dampening"]) == (0.5, 0.02)
    assert (run["calibration"]["name"], run["calibration"]["shape"]) == ("text.txt", [8, 48])
    assert run["until"]["margins"] == {"perplexity": 9.0, "mean_kl": 9.0, "task": 1.0}
    assert run["until"]["cases"] == "cases.jsonl"
    assert standing(at / "out").state == "passed"


@pytest.mark.usefixtures("done")
def test_eval_passes_or_fails_by_its_exit_code(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("eval", "tiny", "done", "--text", "text.txt", *SMALL) == 0
    assert "**PASS**" in capsys.readouterr().out
    assert standing(at / "done").state == "passed"
    assert typed("eval", "tiny", "done", "--text", "text.txt", *SMALL, "--margin-kl", "0") == 1
    told = capsys.readouterr().out
    assert "**FAIL**" in told and "- mean KL may be" in told
    assert standing(at / "done").state == "failed"
    flags = ("--margin-perplexity", "9", "--margin-kl", "9", "--margin-task", "1", "--cases", "cases.jsonl")
    assert typed("eval", "tiny", "done", "--text", "text.txt", *SMALL, *flags) == 0
    assert "| task, 3 cases |" in capsys.readouterr().out


def test_mixed_precision_that_cannot_pass_says_so_by_its_exit_code(
    at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # With every unit in 16 bits the head is still rounded.
    flags = (*RTN, "--quantize-lm-head", "--mixed-precision", "held.txt", *SMALL, "--margin-kl", "0")
    assert typed("tiny", "-o", "out", *flags, "--json") == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "fail"
    assert standing(at / "out").state == "failed"
    assert typed("tiny", "-o", "other", *RTN, "--mixed-precision", "held.txt", *SMALL, "--margin-kl", "0") == 0
    assert "verdict: pass; more in other/README.md" in capsys.readouterr().out


def test_text_that_was_calibrated_on_judges_nothing(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated = ("--method", "gptq", "--calibration", "text.txt", *SMALL)
    assert typed("tiny", "-o", "out", *calibrated) == 0
    assert typed("eval", "tiny", "out", "--text", "text.txt", *SMALL) == 2
    assert (
        "rows were calibrated on, which proves nothing; give other text, or quantize again with fewer --rows"
        in capsys.readouterr().err
    )
    assert typed("eval", "tiny", "out", "--text", "text.txt", "--rows", "8", "--row-tokens", "40") == 2
    assert "was calibrated on, in rows of 48 tokens; give --row-tokens 48" in capsys.readouterr().err
    assert typed("tiny", "-o", "mixed", *calibrated, "--mixed-precision", "text.txt") == 2
    assert "rows were calibrated on" in capsys.readouterr().err
    assert not (at / "mixed").exists() and not partial(at / "mixed").exists()
    assert typed("eval", "tiny", "out", "--text", "held.txt", *SMALL) in (0, 1)


@pytest.mark.parametrize("changed", ["tiny", "done"])
@pytest.mark.usefixtures("done")
def test_what_is_changed_while_it_is_judged_gets_no_verdict(
    changed: str, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = Evaluation.compare

    def disturbed(self: Evaluation, candidate: Checkpoint) -> dict[str, object]:
        found = compare(self, candidate)
        edit_json(at / changed / "config.json", bos_token_id=3)
        return found

    monkeypatch.setattr(Evaluation, "compare", disturbed)
    assert typed("eval", "tiny", "done", "--text", "held.txt", *SMALL) == 2
    assert f"{at / changed} was changed while it was evaluated; nothing is recorded" in capsys.readouterr().err
    assert standing(at / "done").state == "none"


@pytest.mark.usefixtures("done")
def test_a_candidate_that_would_be_served_otherwise_is_not_judged(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = ("eval", "tiny", "done", "--text", "held.txt", *SMALL)
    template = at / "done" / "chat_template.jinja"
    kept = template.read_text()
    template.write_text(kept + "!")
    assert typed(*judge) == 2
    assert "done: its tokenizer's chat template differs from the reference's" in capsys.readouterr().err
    template.write_text(kept)
    (at / "done" / "consolidated.safetensors").write_bytes(b"")
    assert typed(*judge) == 2
    assert "holds consolidated.safetensors, which vLLM loads in place" in capsys.readouterr().err


@pytest.mark.usefixtures("done")
def test_a_verdict_that_cannot_be_recorded_is_told_all_the_same(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert typed("eval", "tiny", "done", "--text", "held.txt", *SMALL) == 2
    told = capsys.readouterr()
    assert "**PASS**" in told.out and f"{at / 'done'} cannot be written: Read-only file system" in told.err
    assert not [file for file in (at / "done").iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "the following arguments are required: MODEL"),
        (("tiny",), "give one MODEL and -o OUT"),
        (("tiny", "more", "-o", "out"), "give one MODEL and -o OUT"),
        (
            ("tiny", "-o", "out"),
            "--calibration PATH: text or chat logs like your traffic; `smoke` to only try it; or --met",
        ),
        (("tiny", "-o", "out", *RTN, "--calibration", "text.txt"), "--calibration is for methods that need data; rtn"),
        (("tiny", "-o", "out", *RTN, "--text", "text.txt"), "--text is for judging"),
        (("tiny", "-o", "out", *RTN, "--cases", "cases.jsonl"), "--cases is for judging"),
        (("tiny", "-o", "out", *RTN, "--margin-kl", "0.1"), "--margin-kl is for judging"),
        (("tiny", "-o", "out", *RTN, "--margin-perplexity", "0.1"), "--margin-perplexity is for judging"),
        (("tiny", "-o", "out", *RTN, "--margin-task", "0.1"), "--margin-task is for judging"),
        (("tiny", "-o", "out", *RTN, "--mixed-precision", "none.txt"), "none.txt does not exist"),
        (
            ("tiny", "-o", "out", *RTN, "--mixed-precision", "text.txt", "--margin-kl", "inf"),
            "is a number from 0 up, got",
        ),
        (
            ("tiny", "-o", "out", *RTN, "--mixed-precision", "text.txt", "--margin-kl", "-1"),
            "is a number from 0 up, got",
        ),
        (("tiny", "-o", "out", *RTN, "--scheme", "int4"), "scheme 'int4' is not known; there are w8a8-int8"),
        (("tiny", "-o", "out", *RTN, "--observer", "x"), "observer is one of absmax"),
        (("tiny", "-o", "out", "--strength", "2"), "strength lies between 0 and 1, got 2.0"),
        (("tiny", "-o", "out", "--strength", "much"), "argument --strength: invalid float value: 'much'"),
        (("tiny", "-o", "out", "--calibration", "text.txt", "--rows", "0"), "--rows is at least 1"),
        (("tiny", "-o", "out", "--calibration", "text.txt", "--row-tokens", "1"), "--row-tokens at least 2"),
        (("tiny", "-o", "out", "--calibration", "text.txt", "--row-tokens", "9999"), "are less than one row of 9999"),
        (("tiny", "-o", "out", *RTN, "--device", "cuda:99"), "--device cuda:99: "),
        (("tiny", "-o", "tiny", *RTN), "tiny exists; remove it or choose another -o"),
        (("absent", "-o", "out", *RTN), "model 'absent' is neither a folder that exists nor a hub id"),
        (
            ("tiny", "-o", "out", *RTN, "--calibratoin", "x"),
            "unknown argument --calibratoin; did you mean --calibration?",
        ),
        (("eval",), "give both models: burrstone quantize eval REFERENCE CANDIDATE --text PATH"),
        (("eval", "tiny", "done", "more", "--text", "text.txt"), "give both models"),
        (("eval", "tiny", "done"), "give --text PATH: text like your traffic"),
        (("eval", "tiny", "tiny", "--text", "text.txt"), "reference and candidate are both"),
        (("eval", "tiny", "absent", "--text", "text.txt"), "model 'absent' is neither"),
        (("eval", "tiny", "done", "--text", "text.txt", "--rows", "7", "--row-tokens", "48"), "7 rows are too few"),
        (
            ("eval", "tiny", "done", "--text", "text.txt", *SMALL, "--margin-task", "-1"),
            "--margin-task is a number from 0 up, got -1.0",
        ),
        (("eval", "tiny", "done", "--text", "text.txt", *SMALL, "--cases", "text.txt"), "text.txt:1 is not JSON"),
        *(
            (("eval", "tiny", "done", "--text", "text.txt", flag, *value), f"{flag} is for quantizing")
            for flag, *value in (
                ("--out", "x"),
                ("--scheme", "w8a8-int8"),
                ("--method", "rtn"),
                ("--calibration", "text.txt"),
                ("--observer", "mse"),
                ("--granularity", "per-tensor"),
                ("--strength", "0.5"),
                ("--dampening", "0.1"),
                ("--keep", "*"),
                ("--quantize-lm-head",),
                ("--mixed-precision", "text.txt"),
                ("--restart",),
            )
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_does_not_go_together_exits_with_2_and_names_flag_and_way_out(
    words: tuple[str, ...], told: str, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(done.parent)
    capsys.readouterr()
    assert typed(*words) == 2
    output = capsys.readouterr()
    assert told in output.err
    assert output.out == ""
    assert contents(done.parent) == before
    assert not (done.parent / "out.partial").exists()


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("tiny", "-o", "out", *RTN, "--margin-kl", "0"), "--margin-kl"),
        (("tiny", "-o", "out", *RTN, "--rows", "5"), "--rows"),
        (("tiny", "-o", "out", *RTN, "--keep", "*.nothing"), "--keep"),
        (("eval", "tiny", "done", "--text", "text.txt", *SMALL, "--strength", "0"), "--strength"),
        (("tiny", "-o", "", *RTN), "-o"),
        (("tiny", "-o", ".", *RTN), "-o"),
        (("tiny", "-o", "/proc/nowhere/out", *RTN), "/proc/nowhere"),
        (("tiny", "-o", "text.txt/out", *RTN), "text.txt"),
        (("tiny", "-o", "out", *RTN, "--device", "meta"), "--device meta"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.usefixtures("done")
def test_what_would_do_nothing_or_cannot_be_done_is_refused_by_name(
    words: tuple[str, ...], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(*words) == 2
    assert flag in capsys.readouterr().err


def test_json_is_one_object_on_stdout_and_nothing_else(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("tiny", "-o", "out", "--calibration", "smoke", *SMALL, "--json") == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert (result["out"], result["schemes"], result["num_layers"]) == ("out", "w8a8-int8", 2)
    assert result["weights_digest"] == weights_digest(at / "out")
    assert SMOKE_NOTICE in output.err
    wide = ("--margin-kl", "9", "--margin-perplexity", "9")
    assert typed("eval", "tiny", "out", "--text", "smoke", *SMALL, *wide, "--json") == 0
    output = capsys.readouterr()
    quality = json.loads(output.out)
    stored = json.loads((at / "out" / "quality.json").read_text())
    assert quality.items() <= stored.items()
    assert quality["text"]["notice"] == SMOKE_NOTICE and SMOKE_NOTICE in output.err
    assert (at / "out" / "README.md").read_text().count(f"> **{SMOKE_NOTICE}**") == 2


def test_own_text_gets_no_notice_and_too_little_of_it_is_said(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("tiny", "-o", "out", "--calibration", "text.txt", "--row-tokens", "48") == 0
    output = capsys.readouterr()
    assert "SMOKE" not in output.err + output.out
    assert "of 128 rows" in output.err
    assert "next: burrstone quantize eval tiny out --text YOUR_TEXT" in output.out
    assert "SMOKE" not in (at / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "burrstone: stopped; the same command goes on from the last whole layer\n"),
        (OutOfSpace("out.partial: the disk is full"), 3, "burrstone: out.partial: the disk is full\n"),
    ],
    ids=repr,
)
@pytest.mark.usefixtures("at")
def test_what_is_no_mistake_of_usage_has_its_own_exit_code(
    error: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Job) -> None:
        raise error

    monkeypatch.setattr(Job, "run", fail)
    assert typed("tiny", "-o", "out", *RTN) == code
    assert capsys.readouterr().err.endswith(told)


def test_restart_drops_what_lies_in_the_way_and_nothing_else_does(at: Path) -> None:
    for name in ("out.partial", "other.partial"):
        (at / name).mkdir()
        (at / name / "theirs").write_text("x")
    assert typed("tiny", "-o", "other", *RTN) == 2
    assert contents(at / "other.partial") == {"theirs": b"x"}
    assert typed("tiny", "-o", "out", *RTN, "--restart") == 0
    assert "theirs" not in contents(at / "out")


def test_without_a_tokenizer_it_is_refused(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (at / "tiny" / name).unlink()
    assert typed("tiny", "-o", "out", *RTN) == 2
    assert f"{at / 'tiny'} has no tokenizer that can be read" in capsys.readouterr().err


def test_help_names_every_scheme_method_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("--help") == 0
    told = capsys.readouterr().out
    flags = build_parser().parse_args(["quantize", "tiny"]).flags
    assert len(flags) > 20
    for word in (*flags, *SCHEMES, KV_INT8, *METHODS, *OBSERVERS, *GRANULARITIES, "smoke", "exit codes", "UNVERIFIED"):
        assert word in told, word


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_real_command_is_stopped_and_goes_on(stop: signal.Signals, at: Path) -> None:
    """Once as a process, with all that lies between a terminal and the room."""
    tiny_model(at / "deep", num_hidden_layers=40)
    command = [str(BURRSTONE), "quantize", "deep", "-o", "out", "--calibration", "text.txt", *SMALL, "--json"]
    # Who starts the tests in the background has its children ignore the keyboard.
    hearing = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    started = [sys.executable, "-c", hearing, *command]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: layers_done(at / "out") >= 2 or process.poll() is not None, timeout_s=120)
        process.send_signal(stop)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, ""), err
    assert err.endswith("burrstone: stopped; the same command goes on from the last whole layer\n")
    kept = layers_done(at / "out")
    assert 2 <= kept < 40
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"going on after layer {kept} of 40" in again.stderr
    assert json.loads(again.stdout)["resumed_layers"] == kept
    assert not partial(at / "out").exists()


def test_a_model_that_is_nearly_the_embedded_one(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("smollm2-135m-instruc", "-o", "out", *RTN) == 2
    assert "'smollm2-135m-instruc' does not exist; did you mean smollm2-135m-instruct?" in capsys.readouterr().err


def test_who_may_read_the_folder_may_read_the_weights(done: Path) -> None:
    modes = {file.name: file.stat().st_mode & 0o777 for file in done.iterdir()}
    assert set(modes.values()) == {done.stat().st_mode & 0o666}, modes


def test_text_that_is_all_calibrated_on_is_told(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated = ("--method", "gptq", "--calibration", "text.txt", "--row-tokens", "48")
    assert typed("tiny", "-o", "all", *calibrated) == 0
    assert "text.txt: all of its rows are calibrated on, so none is left to judge on" in capsys.readouterr().err
    assert typed("tiny", "-o", "some", *calibrated, "--rows", "4") == 0
    assert "none is left" not in capsys.readouterr().err


def test_where_stderr_is_no_terminal_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = iter([0.0, 4.0, 12.0, 13.0, 24.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now_s)))
    with progress.TerminalBar() as bar:
        bar.start(10, "quantizing", done=2)
        for _ in range(4):
            bar.step()
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "quantizing, from 2 of 10"
    assert told[1:] == ["quantizing: 4 of 10, about 00:36 left", "quantizing: 6 of 10, about 00:24 left"]
