"""A W8A8 checkpoint of ours in the real engine: which kernel computes it, and that it computes what was judged.

The model is the first layers of the embedded one, so that it is soon compiled.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import edit_json

from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.job import Job
from burrstone.quant.progress import SilentBar
from burrstone.quant.recipe import Recipe
from burrstone.quant.streamed import StreamedModel
from burrstone.quant.texts import load_tokens
from burrstone.serving.engine.models import embedded_model

NUM_LAYERS = 4
PROMPTS = [[504, 3575, 282, 4649, 314], [33, 28, 216, 34, 28, 216, 35, 28, 216]]
NUM_TOKENS = 8
_PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams, TokensPrompt

folder, prompts, num_tokens = json.loads(sys.argv[1])
llm = LLM(model=folder, dtype="float32", max_model_len=64, max_num_seqs=4, kv_cache_memory_bytes=2**25)
greedy = SamplingParams(temperature=0, max_tokens=num_tokens, logprobs=1, ignore_eos=True)
answers = [each.outputs[0] for each in llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], greedy)]
tokens = [list(each.token_ids) for each in answers]
logprobs = [[step[token].logprob for token, step in zip(each.token_ids, each.logprobs)] for each in answers]
kernels = llm.apply_model(
    lambda model: [
        type(module.scheme.kernel).__name__ for module in model.modules() if hasattr(getattr(module, "scheme", None), "kernel")
    ]
)
print(json.dumps({"tokens": tokens, "logprobs": logprobs, "kernels": kernels[0]}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smoothed, rounded by GPTQ, with one layer kept and an INT8 head."""
    from transformers import AutoTokenizer

    source, folder = embedded_model(Path("~/.cache/burrstone").expanduser()), tmp_path_factory.mktemp("int8")
    short = folder / "short"
    short.mkdir()
    for file in Checkpoint(source).companions():
        (short / file.name).write_bytes(file.read_bytes())
    (short / "config.json").write_text((source / "config.json").read_text())
    edit_json(short / "config.json", num_hidden_layers=NUM_LAYERS)
    tensors = load_file(source / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if ".layers." not in name or int(name.split(".")[2]) < NUM_LAYERS}
    save_file(kept, short / "model.safetensors", metadata={"format": "pt"})
    tokens = load_tokens("smoke", AutoTokenizer.from_pretrained(short), rows=4, length=64, split="calibration")
    recipe = Recipe(keep=("model.layers.1.mlp.*",), quantize_lm_head=True)
    Job(Checkpoint(short), folder / "out", recipe, tokens, SilentBar()).run()
    return folder / "out"


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> dict[str, Any]:
    """What the engine answered: one process for its front and core, and a worker forked from it."""
    environ = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    environ |= {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    command = [sys.executable, "-c", _PROGRAM, json.dumps([str(checkpoint), PROMPTS, NUM_TOKENS])]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_int8_kernel_computes_every_rounded_layer_and_the_head(served: dict[str, Any]) -> None:
    # Fused, a layer has four linear modules; gate with up, and down, of one layer were kept; and the head.
    assert served["kernels"] == ["CPUInt8ScaledMMLinearKernel"] * (4 * NUM_LAYERS - 2 + 1)


def test_the_engine_computes_what_the_verdict_was_about(checkpoint: Path, served: dict[str, Any]) -> None:
    model = StreamedModel(Checkpoint(checkpoint))
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
