"""`burrstone sim run` and `calibrate` as they are typed: figures, files, and errors that say what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from burrstone.batching.core.rng import Rng
from burrstone.batching.core.step_log import LogHeader, StepLoad, StepRecord
from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL
from burrstone.batching.core.step_time import step_seconds
from burrstone.serving.cli.main import main

Capture = pytest.CaptureFixture[str]
SHORT = ["--duration-s", "10", "--rate", "3"]


def run_json(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main(["sim", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("kind", ["run", "fleet", "calibrate", "targets"])
def test_help_teaches_by_examples(kind: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sim", kind, "--help"])
    assert stopped.value.code == 0
    assert f"burrstone sim {kind}" in capsys.readouterr().out.partition("example")[2]


def test_policies_stand_side_by_side(capsys: Capture) -> None:
    assert main(["sim", "run", *SHORT, "--policy", "fcfs", "--policy", "vtc>slo", "--workload", "flood"]) == 0
    printed = capsys.readouterr().out
    head = printed.splitlines()[1]
    assert "fcfs" in head and "vtc > slo" in head
    for line in ("attainment", "TTFT p50 p90 p99", "TPOT p50 p90 p99", "E2E  p50 p90 p99", "Jain's index", "victim"):
        assert line in printed


def test_equal_seeds_give_equal_runs_and_other_seeds_do_not(capsys: Capture) -> None:
    command = ["run", *SHORT, "--policy", "slo", "--seeds"]
    first, second = run_json(capsys, *command, "7"), run_json(capsys, *command, "7,8")
    hashes = [seed["outcome_hash"] for seed in second["runs"][0]["seeds"]]
    assert first["runs"][0]["seeds"][0]["outcome_hash"] == hashes[0] != hashes[1]


def test_both_modes_give_the_same_figures(capsys: Capture) -> None:
    exact, macro = (run_json(capsys, "run", *SHORT, "--policy", "vtc", "--mode", mode) for mode in ("exact", "macro"))
    assert exact["runs"] == macro["runs"]


def test_three_seeds_give_an_interval_and_fewer_none(capsys: Capture) -> None:
    three = run_json(capsys, "run", *SHORT, "--policy", "fcfs", "--seeds", "1,2,3")["runs"][0]
    low, high = three["attainment_interval"]
    assert low <= three["attainment"] <= high
    assert run_json(capsys, "run", *SHORT, "--policy", "fcfs")["runs"][0]["attainment_interval"] is None


def test_several_rates_say_how_far_a_policy_goes(capsys: Capture) -> None:
    assert main(["sim", "run", "--duration-s", "10", "--rate", "1,60", "--policy", "fcfs", "--workload", "chat"]) == 0
    assert "fcfs keeps 95 % up to 1 requests per second." in capsys.readouterr().out


def test_a_flag_sets_the_slo_of_all_where_none_has_one(capsys: Capture) -> None:
    found = run_json(capsys, "run", *SHORT, "--policy", "fcfs", "--workload", "chat", "--ttft-s", "0.000001")
    assert found["runs"][0]["attainment"] == 0


def test_the_report_holds_the_command_that_made_it(tmp_path: Path, capsys: Capture) -> None:
    report = tmp_path / "run.html"
    command = ["sim", "run", "--duration-s", "10", "--rate", "2,4", "--policy", "fcfs,slo", "--report", str(report)]
    assert main(command) == 0
    assert str(report) in capsys.readouterr().out
    html = report.read_text()
    assert f"burrstone {' '.join(command)}" in html
    for part in ("Attainment over requests per second", "Time to first token", "KV cache in use", "Jain"):
        assert part in html


def test_a_trace_is_played_at_the_rate_that_is_asked_for(tmp_path: Path, capsys: Capture) -> None:
    trace = tmp_path / "chat.jsonl"
    lines = [{"t_ms": 1000 * n, "input_len": 50 + n, "output_len": 5, "tenant": f"t{n % 2}"} for n in range(100)]
    trace.write_text("\n".join(json.dumps(line) for line in lines))
    command = ["run", "--policy", "fcfs", "--workload", f"trace:{trace}", "--duration-s", "20"]
    own, doubled = run_json(capsys, *command)["runs"][0], run_json(capsys, *command, "--rate", "2")["runs"][0]
    assert own["rate_per_s"] == pytest.approx(1.0, abs=0.1)
    assert (len(own["tenants"]), own["all_seeds"]["requests"]) == (2, 20)
    assert doubled["all_seeds"]["requests"] == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--policy", "vtx"], "--policy: scheduler policy 'vtx': no tier 'vtx'"),
        (["run", "--policy", "vtx"], "did you mean 'vtc'?"),
        (["run", "--polcy", "slo"], "unknown argument --polcy; did you mean --policy?"),
        (["run", "--knob", "agin_s=2"], "--knob: scheduler knob 'agin_s' does not exist"),
        (
            ["run", "--knob", "relegated_every=0"],
            "--knob: scheduler knobs relegated_every and min_chunk_tokens must be >= 1",
        ),
        (["run", "--workload", "flod"], "--workload flod: one of chat, mix"),
        (["run", "--workload", "flood:victm=1"], "flood has no parameter 'victm'; it has victim"),
        (["run", "--workload", "chat:cv=much"], "--workload chat:cv=much: cv must be a number, got 'much'"),
        (["run", "--workload", "trace:nowhere.csv"], "--workload trace:nowhere.csv: no such file"),
        (["run", "--rate", "0.001", "--duration-s", "1"], "no request comes within --duration-s"),
        (["run", "--step-model", "nowhere.json"], "--step-model nowhere.json: "),
        (["run", "--scatter"], "--scatter: the built-in model has none; name a calibrated one with --step-model"),
        (["run", "--max-num-seqs", "9000"], "max_num_batched_tokens (8192) must be at least max_num_seqs"),
        (["run", *SHORT, "--report", "no/such/folder.html"], "--report no/such/folder.html: No such file"),
        (["calibrate", "nowhere.jsonl"], "STEPLOG nowhere.jsonl: "),
    ],
)
def test_bad_input_is_2_with_the_fix(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["sim", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--rate", "0", "argument --rate: '0' must be a number > 0: requests per second"),
        ("--rate", "2,,4", "argument --rate: '' must be a number > 0"),
        ("--seeds", "1,1", "argument --seeds/--seed: '1,1' must be different integers"),
        ("--attainment", "95", "argument --attainment: '95' must be between 0 and 1"),
        ("--num-blocks", "1.5", "argument --num-blocks: '1.5' must be an integer >= 1"),
        ("--knob", "aging_s", "argument --knob: 'aging_s' must be NAME=VALUE, such as aging_s=30"),
        ("--policy", ",", "argument --policy: ',' must name at least one"),
    ],
)
def test_a_value_that_cannot_be_is_2_and_names_the_flag(flag: str, value: str, message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sim", "run", flag, value])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_list_of_workloads_names_their_parameters(capsys: Capture) -> None:
    assert main(["sim", "run", "--workload", "list"]) == 0
    assert "flood:victim=0.13" in capsys.readouterr().out


def step_log(path: Path, *, num_blocks: int = 1000, slower_after: int = 10_000) -> Path:
    """An engine that takes exactly as long as the built-in model says, twice as long after so many steps."""
    header = LogHeader("fcfs", 64, 2048, 16, num_blocks, True, dict.fromkeys(("base_s",), 0.0))
    rng, lines = Rng(3), [header.to_line()]
    for step in range(400):
        prefill, decodes = float(rng.below(4) * 256), float(rng.below(60))
        load = StepLoad(prefill, decodes, decodes * rng.below(900), prefill * rng.below(2000))
        seconds = step_seconds(
            DEFAULT_STEP_MODEL.coefficients(),
            load.prefill_tokens,
            load.decode_seqs,
            load.kv_tokens,
            load.attention_pairs,
        )
        elapsed_s = seconds * (2.0 if step >= slower_after else 1.0)
        lines.append(StepRecord(step, float(step), 1, 2, 900, 1, load=load, elapsed_s=elapsed_s).to_line())
    path.write_text("\n".join(lines) + "\n")
    return path


def test_calibration_finds_the_model_and_run_takes_it(tmp_path: Path, capsys: Capture) -> None:
    model = tmp_path / "model.json"
    found = run_json(capsys, "calibrate", str(step_log(tmp_path / "steps.jsonl")), "--out", str(model))
    assert found["model"]["prefill_token_s"] == pytest.approx(DEFAULT_STEP_MODEL.prefill_token_s, rel=1e-6)
    assert found["quality"]["r_squared"] > 0.999
    assert found["drift"]["alarms"] == 0
    fitted = run_json(capsys, "run", *SHORT, "--policy", "fcfs", "--step-model", str(model))
    built_in = run_json(capsys, "run", *SHORT, "--policy", "fcfs")
    ttft_s = [run["runs"][0]["all_seeds"]["ttft_s"] for run in (fitted, built_in)]
    assert ttft_s[0] == pytest.approx(ttft_s[1], rel=1e-3)


def test_steps_scatter_only_when_asked(tmp_path: Path, capsys: Capture) -> None:
    model = tmp_path / "model.json"
    run_json(capsys, "calibrate", str(step_log(tmp_path / "steps.jsonl")), "--out", str(model))
    given = json.loads(model.read_text())
    model.write_text(json.dumps(given | {"ratios": [1.0, 4.0]}))
    calm, rough = (
        run_json(capsys, "run", *SHORT, "--policy", "fcfs", "--step-model", str(model), *flags)["runs"][0]["all_seeds"]
        for flags in ((), ("--scatter",))
    )
    assert rough["tpot_s"][0] > 2 * calm["tpot_s"][0]


def test_calibration_says_what_it_found(tmp_path: Path, capsys: Capture) -> None:
    assert main(["sim", "calibrate", str(step_log(tmp_path / "steps.jsonl"))]) == 0
    printed = capsys.readouterr().out
    assert "a prefilled token" in printed and "drift: none" in printed and "not written" in printed


def test_an_engine_that_slows_down_is_drift(tmp_path: Path, capsys: Capture) -> None:
    found = run_json(capsys, "calibrate", str(step_log(tmp_path / "steps.jsonl", slower_after=300)))
    assert found["drift"]["alarms"] >= 1
    assert found["drift"]["first_alarm_step"] >= 300


def test_logs_of_different_engines_are_not_one_model(tmp_path: Path, capsys: Capture) -> None:
    logs = [step_log(tmp_path / "a.jsonl"), step_log(tmp_path / "b.jsonl", num_blocks=2000)]
    assert main(["sim", "calibrate", *map(str, logs)]) == 2
    assert "num_blocks is 2000, in" in capsys.readouterr().err
