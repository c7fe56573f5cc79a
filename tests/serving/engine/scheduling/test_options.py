"""What the scheduler is told, and how its counters come back."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from burrstone.batching.core.step_model import DEFAULT_STEP_MODEL
from burrstone.serving.config import ConfigError, SchedulerConfig
from burrstone.serving.engine.scheduling.metrics import stat_loggers
from burrstone.serving.engine.scheduling.options import CPU_STEP_MODEL, SchedulerOptions
from burrstone.serving.engine.scheduling.stats import SchedulerCounters
from burrstone.serving.metrics import SchedulerMetrics


def test_options_survive_the_way_through_the_environment(tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    model.write_text(
        json.dumps({"base_s": 0.1, "prefill_token_s": 0, "decode_seq_s": 0, "kv_token_s": 0, "attention_pair_s": 0})
    )
    config = SchedulerConfig(policy="vtc > slo", knobs={"aging_s": 5.0}, step_log=tmp_path / "log", step_model=model)
    options = SchedulerOptions.of(config, "cpu")
    assert SchedulerOptions.from_environment(options.environment()) == options
    assert options.model.base_s == 0.1 and options.spec.knobs.aging_s == 5.0
    assert SchedulerOptions.from_environment({}) == SchedulerOptions()


def test_each_profile_has_a_step_model_of_its_own() -> None:
    models = [SchedulerOptions.of(SchedulerConfig(), profile).model for profile in ("cpu", "cuda")]
    assert models == [CPU_STEP_MODEL, DEFAULT_STEP_MODEL]


@pytest.mark.parametrize("text", ["", "[]", '{"base_s": 1}', '{"model": {"base_s": -1}}'])
def test_a_step_model_that_is_none_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"scheduler\.step_model .*model\.json.* `burrstone sim calibrate`"):
        SchedulerOptions.of(SchedulerConfig(step_model=path), "cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "slow"}, "did you mean 'slo'"),
        ({"knobs": {"ageing_s": 1}}, "did you mean 'aging_s'"),
        ({"knobs": {"relegated_every": 1.5}}, "relegated_every must be a whole number"),
        ({"knobs": {"aging_s": -1}}, "aging_s must be a number >= 0"),
    ],
)
def test_a_wrong_policy_is_refused_with_the_fix(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SchedulerConfig.model_validate(values)


def test_the_default_needs_nothing_of_ours_in_the_engine(tmp_path: Path) -> None:
    assert SchedulerConfig().stock
    assert not SchedulerConfig(policy="slo").stock
    assert not SchedulerConfig(step_log=tmp_path / "log").stock


def test_counters_become_metrics_and_are_hidden_from_vllms_loggers() -> None:
    registry = CollectorRegistry()
    logger = stat_loggers(SchedulerMetrics(registry, "slo"))[0](None)
    for counters in (SchedulerCounters(steps=1, hook_ns=100_000, preemptions=2), SchedulerCounters(2, 900, 1, 3, 4, 5)):
        stats = SimpleNamespace(num_kv_fetch_reqs_by_stage={"theirs": 7})
        counters.attach(stats)
        logger.record(stats, None)
        assert stats.num_kv_fetch_reqs_by_stage == {"theirs": 7}
    logger.record(SimpleNamespace(num_kv_fetch_reqs_by_stage={}), None)
    logger.record(None, None)
    values = {
        name: registry.get_sample_value(f"burrstone_scheduler_{name}")
        for name in ("fallback_total", "preemptions_total", "relegated_total", "kept_blocks", "hook_seconds_count")
    }
    assert values == {
        "fallback_total": 1,
        "preemptions_total": 3,
        "relegated_total": 4,
        "kept_blocks": 5,
        "hook_seconds_count": 2,
    }
    assert registry.get_sample_value("burrstone_scheduler_info", {"policy": "slo"}) == 1
