"""Our kernels' places in a real engine: vLLM's own scheduler, chunks, pages and compiled graph, with references on the CPU.

What no CPU can show is the GPU's own: CUTLASS, CUDA graphs, and the kernels themselves (see tests/kernels).
"""

from pathlib import Path
from typing import Any

import pytest
from int8_engine import answers
from quant_runs import INT8_LAYERS

PROMPTS = [[504, 3575, 282, 4649, 314], [33, 28, 216, 34, 28, 216, 35, 28, 216], list(range(1000, 1100))]
NUM_TOKENS = 8
# Fewer tokens a step than the last prompt has, so that it comes in chunks, beside tokens of the others.
ARGUMENTS: dict[str, Any] = {"dtype": "bfloat16", "max_num_batched_tokens": 48}
# What serving's own plugin does on a CPU is needed in any case; ours is the other.
WITHOUT_OURS = "burrstone"


@pytest.fixture(scope="module")
def stock(int8_checkpoint: Path) -> dict[str, Any]:
    return answers(int8_checkpoint, PROMPTS, NUM_TOKENS, plugins=WITHOUT_OURS, enforce_eager=True, **ARGUMENTS)


def test_the_plugin_changes_no_bit_where_nothing_is_switched_on(int8_checkpoint: Path, stock: dict[str, Any]) -> None:
    assert answers(int8_checkpoint, PROMPTS, NUM_TOKENS, enforce_eager=True, **ARGUMENTS) == stock


def test_linear_layers_and_their_fusion(int8_checkpoint: Path, stock: dict[str, Any]) -> None:
    """Compiled, for fusion rewrites the graph. On the CPU vLLM hides no norm from the compiler, so that only activations are
    joined there; norms are in test_int8_fusion."""
    switches = {"burrstone_kernels": {"int8_linear": "on", "int8_fusion": True}}
    found = answers(int8_checkpoint, PROMPTS, NUM_TOKENS, ours="linear", additional_config=switches, **ARGUMENTS)
    assert set(found["kernels"]) == {"OnCpu"} and len(found["kernels"]) == len(stock["kernels"])
    assert set(found["choices"]) == {"silu_mul_int8", "int8_product"}
    # One layer's MLP is not INT8: see the checkpoint.
    per_step = found["choices"]["int8_product"] / len(found["kernels"])
    assert found["choices"]["silu_mul_int8"] == per_step * (INT8_LAYERS - 1)
    assert_alike(found, stock)


def test_attention_over_the_int8_cache(int8_checkpoint: Path, stock: dict[str, Any]) -> None:
    found = answers(
        int8_checkpoint,
        PROMPTS,
        NUM_TOKENS,
        ours="attention",
        enforce_eager=True,
        kv_cache_dtype="int8_per_token_head",
        **ARGUMENTS,
    )
    assert found["attention"] == ["Int8Attention"]
    # One write for each layer and step, and one reading for each layer and step that has a sequence of one new token.
    assert found["choices"]["rope_kv_int8"] > found["choices"]["attention_kv_int8"] >= INT8_LAYERS * (NUM_TOKENS - 1)
    assert_alike(found, stock)


def assert_alike(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Nearly every first token is the same one, and as likely: rounding in another order tips few over."""
    pairs = list(zip(found["tokens"], wanted["tokens"], strict=True))
    same = [next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), NUM_TOKENS) for pair in pairs]
    assert sum(same) >= 0.6 * NUM_TOKENS * len(pairs), f"{found['tokens']} where {wanted['tokens']} was wanted"
    for number, agreed in enumerate(same):
        for ours, theirs in zip(found["logprobs"][number][:agreed], wanted["logprobs"][number][:agreed], strict=True):
            assert abs(ours - theirs) < 0.5
