"""A bitsandbytes 8-bit checkpoint in the real engine, compiled, beside other ways to compute the same weights.

The model is the first layers of the embedded one: its outliers are real, and they are enough to be compiled and loaded.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from burrstone.quant.llm_int8 import dequantize, llm_int8_linear
from burrstone.serving.engine.models import embedded_model

pytestmark = pytest.mark.engine
NUM_LAYERS = 5
# Long enough to hold tokens with and without outliers; ids of "The capital of France is" and of a list of numbers.
PROMPTS = [[504, 3575, 282, 4649, 314], [33, 28, 216, 34, 28, 216, 35, 28, 216]]
NUM_TOKENS = 8
_PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams, TokensPrompt

folder, four_bits, prompts, num_tokens = json.loads(sys.argv[1])
try:
    LLM(model=four_bits)
except ValueError as error:
    refusal = str(error)
llm = LLM(model=folder, dtype="float32", max_model_len=64, max_num_seqs=4, kv_cache_memory_bytes=2**25)
greedy = SamplingParams(temperature=0, max_tokens=num_tokens, logprobs=1, ignore_eos=True)
answers = [each.outputs[0] for each in llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], greedy)]
tokens = [list(each.token_ids) for each in answers]
logprobs = [[step[token].logprob for token, step in zip(each.token_ids, each.logprobs)] for each in answers]
(method,) = set(llm.apply_model(lambda model: type(model.model.layers[0].mlp.down_proj.quant_method).__name__))
print(json.dumps({"refusal": refusal, "tokens": tokens, "logprobs": logprobs, "method": method}))
"""


class Folders(NamedTuple):
    """int8: as transformers writes it. plain: the same weights, dequantized. four_bits: by its config.json only."""

    int8: Path
    plain: Path
    four_bits: Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    source = embedded_model(Path("~/.cache/burrstone").expanduser())
    made = Folders(*(tmp_path_factory.mktemp("bnb") / name for name in Folders._fields))
    quantization = {"quant_method": "bitsandbytes", "llm_int8_threshold": 6.0, "llm_int8_skip_modules": None}
    changes: list[dict[str, Any]] = [
        {"quantization_config": quantization | {"load_in_8bit": True, "load_in_4bit": False}},
        {},
        {"quantization_config": quantization | {"load_in_8bit": False, "load_in_4bit": True}},
    ]
    config = json.loads((source / "config.json").read_text()) | {"num_hidden_layers": NUM_LAYERS, "dtype": "float32"}
    for folder, change in zip(made, changes, strict=True):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / "config.json").write_text(json.dumps(config | change))
    int8, plain = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if ".layers." in name and int(name.split(".")[2]) >= NUM_LAYERS:
            continue
        int8[name] = plain[name] = tensor.float()
        if name.endswith("_proj.weight"):
            absmax = tensor.float().abs().amax(dim=1)
            int8[name] = torch.round(tensor.float() * 127 / absmax[:, None]).to(torch.int8)
            int8[name.replace("weight", "SCB")] = absmax
            int8[f"{name}_format"] = torch.tensor(0, dtype=torch.uint8)
            plain[name] = dequantize(int8[name], absmax)
    save_file(int8, made.int8 / "model.safetensors", metadata={"format": "pt"})
    save_file(plain, made.plain / "model.safetensors", metadata={"format": "pt"})
    return made


@pytest.fixture(scope="module")
def served(folders: Folders) -> dict[str, Any]:
    """What the engine answered. One process for its front and core, and a worker forked from it: one import of vLLM."""
    environ = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    environ |= {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    asked = json.dumps([str(folders.int8), str(folders.four_bits), PROMPTS, NUM_TOKENS])
    command = [sys.executable, "-c", _PROGRAM, asked]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def differences(model: nn.Module, served: dict[str, Any]) -> Tensor:
    """Each served token's log probability less that by `model`; the second row: less that of the model's own choice."""
    found = []
    for prompt, tokens, logprobs in zip(PROMPTS, served["tokens"], served["logprobs"], strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
        own = logits.log_softmax(dim=-1)
        chosen = own.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        found.append(torch.stack([torch.tensor(logprobs) - chosen, torch.tensor(logprobs) - own.amax(dim=1)]))
    return torch.cat(found, dim=1)


def test_it_is_served_by_our_layers(served: dict[str, Any]) -> None:
    assert served["method"] == "BitsAndBytesInt8LinearMethod"
    assert [len(each) for each in served["tokens"]] == [NUM_TOKENS, NUM_TOKENS]


def test_four_bits_are_refused_before_anything_starts(served: dict[str, Any]) -> None:
    assert "quantized to 4 bits by bitsandbytes" in served["refusal"]
    assert "vllm-bnb-plugin" in served["refusal"]


def test_the_engine_computes_what_the_layer_computes(folders: Folders, served: dict[str, Any]) -> None:
    """transformers' model with our function in place of each linear layer; the engine fuses and compiles them."""
    model = AutoModelForCausalLM.from_pretrained(folders.plain, dtype=torch.float32)
    tensors = load_file(folders.int8 / "model.safetensors")
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            weight, absmax = tensors[f"{name}.weight"], tensors[f"{name}.SCB"]
            module.forward = lambda x, weight=weight, absmax=absmax: llm_int8_linear(x, weight, absmax, 6.0)
    # Float32 sums in another order tip a few values over to the next step, which shows in some tokens.
    off = differences(model, served).abs()
    assert off.median() < 0.001 and off.max() < 0.2


def test_it_is_close_to_the_dequantized_weights(folders: Folders, served: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders.plain, dtype=torch.float32)
    off = differences(model, served).abs()
    assert off.median() < 0.1 and off.max() < 0.6


def test_transformers_reads_the_same_checkpoint_alike(
    folders: Folders, served: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "bitsandbytes")  # It logs every cast of every layer.
    model = AutoModelForCausalLM.from_pretrained(folders.int8, dtype=torch.float32)
    assert type(model.model.layers[0].mlp.down_proj).__name__ == "Linear8bitLt"
    off = differences(model, served).abs()
    assert off.median() < 0.1 and off.max() < 0.6
