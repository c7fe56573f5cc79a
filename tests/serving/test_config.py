"""The configuration: file and flags into one frozen object, every mistake answered with its key, the rule and the fix."""

import types
import typing
from pathlib import Path
from typing import Any

import annotated_types
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from burrstone.batching.admission.registry import ADMISSION_NAMES
from burrstone.serving.config import ConfigError, LoraModule, SchedulerConfig, ServeConfig
from burrstone.serving.config_load import Option, load_config, options


def from_yaml(folder: Path, text: str, overrides: dict[str, Any] | None = None) -> ServeConfig:
    file = folder / "serve.yaml"
    file.write_text(text)
    return load_config(file, overrides).config


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("model: owner/name\nhttp: {port: 1, idle_timeout_s: 5}\nengine: {lora: {max_rank: 32}}\n")
    loaded = load_config(file, {"http.port": 2, "engine.speculative.method": "ngram"})
    config = loaded.config
    assert (config.model, config.http.port, config.http.idle_timeout_s, config.grpc.port) == ("owner/name", 2, 5, 9000)
    assert config.engine.speculative is not None and config.engine.speculative.num_tokens == 4
    assert loaded.origins == {
        "model": str(file),
        "http.port": "command line",
        "http.idle_timeout_s": str(file),
        "engine.lora.max_rank": str(file),
        "engine.speculative.method": "command line",
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "engine:\n  speculative: null\n"])
def test_an_empty_file_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert from_yaml(tmp_path, text) == ServeConfig()


def test_a_flag_opens_a_section_that_the_file_turned_off(tmp_path: Path) -> None:
    config = from_yaml(tmp_path, "engine: {speculative: null}", {"engine.speculative.method": "ngram"})
    assert config.engine.speculative is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: x", "unknown key 'modle'; did you mean 'model'?"),
        ("http: {prot: 1}", "unknown key 'http.prot'; did you mean 'http.port'?"),
        ("engine: {lora: {max_rnk: 8}}", "unknown key 'engine.lora.max_rnk'; did you mean 'engine.lora.max_rank'?"),
        ("tensor_parallel_size: 2", "unknown key 'tensor_parallel_size'; did you mean 'engine.tensor_parallel_size'?"),
        ("zzz: 1", "unknown key 'zzz'; valid keys here: model, served_names"),
        ("1: 2", "unknown key '1'"),
        (
            "engine: {lora: {modules: [{name: a, paht: /a}]}}",
            "unknown key 'engine.lora.modules[0].paht'; did you mean 'engine.lora.modules[0].path'?",
        ),
        (
            "scheduler: {tenants: {anna: {wieght: 2}}}",
            "unknown key 'scheduler.tenants.anna.wieght'; did you mean 'scheduler.tenants.anna.weight'?",
        ),
    ],
)
def test_unknown_keys_get_the_nearest_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_yaml(tmp_path, text)
    assert f"{tmp_path / 'serve.yaml'}: {message}" in str(refused.value)


def test_unknown_keys_of_callers_are_refused_too() -> None:
    with pytest.raises(ConfigError, match=r"command line: unknown key 'http\.prot'; did you mean 'http\.port'\?"):
        load_config(None, {"http.prot": 1})


@pytest.mark.parametrize(
    ("text", "key", "rule"),
    [
        ("http: {port: 70000}", "http.port", "less than or equal to 65535, got 70000"),
        ("http: {port: many}", "http.port", "valid integer"),
        ("http: 8000", "http", "got 8000"),
        ("engine: {kind: tgi}", "engine.kind", "'vllm' or 'scripted', got 'tgi'"),
        ("engine: {lora: {max_rank: 9}}", "engine.lora.max_rank", "8, 16, 32"),
        ("engine: {lora: {modules: [{name: a}]}}", "engine.lora.modules.0.path", "Field required"),
        ("engine: {lora: {modules: [{name: a b, path: /a}]}}", "engine.lora.modules.0.name", "pattern"),
        ("engine: {speculative: {num_tokens: 4}}", "engine.speculative.method", "Field required"),
        ("engine: {speculative: {method: eagle}}", "engine.speculative", "speculative.model is required"),
        ("engine: {vllm_args: {swap_space: 2020-01-01}}", "engine.vllm_args.swap_space", "valid JSON"),
        ("engine: {vllm_args: {a: .inf}}", "engine.vllm_args.a.float", "finite"),
        ("tls: {cert: a.pem}", "tls", "tls.cert and tls.key are set together"),
        ("tls: {client_ca: a.pem}", "tls", "tls.client_ca needs tls.cert and tls.key"),
        ("trust_remote_code: true", "trust_remote_code", "False"),
        ("served_names: ['a b']", "served_names.0", "pattern"),
        ("limits: {request_timeout_s: .inf}", "limits.request_timeout_s", "finite"),
        ("limits: {request_timeout_s: .nan}", "limits.request_timeout_s", "finite"),
        ("scheduler: {policy: vtc > slow}", "scheduler", "no tier 'slow' (one of fcfs"),
        ("scheduler: {admission: predict}", "scheduler.admission", "'predictive' or 'brownout', got 'predict'"),
        ("scheduler: {admission: token-bucket}", "scheduler", "set both, or neither"),
        ("scheduler: {default: {tokens_per_s: 5}}", "scheduler", "(admission is 'open')"),
        ("scheduler: {admission: predictive}", "scheduler", "needs ttft_s"),
        ("scheduler: {default: {burst_tokens: 5}}", "scheduler.default", "burst_tokens needs tokens_per_s"),
        ("scheduler: {tenants: {anna: {weight: 0}}}", "scheduler.tenants.anna.weight", "greater than 0"),
        ("scheduler: {max_running: 0}", "scheduler.max_running", "greater than or equal to 1"),
        ("router: {policy: random}", "router.policy", "'round-robin', 'least-load', 'p2c', 'session' or 'min-ttft'"),
    ],
)
def test_wrong_values_name_the_key_and_the_rule(tmp_path: Path, text: str, key: str, rule: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_yaml(tmp_path, text)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{key}: ")
    assert rule in line


def test_a_wrong_value_says_where_it_came_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        from_yaml(tmp_path, "http: {port: -1}", {"grpc.port": -2})
    first, second = str(refused.value).splitlines()
    assert first.startswith("http.port: ") and first.endswith(f"got -1 (from {tmp_path / 'serve.yaml'})")
    assert second.startswith("grpc.port: ") and second.endswith("got -2 (from command line)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is not valid YAML"),
        (b"- a\n", "must hold a mapping of keys to values, not list"),
        (b"\xff\xfe", "is not valid YAML"),
        (b"model: a\x00b", "is not valid YAML"),
        (b"!!python/object:os.system x", "is not valid YAML"),
    ],
)
def test_files_that_hold_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(file)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration file .*nowhere\.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_it_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ServeConfig().http.port = 1  # type: ignore[misc]


def test_every_key_is_described() -> None:
    assert [option.key for option in options() if not option.field.description] == []


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_TEXT = st.text(max_size=20)
_PATHS = _TEXT.map(lambda text: Path(text.replace("\0", "")))
_BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    str: _TEXT,
    Path: _PATHS,
    dict[str, Any]: st.dictionaries(_TEXT, _JSON, max_size=3),
    tuple[str, ...]: st.lists(_TEXT, max_size=3),
    tuple[LoraModule, ...]: st.lists(
        st.fixed_dictionaries({"name": st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True), "path": _PATHS}),
        max_size=2,
    ),
}


def _values(option: Option) -> st.SearchStrategy[Any]:
    """Valid values of a key, within the bounds its field declares."""
    annotation = option.field.annotation
    if isinstance(annotation, types.UnionType):
        return st.none() | _of(next(part for part in typing.get_args(annotation) if part is not type(None)), option)
    return _of(annotation, option)


def _of(annotation: Any, option: Option) -> st.SearchStrategy[Any]:
    bounds = {type(rule): rule for rule in option.field.metadata}
    low = getattr(bounds.get(annotated_types.Ge), "ge", None)
    high = getattr(bounds.get(annotated_types.Le), "le", None)
    above = getattr(bounds.get(annotated_types.Gt), "gt", None)
    if typing.get_origin(annotation) is typing.Literal:
        return st.sampled_from(typing.get_args(annotation))
    if annotation is int:
        return st.integers(low, high)
    if annotation is float:
        low = above if low is None else low
        return st.floats(low, exclude_min=above is not None, allow_nan=False, allow_infinity=False)
    if option.key == "served_names":
        return st.lists(st.from_regex(r"[A-Za-z0-9._/:@-]{1,128}", fullmatch=True), max_size=2)
    if option.key == "engine.vllm_args":
        return _BY_TYPE[dict[str, Any]]
    return _BY_TYPE[annotation]


# Keys whose validity hangs on others; the cases above hold them.
_TIED = ("engine.speculative.", "scheduler.", "tls.")
_FREE = {option.key: _values(option) for option in options() if not option.key.startswith(_TIED)}
_OVERRIDES = st.fixed_dictionaries({}, optional=_FREE)


def test_a_tenants_terms_are_its_own_or_the_default(tmp_path: Path) -> None:
    text = "scheduler: {admission: token-bucket, tenants: {anna: {weight: 3, tokens_per_s: 9}}, default: {priority: 1}}"
    config = from_yaml(tmp_path, text)
    scheduler = ServeConfig.model_validate_json(config.model_dump_json()).scheduler
    assert scheduler == config.scheduler
    assert (scheduler.terms("anna").weight, scheduler.terms("anna").priority) == (3, 0)
    assert (scheduler.terms("bob").weight, scheduler.terms("bob").priority) == (1, 1)
    assert scheduler.priorities() == {0, 1}


def test_every_admission_policy_can_be_configured() -> None:
    assert typing.get_args(SchedulerConfig.model_fields["admission"].annotation) == ADMISSION_NAMES


@given(_OVERRIDES)
@settings(deadline=None, max_examples=50)
def test_it_survives_the_way_to_the_replica(overrides: dict[str, Any]) -> None:
    """The replica gets it as JSON: what was accepted here must be the same there."""
    config = load_config(None, overrides).config
    assert ServeConfig.model_validate_json(config.model_dump_json()) == config


@given(_OVERRIDES)
@settings(deadline=None, max_examples=50)
def test_a_dumped_configuration_is_a_file_that_loads(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any]
) -> None:
    config = load_config(None, overrides).config
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=False))
    assert load_config(file).config == config
