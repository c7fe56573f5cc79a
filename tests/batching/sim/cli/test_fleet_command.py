"""`burrstone sim fleet` and several engines: the smallest fleet, its cost, and graphs to compile."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burrstone.batching.errors import UsageError
from burrstone.batching.routing.spec import router_policy
from burrstone.batching.sim.cli.neuron import buckets
from burrstone.batching.sim.cli.serve import serve
from burrstone.batching.sim.run import simulate
from burrstone.batching.sim.spec import EngineSpec
from burrstone.batching.sim.traffic.workload_types import Workload
from burrstone.serving.cli.main import main

Capture = pytest.CaptureFixture[str]
TRAFFIC = ["--workload", "chat", "--rate", "60", "--duration-s", "10", "--seeds", "1,2,3"]


def fleet_json(capsys: Capture, *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["sim", "fleet", *arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: Capture, *arguments: str) -> str:
    """What is said of a command that is refused, by its parser or by what it runs."""
    try:
        code = main(["sim", "fleet", *arguments])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2
    return capsys.readouterr().err


def test_the_smallest_fleet_keeps_the_goal_and_one_engine_less_does_not(capsys: Capture) -> None:
    (plan,) = fleet_json(capsys, *TRAFFIC, "--policy", "fcfs")["plans"]
    assert plan["keeps_goal"]
    assert plan["engines"] > 1
    lows = {tried["engines"]: tried["low"] for tried in plan["tried"]}
    assert lows[plan["engines"]] >= 0.95 > lows[plan["engines"] - 1]
    (one_less,) = fleet_json(capsys, *TRAFFIC, "--policy", "fcfs", "--engines", str(plan["engines"] - 1), code=1)[
        "plans"
    ]
    assert not one_less["keeps_goal"]


def test_the_ranking_begins_with_the_cheapest_and_counts_accelerators(capsys: Capture) -> None:
    money = ["--price", "2", "--accelerators-per-engine", "8"]
    plans = fleet_json(capsys, *TRAFFIC, "--policy", "fcfs,slo", *money)["plans"]
    assert [plan["engines"] for plan in plans] == sorted(plan["engines"] for plan in plans)
    for plan in plans:
        assert plan["accelerators"] == 8 * plan["engines"]
        assert plan["hourly"] == 16 * plan["engines"]
        per_s = plan["all_seeds"]["output_tokens_per_s"]
        assert plan["per_million_output_tokens"] == pytest.approx(plan["hourly"] / 3600 / per_s * 1e6)


def test_a_goal_that_no_fleet_keeps_is_1_and_says_so(capsys: Capture) -> None:
    command = ["sim", "fleet", *TRAFFIC, "--policy", "fcfs", "--ttft-s", "0.000001", "--max-engines", "4"]
    assert main(command) == 1
    assert "No fleet up to 4 engines keeps 95 %" in capsys.readouterr().out


def test_the_report_answers_the_question(tmp_path: Path, capsys: Capture) -> None:
    report = tmp_path / "fleet.html"
    main(["sim", "fleet", *TRAFFIC, "--policy", "fcfs", "--price", "2", "--neuron", "--report", str(report)])
    printed, html = capsys.readouterr().out, report.read_text()
    assert "fcfs, round-robin keeps the goal with" in printed
    for part in (
        "The smallest fleet for chat",
        "Attainment over engines",
        "Attainment over cost an hour",
        "dp-buckets",
    ):
        assert part in html


def requests(size: int) -> Workload:
    rng = np.random.default_rng(1)
    arrival_s = np.sort(rng.uniform(0, 10, size))
    return Workload(arrival_s, rng.integers(10, 900, size), rng.integers(1, 60, size))


def test_round_robin_gives_each_engine_every_nth_request() -> None:
    workload, spec = requests(60), EngineSpec()
    served = serve("macro", spec, router_policy("round-robin"), 3, workload, lambda ended: None)
    for engine in range(3):
        rows = np.arange(engine, 60, 3)
        assert served.ended_s[rows].tolist() == simulate(spec, workload.take(rows)).ended_s.tolist()


def test_a_program_stays_on_its_engine() -> None:
    after = np.where(np.arange(12) % 4 == 0, -1, np.arange(12) - 1)
    workload = Workload(np.zeros(12), np.full(12, 100), np.full(12, 5), after=after, program=np.arange(12) // 4)
    served = serve("macro", EngineSpec(), router_policy("round-robin"), 3, workload, lambda ended: None)
    assert served.finished.all()
    # Three engines do alike what each of three programs asks.
    assert len({tuple(served.ended_s[first : first + 4].tolist()) for first in (0, 4, 8)}) == 1


@pytest.mark.parametrize("router", ["least-load", "p2c", "session"])
def test_a_router_that_looks_at_its_engines_serves_all(router: str) -> None:
    workload, arrived = requests(60), list[int]()
    served = serve("macro", EngineSpec(), router_policy(router), 3, workload, arrived.append)
    assert served.finished.all()
    assert served.output_tokens.tolist() == workload.output_tokens.tolist()
    assert served.asked_tokens >= workload.input_tokens.sum()
    assert 0 < served.busy_s <= 3 * served.makespan_s
    assert arrived[-1] == 60


def test_a_router_that_is_not_simulated_is_refused() -> None:
    with pytest.raises(UsageError, match="--router min-ttft: min-ttft routes by prefixes, which are not followed"):
        serve("macro", EngineSpec(), router_policy("min-ttft"), 2, requests(4), lambda ended: None)


def test_graphs_are_judged_on_prompts_that_they_were_not_chosen_for() -> None:
    lengths = np.array([100, 300] * 50 + [100, 700] * 50)
    workload = Workload(np.linspace(0.0, 10.0, 200), lengths, np.ones(200, np.int64))
    stock, ours = buckets(workload, graphs=3, max_model_len=1024)
    assert stock["bounds"] == [256, 512, 1024]
    assert ours["bounds"] == [128, 384, 1024]
    assert ours["padding"] == pytest.approx((128 + 1024) / 800)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--router", "p2x"], "--router: router.policy: no policy 'p2x'"),
        (["--neuron", "--max-model-len", "16"], "--max-model-len 16: the traffic has a prompt of"),
        (["--graphs", "0"], "argument --graphs: '0' must be an integer >= 1"),
        (["--polcy", "slo"], "did you mean --policy?"),
    ],
)
def test_bad_input_is_2_with_the_fix(arguments: list[str], message: str, capsys: Capture) -> None:
    short = ["--rate", "3", "--duration-s", "5", "--policy", "fcfs"]
    assert message in refusal(capsys, *short, *arguments)


CHANGING = [
    *("--workload", "chat", "--rate", "40", "--duration-s", "60", "--policy", "fcfs"),
    *("--engines", "6", "--no-prefix-caching"),
]


def test_a_failure_is_felt_until_its_queue_is_gone(capsys: Capture) -> None:
    # 10 s without engines owe 400 requests; who is back has them served before the traffic ends.
    (whole,) = fleet_json(capsys, *CHANGING)["plans"]
    (broken,) = fleet_json(capsys, *CHANGING, "--fail", "10:10:6", code=1)["plans"]
    assert whole["recovery_s"] is None
    assert whole["recovered"] is None
    assert broken["recovered"]
    assert 10 < broken["recovery_s"] < 40
    assert broken["attainment"]["mean"] < whole["attainment"]["mean"]
    assert broken["all_seeds"]["requests"] == whole["all_seeds"]["requests"]
    assert broken["engines"] == broken["mean_engines"] == 6


def test_a_failure_to_the_end_is_never_over(capsys: Capture) -> None:
    (plan,) = fleet_json(capsys, *CHANGING, "--fail", "10:50:5", code=1)["plans"]
    assert (plan["recovered"], plan["recovery_s"]) == (False, None)


def test_failures_at_the_same_time_take_different_engines(capsys: Capture) -> None:
    (apart,) = fleet_json(capsys, *CHANGING, "--fail", "10:10:4", "--fail", "10:10:2", code=1)["plans"]
    (together,) = fleet_json(capsys, *CHANGING, "--fail", "10:10:6", code=1)["plans"]
    assert apart["all_seeds"] == together["all_seeds"]


def test_the_smallest_fleet_is_larger_than_what_fails(capsys: Capture) -> None:
    traffic = ["--workload", "chat", "--rate", "2", "--duration-s", "10", "--policy", "fcfs", "--no-prefix-caching"]
    (plan,) = fleet_json(capsys, *traffic, "--fail", "5:1:3")["plans"]
    assert min(tried["engines"] for tried in plan["tried"]) == 4


def test_autoscaling_costs_what_is_up(capsys: Capture) -> None:
    scaled = ["--autoscale", "8", "--start-s", "1", "--price", "2"]
    plans = []
    for more in ([], ["--least-engines", "4"], ["--fail", "50:100:1"]):
        main(["sim", "fleet", *CHANGING, *scaled, *more, "--json"])
        plans += json.loads(capsys.readouterr().out)["plans"]
    alone, least, broken = plans
    assert 1 < alone["mean_engines"] < 6
    assert 4 <= least["mean_engines"] <= 6
    assert broken["mean_engines"] <= 6
    assert broken["mean_engines"] == pytest.approx(alone["mean_engines"], rel=0.2)
    for plan in plans:
        assert plan["hourly"] == pytest.approx(2 * plan["mean_engines"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fail", "10"], "must be AT_S:FOR_S"),
        (["--fail", "10:5:0"], "must be an integer >= 1: engines"),
        (["--fail", "60:5"], "--fail 60: the traffic ends at 60 s; see --duration-s"),
        (["--fail", "10:5:7"], "--fail, --autoscale: fleet: a failure names engines beyond the 6 there are"),
        (["--fail", "10:5", "--prefix-caching"], "turn prefix caching off (--no-prefix-caching)"),
        (["--autoscale", "0"], "must be a number > 0: requests that an engine should hold"),
        (["--autoscale", "8", "--least-engines", "7"], "--autoscale: say with --engines how many there may be at most"),
        (["--start-s", "8"], "--start-s: only with --autoscale"),
    ],
)
def test_changes_that_cannot_be_are_said(flags: list[str], message: str, capsys: Capture) -> None:
    assert message in " ".join(refusal(capsys, *CHANGING, *flags).split())
