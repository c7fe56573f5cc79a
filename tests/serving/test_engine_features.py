"""What vLLM offers, reached from our configuration and shown on the real engine, each on a server of its own."""

import re
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_models import CACHE, gemma, lora_adapter

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.job import Job
from burrstone.quant.progress import SilentBar
from burrstone.quant.recipe import Recipe
from burrstone.serving.engine.models import embedded_model
from harness import EXACT_FLAGS, MODEL, SMALL_FLAGS, Server, serving

pytestmark = pytest.mark.engine
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "Water boils at a temperature of",
    "The three primary colours are",
    "In 1969, the first man on the",
    "A recipe for pancakes needs flour, milk and",
    "The opposite of hot is",
    "One, two, three, four, five, six,",
    "My favourite book is about a young",
    "The largest planet of the solar system is",
]
# Text that repeats itself, where looking n-grams up in the prompt pays.
LIST = "red apple, green apple, blue apple, red apple, green apple, blue apple, red apple, green apple,"
TOOL = {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}}
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of a repository in a made-up hub cache
Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """serve(configuration, flags, environ): a context manager for a server of the test's own."""

    def start(
        config: dict[str, Any], flags: list[str], environ: dict[str, str] | None = None
    ) -> AbstractContextManager[Server]:
        file = tmp_path / f"config-{len(list(tmp_path.iterdir()))}.yaml"
        file.write_text(yaml.safe_dump(config))
        return serving(tmp_path / f"{file.stem}.log", "--config", str(file), *flags, environ=environ)

    return start


def greedy_all(
    server: Server, prompts: list[str], max_tokens: int = 32, model: str = "default"
) -> list[dict[str, Any]]:
    """The choice of each prompt: greedy completions of `max_tokens` tokens, generated together."""
    body = {"model": model, "prompt": prompts, "max_tokens": max_tokens, "temperature": 0}
    status, reply = server.post("/v1/completions", body | {"logprobs": 0, "ignore_eos": True})
    assert status == 200, reply
    choices: list[dict[str, Any]] = reply["choices"]
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [max_tokens] * len(prompts)
    return choices


def greedy(server: Server, prompt: str, max_tokens: int = 32, model: str = "default") -> dict[str, Any]:
    return greedy_all(server, [prompt], max_tokens, model)[0]


def metric(server: Server, name: str) -> float:
    """Sum of a Prometheus metric over its label sets."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    assert found, f"no metric {name}"
    return sum(map(float, found))


def test_tensor_parallel_gives_the_same_tokens(serve: Serve, tmp_path: Path) -> None:
    model = str(gemma(tmp_path))
    # float32, so that a token differs when a shard is wrong and not when two sums round differently (bf16: 82 % equal).
    engine = {"max_model_len": 1024, "enforce_eager": True, "kv_cache_gib": 0.25, "dtype": "float32"}
    with serve({"model": model, "engine": engine}, []) as server:
        one = greedy_all(server, PROMPTS)
    with serve({"model": model, "engine": engine}, ["--tensor-parallel-size", "2"]) as server:
        two = greedy_all(server, PROMPTS)
    pairs = [(a["logprobs"]["tokens"], b["logprobs"]["tokens"]) for a, b in zip(one, two, strict=True)]
    equal = sum(left == right for pair in pairs for left, right in zip(*pair, strict=True))
    assert equal >= 0.95 * 32 * len(PROMPTS)


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_speculation_does_not_change_greedy_output(exact_engine: Server, serve: Serve, method: str) -> None:
    # The model as its own draft: nearly every draft token is accepted.
    draft = {"model": str(embedded_model(CACHE))} if method == "draft_model" else {}
    config = {"engine": {"speculative": {"method": method, "num_tokens": 3} | draft}}
    prompts = [LIST, *PROMPTS]
    plain = [choice["text"] for choice in greedy_all(exact_engine, prompts)]
    with serve(config, EXACT_FLAGS) as server:
        assert [choice["text"] for choice in greedy_all(server, prompts)] == plain
        assert metric(server, "vllm:spec_decode_num_accepted_tokens_total") > 0


def test_int8_checkpoint_of_a_hub_id_answers_as_the_original(engine: Server, serve: Serve, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--acme--int8"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.parent.mkdir()
    Job(Checkpoint(embedded_model(CACHE)), snapshot, Recipe(method="rtn"), None, SilentBar()).run()
    environ = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with serve({"model": "acme/int8", "engine": {"enforce_eager": True}}, SMALL_FLAGS, environ) as server:
        assert [model["id"] for model in server.get("/v1/models")[1]["data"]] == ["acme/int8", "default"]
        original, quantized = mean_logprob(engine), mean_logprob(server)
        body = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL], "max_tokens": 32}
        status, called = server.post("/v1/chat/completions", body | {"tool_choice": "required"})
    assert original != quantized  # the INT8 layers did run
    assert abs(original - quantized) < 0.05 * abs(original)
    assert (status, called["choices"][0]["message"]["tool_calls"][0]["function"]["name"]) == (200, "stop")


def mean_logprob(server: Server) -> float:
    """Of the prompts' own tokens: how well the model predicts them."""
    values: list[float] = []
    for prompt in PROMPTS:
        body = {"model": "default", "prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 0}
        status, reply = server.post("/v1/completions", body)
        assert status == 200, reply
        values += reply["choices"][0]["logprobs"]["token_logprobs"][1:-1]
    return sum(values) / len(values)


def test_lora_modules_and_chunked_prefill(serve: Serve, tmp_path: Path) -> None:
    base = embedded_model(CACHE)
    modules = [
        {"name": name, "path": str(lora_adapter(base, tmp_path / name, seed=seed))}
        for seed, name in enumerate(("legal", "medical"))
    ]
    config = {"engine": {"lora": {"modules": modules, "max_rank": 8}, "max_num_batched_tokens": 128, "max_num_seqs": 8}}
    with serve(config, [*SMALL_FLAGS, "--engine.enforce-eager", "true"]) as server:
        names = {model["id"] for model in server.get("/v1/models")[1]["data"]}
        assert names == {MODEL, "default", "legal", "medical"}
        answers = {name: greedy(server, PROMPTS[0], model=name)["text"] for name in (MODEL, "legal", "medical")}
        assert len(set(answers.values())) == 3
        # One adapter's cached prefix must not leak into another's answer.
        assert {name: greedy(server, PROMPTS[0], model=name)["text"] for name in answers} == answers
        assert server.post("/v1/completions", {"model": "absent", "prompt": "x"})[0] == 404
        # A prompt four times as long as a step's budget is prefilled in chunks.
        assert greedy(server, " ".join(PROMPTS) * 5, max_tokens=4)["text"]
