"""What we rely on in vLLM, a symbol at a time: a bump that moves or changes one fails here, by name."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import vllm as vllm_package
from contracts import Contracts, source
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import utils as engine_utils
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.metrics.loggers import StatLoggerManager

from burrstone.serving.api import chat, completions, embeddings, tokens
from burrstone.serving.api.base import from_vllm_error
from burrstone.serving.config import LimitsConfig
from burrstone.serving.engine import vllm_compat as vllm

LIMITS = LimitsConfig()
contract = Contracts()


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def calls_in(function: Any) -> list[ast.Call]:
    tree = ast.parse(source(function))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def declared(model: Any) -> set[str]:
    """Fields and aliases. vLLM's request models allow extras, so a renamed field would be ignored in silence."""
    return set(model.model_fields) | {field.alias for field in model.model_fields.values() if field.alias}


def test_every_symbol_has_a_contract() -> None:
    assert contract.covered == set(vllm.__all__)


@contract("AsyncEngineArgs")
def test_engine_arguments_have_the_fields_we_set() -> None:
    names = {field.name for field in dataclasses.fields(vllm.AsyncEngineArgs)}
    assert names >= {"model", "served_model_name", "kv_cache_memory_bytes", "speculative_config", "max_logprobs"}
    assert names >= {"scheduler_cls", "scheduling_policy"}
    assert callable(vllm.AsyncEngineArgs.create_engine_config)
    assert vllm.AsyncEngineArgs(model="owner/name").trust_remote_code is False


@contract("StatLoggerBase", "AsyncLLM")
def test_our_stat_logger_sees_statistics_before_vllms_own() -> None:
    assert vllm.StatLoggerBase.__abstractmethods__ == {"__init__", "record", "log_engine_initialized"}
    assert list(parameters(vllm.StatLoggerBase.record))[1:3] == ["scheduler_stats", "iteration_stats"]
    assert "stat_loggers" in parameters(vllm.AsyncLLM.from_engine_args)
    made = textwrap.dedent(inspect.getsource(StatLoggerManager.__init__))
    assert made.index("extend(custom_stat_loggers)") < made.index(
        "stat_logger_factories.append(default_logger_factory)"
    )
    assert made.index("for stat_logger_factory in") < made.index("PrometheusStatLogger(vllm_config")


@contract("AsyncLLM")
def test_the_engine_has_what_the_seam_calls() -> None:
    generate = parameters(vllm.AsyncLLM.generate)
    assert list(generate)[:4] == ["self", "prompt", "sampling_params", "request_id"]
    assert {"priority", "session_id", "lora_request"} <= generate.keys()
    assert inspect.isasyncgenfunction(vllm.AsyncLLM.generate) and inspect.isasyncgenfunction(vllm.AsyncLLM.encode)
    assert list(parameters(vllm.AsyncLLM.encode))[:2] == ["self", "prompt"]
    assert "priority" in parameters(vllm.AsyncLLM.encode)
    assert list(parameters(vllm.AsyncLLM.abort)) == ["self", "request_id", "internal"]
    assert inspect.iscoroutinefunction(vllm.AsyncLLM.abort)
    assert inspect.iscoroutinefunction(vllm.AsyncLLM.get_supported_tasks)
    assert isinstance(inspect.getattr_static(vllm.AsyncLLM, "errored"), property)
    assert "timeout" in parameters(vllm.AsyncLLM.shutdown)
    assert next(iter(parameters(vllm.AsyncLLM.from_engine_args))) == "engine_args"
    assert {"vllm_config", "disable_log_stats"} <= parameters(vllm.AsyncLLM.from_vllm_config).keys()


def _chat_request() -> dict[str, Any]:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "logprobs": True,
        "top_logprobs": 2,
        "max_completion_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_SAMPLING,
    }
    return chat.to_vllm(chat.parse(body, LIMITS, "reject"))


def _completion_request() -> dict[str, Any]:
    body = {"model": "m", "prompt": "x", "echo": True, "logprobs": 2, "max_tokens": 5, **_SAMPLING}
    return completions.to_vllm(completions.parse(body, LIMITS, "reject"))


_SAMPLING: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 1,
    "stop": ["a"],
    "stop_token_ids": [3],
    "n": 2,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1.0},
    "min_tokens": 1,
    "ignore_eos": True,
    "bad_words": ["b"],
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "return_token_ids": True,
}


@contract("ChatCompletionRequest", "CompletionRequest")
@pytest.mark.parametrize(
    ("model", "build"),
    [(vllm.ChatCompletionRequest, _chat_request), (vllm.CompletionRequest, _completion_request)],
    ids=["chat", "completions"],
)
def test_generation_requests_know_every_field_we_send(model: Any, build: Callable[[], dict[str, Any]]) -> None:
    kwargs = build()
    assert kwargs.keys() <= declared(model)
    request = model(**kwargs)
    params = request.to_sampling_params(16, {})
    sent = {name: getattr(params, name) for name in ("temperature", "top_p", "top_k", "seed", "n", "min_tokens")}
    assert sent == {name: _SAMPLING[name] for name in sent}
    assert (params.max_tokens, params.logprobs, params.bad_words) == (16, 2, ["b"])


@contract("ChatCompletionRequest", "CompletionRequest")
@pytest.mark.parametrize("wanted", [{"regex": "a+"}, {"choice": ["a", "b"]}, {"grammar": 'root ::= "a"'}])
def test_structured_output_reaches_the_sampling_parameters(wanted: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "structured_outputs": wanted}
    request = vllm.ChatCompletionRequest(**chat.to_vllm(chat.parse(body, LIMITS, "reject")))
    structured = request.to_sampling_params(16, {}).structured_outputs
    assert {name: getattr(structured, name) for name in wanted} == wanted
    assert structured._backend is None


@contract("EmbeddingCompletionRequest")
def test_embedding_requests_know_every_field_we_send() -> None:
    body = {"model": "m", "input": ["x"], "encoding_format": "base64", "dimensions": 8, "user": "u"}
    kwargs = embeddings.to_vllm(embeddings.parse(body, LIMITS, "reject"))
    assert kwargs.keys() <= declared(vllm.EmbeddingCompletionRequest)
    assert vllm.EmbeddingCompletionRequest(**kwargs).input == ["x"]


@contract("TokenizeChatRequest", "TokenizeCompletionRequest", "DetokenizeRequest")
def test_token_requests_know_every_field_we_send() -> None:
    shared = {"model": "m", "add_special_tokens": False, "return_token_strs": True}
    for model, body in (
        (vllm.TokenizeCompletionRequest, {"prompt": "x"}),
        (
            vllm.TokenizeChatRequest,
            {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": True, "tools": [_TOOL]},
        ),
    ):
        kwargs = tokens.tokenize_to_vllm(tokens.parse_tokenize(shared | body, LIMITS, "reject"))
        assert kwargs.keys() <= declared(model)
        model(**kwargs)
    detokenize = tokens.detokenize_to_vllm(tokens.parse_detokenize({"model": "m", "tokens": [1]}, LIMITS, "reject"))
    assert vllm.DetokenizeRequest(**detokenize).tokens == [1]


_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@contract("EngineCoreOutput", "EngineCoreOutputs", "FinishReason")
def test_core_outputs_have_the_fields_a_scripted_core_fills() -> None:
    output = vllm.EngineCoreOutput(request_id="r", new_token_ids=[1])
    for name in ("new_logprobs", "new_prompt_logprobs_tensors", "prefill_stats", "finish_reason", "stop_reason"):
        assert getattr(output, name) is None
    assert vllm.EngineCoreOutputs(outputs=[output]).outputs == [output]
    assert {vllm.FinishReason[name] for name in ("STOP", "LENGTH", "ERROR")} < set(vllm.FinishReason)


@contract("EngineDeadError", "GracefulHTTPError", "QueueOverflowError", "VLLMClientError")
def test_errors_the_seam_tells_apart() -> None:
    assert issubclass(vllm.QueueOverflowError, vllm.GracefulHTTPError)
    assert str(vllm.QueueOverflowError())
    assert str(vllm.EngineDeadError())
    assert not issubclass(vllm.EngineDeadError, vllm.GracefulHTTPError | vllm.VLLMClientError)
    assert not issubclass(vllm.GracefulHTTPError, vllm.VLLMClientError)


@contract("RequestOutputKind")
def test_whole_answers_are_told_from_streams() -> None:
    assert vllm.RequestOutputKind.FINAL_ONLY is not vllm.RequestOutputKind.DELTA


@contract("create_error_response", "ErrorResponse")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (vllm.VLLMClientError("no"), HTTPStatus.BAD_REQUEST),
        (ValueError("no"), HTTPStatus.BAD_REQUEST),
        (RuntimeError("no"), HTTPStatus.INTERNAL_SERVER_ERROR),
        (vllm.EngineDeadError(), HTTPStatus.INTERNAL_SERVER_ERROR),
        (vllm.QueueOverflowError(), HTTPStatus.SERVICE_UNAVAILABLE),
    ],
)
def test_error_responses_carry_the_status_as_a_number(error: Exception, status: int) -> None:
    response = vllm.create_error_response(error)
    assert isinstance(response, vllm.ErrorResponse)
    raw = response.model_dump()
    assert raw["error"].keys() >= {"message", "type", "param", "code"}
    assert raw["error"]["code"] == status
    assert from_vllm_error(raw).message


@contract("FrontendArgs", "frontend_arguments", "LoRAModulePath")
def test_front_end_arguments_are_defaults_then_the_engine_then_ours() -> None:
    front = vars(vllm.FrontendArgs())
    ours = ("lora_modules", "chat_template", "enable_auto_tool_choice", "tool_call_parser")
    assert {*ours, "enable_prompt_tokens_details"} <= front.keys()
    assert front["trust_request_chat_template"] is False and front["trust_request_mm_kwargs"] is False
    module = vllm.LoRAModulePath(name="a", path="/a")
    engine = vllm.AsyncEngineArgs(model="owner/name", enable_log_requests=True)
    built = vllm.frontend_arguments(engine, lora_modules=[module], enable_log_requests=False)
    assert (built.model, built.lora_modules, built.enable_log_requests) == ("owner/name", [module], False)
    assert built.tool_call_parser is None


@contract("build_handlers")
def test_serving_objects_are_built_under_the_names_we_read() -> None:
    app_state = importlib.import_module("vllm.entrypoints.launchers.api_server.app_state")
    assert list(parameters(app_state.init_app_state))[:4] == ["engine_client", "state", "args", "supported_tasks"]
    for module, names in {
        "vllm.entrypoints.launchers.api_server.app_state": ("openai_serving_models", "serving_tokenization"),
        "vllm.entrypoints.generate.api_router": ("openai_serving_chat", "openai_serving_completion"),
        "vllm.entrypoints.pooling.factories": ("serving_embedding",),
    }.items():
        assert set(names) <= _assigned_on_state(importlib.import_module(module))


def _assigned_on_state(module: ModuleType) -> set[str]:
    targets = [
        target
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Assign)
        for target in node.targets
    ]
    return {
        target.attr
        for target in targets
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "state"
    }


@contract("check_grammar", "check_grammars_once")
def test_a_grammar_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    original = SamplingParams._validate_structured_outputs
    names = ["self", "model_config", "structured_outputs_config", "tokenizer"]
    assert list(parameters(original)) == names
    (call,) = (c for c in calls_in(SamplingParams.verify) if ast.unparse(c.func) == "self._validate_structured_outputs")
    assert [ast.unparse(argument) for argument in call.args] == names[1:] and not call.keywords
    checked = []
    monkeypatch.setattr(SamplingParams, "_validate_structured_outputs", lambda self, *args: checked.append(args))
    vllm.check_grammars_once()
    vllm.check_grammars_once()
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+"))
    inputs = SimpleNamespace(model_config="model", structured_outputs_config="outputs", tokenizer="tokenizer")
    vllm.check_grammar(SimpleNamespace(input_processor=inputs), params)
    assert checked == [("model", "outputs", "tokenizer")]
    assert params.structured_outputs is not None
    params.structured_outputs._backend = "xgrammar"
    params._validate_structured_outputs("model", "outputs", "tokenizer")
    assert len(checked) == 1


@contract("core_client")
def test_the_engine_asks_a_static_method_for_its_core_by_keyword() -> None:
    client = EngineCoreClient
    assert isinstance(inspect.getattr_static(client, "make_async_mp_client"), staticmethod)
    (call,) = (c for c in calls_in(vllm.AsyncLLM.__init__) if ast.unparse(c.func).endswith("make_async_mp_client"))
    assert not call.args and call.keywords
    original = client.make_async_mp_client
    core = object()
    with pytest.raises(RuntimeError, match="inside"), vllm.core_client(core):
        assert client.make_async_mp_client(vllm_config=None, executor_class=None, anything=1) is core
        raise RuntimeError("inside")
    assert client.make_async_mp_client is original


@contract("core_from_forkserver")
def test_the_core_is_started_through_a_context_looked_up_by_name() -> None:
    manager = engine_utils.CoreEngineProcManager
    assert "get_mp_context" in {ast.unparse(call.func) for call in calls_in(manager.__init__)}
    original = engine_utils.get_mp_context
    with pytest.raises(RuntimeError, match="inside"), vllm.core_from_forkserver():
        assert engine_utils.get_mp_context().get_start_method() == "forkserver"
        raise RuntimeError("inside")
    assert engine_utils.get_mp_context is original


@contract("ebnf")
@pytest.mark.parametrize("grammar", ['root ::= "a" | "b"', 'start: "a" | "b"'], ids=["ebnf", "lark"])
def test_grammars_of_both_kinds_become_rules_from_root(grammar: str) -> None:
    assert vllm.ebnf(grammar).startswith("root ::=")


@contract("logprobs_lists", "logprobs_tensors")
@pytest.mark.parametrize("num_top", [0, 1, 5])
@pytest.mark.parametrize("tokens", [[7], [0, 3, 3], []])
def test_logprobs_name_the_sampled_token_first(tokens: list[int], num_top: int) -> None:
    lists = vllm.logprobs_lists(tokens, num_top, -0.25)
    tensors = vllm.logprobs_tensors(tokens, num_top, -0.25)
    assert list(lists.sampled_token_ranks) == [1] * len(tokens)
    for token, ids, values in zip(tokens, lists.logprob_token_ids, lists.logprobs, strict=True):
        assert (ids[0], values[0]) == (token, np.float32(-0.25))
        assert len(ids) == len(values) == num_top + 1
        # vLLM reports the sampled token once more among the likeliest.
        assert len(set(ids.tolist())) == max(1, num_top)
        assert (np.diff(values[1:]) < 0).all()
    assert tensors.logprob_token_ids.shape == tensors.logprobs.shape == (len(tokens), num_top + 1)
    assert (tensors.logprob_token_ids.dtype, tensors.logprobs.dtype) == (torch.int64, torch.float32)


@contract("prefill_stats")
def test_prefill_stats_tell_cached_tokens() -> None:
    stats = vllm.prefill_stats(10, 4)
    assert (stats.num_prompt_tokens, stats.num_cached_tokens) == (10, 4)


def test_what_vllm_shows_of_itself() -> None:
    """Modules that are named elsewhere: the plugin's platform, the fork server's preload, bare vLLM's server."""
    platforms = importlib.import_module("vllm.platforms")
    assert isinstance(platforms.current_platform.is_cpu(), bool)
    assert vllm_package.__version__
    assert importlib.util.find_spec("vllm.entrypoints.launchers.api_server.entry") is not None
    preload = importlib.util.find_spec("burrstone.serving.engine.preload")
    assert preload is not None and preload.origin is not None
    modules = re.findall(r'"(vllm\.[\w.]+)"', Path(preload.origin).read_text())
    assert modules and all(importlib.util.find_spec(module) for module in modules)


def test_a_compiled_artifact_is_loaded_by_the_name_that_the_plugin_replaces() -> None:
    decorators = importlib.import_module("vllm.compilation.decorators")
    called = {ast.unparse(call.func) for call in calls_in(decorators._try_load_aot_compiled_fn)}
    assert "torch.compiler.load_compiled_function" in called
    assert "loaded_fn._artifacts.compiled_fn.finalize_loading" in called
