"""A W8A8 checkpoint of ours in the real engine: which kernel computes it, and that it computes what was judged.

The model is the first layers of the embedded one, so that it is soon compiled.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from int8_engine import answers
from quant_runs import INT8_LAYERS

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.streamed import StreamedModel

PROMPTS = [[504, 3575, 282, 4649, 314], [33, 28, 216, 34, 28, 216, 35, 28, 216]]
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def served(int8_checkpoint: Path) -> dict[str, Any]:
    """What the engine answered."""
    return answers(int8_checkpoint, PROMPTS, NUM_TOKENS, dtype="float32", max_model_len=64)


def test_the_int8_kernel_computes_every_rounded_layer_and_the_head(served: dict[str, Any]) -> None:
    # Fused, a layer has four linear modules; gate with up, and down, of one layer were kept; and the head.
    assert served["kernels"] == ["CPUInt8ScaledMMLinearKernel"] * (4 * INT8_LAYERS - 2 + 1)


def test_the_engine_computes_what_the_verdict_was_about(int8_checkpoint: Path, served: dict[str, Any]) -> None:
    model = StreamedModel(Checkpoint(int8_checkpoint))
    off, same = [], []
    for prompt, tokens, logprobs in zip(PROMPTS, served["tokens"], served["logprobs"], strict=True):
        batch = model.embed(torch.tensor([prompt + tokens]))
        for index in range(model.num_layers):
            with model.layer(index) as layer:
                batch.hidden = model.apply(layer, index, batch)
        told = model.logits(batch, 0)[len(prompt) - 1 : -1].log_softmax(dim=-1)
        off.append((told.gather(1, torch.tensor(tokens)[:, None])[:, 0] - torch.tensor(logprobs)).abs())
        same.append(told.argmax(dim=-1) == torch.tensor(tokens))
    # Sums in another order tip a few activations over to the next step.
    assert float(torch.cat(off).median()) < 0.02 and float(torch.cat(off).max()) < 0.2
    assert float(torch.cat(same).float().mean()) >= 0.8
