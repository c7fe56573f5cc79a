"""Greedy answers of vLLM's offline engine to token prompts, in a process of its own; run as a script, it is that process.

On request our GPU kernels' places in vLLM are taken on the CPU, where their references compute: the same classes, the same
graph, the same cache, by another arithmetic unit.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def answers(
    folder: Path,
    prompts: list[list[int]],
    num_tokens: int,
    *,
    ours: str = "",
    plugins: str | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """tokens, logprobs (one list a prompt), kernels and attention (class names), choices (op -> calls in the worker).

    ours: "linear", "attention", or nothing. plugins: those of vLLM's general plugins that are loaded; all, unless said.
    """
    environ = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    environ |= {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    environ |= {} if plugins is None else {"VLLM_PLUGINS": plugins}
    told = {"folder": str(folder), "prompts": prompts, "num_tokens": num_tokens, "ours": ours, "arguments": arguments}
    command = [sys.executable, __file__, json.dumps(told)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _take_linear_layers() -> None:
    from burrstone.quant.engine import vllm_compat as vllm
    from burrstone.quant.engine.int8_linear import Int8Linear

    class OnCpu(Int8Linear):
        @classmethod
        def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
            return True, None

    vllm.POSSIBLE_INT8_KERNELS[vllm.PlatformEnum.CPU].insert(0, OnCpu)


def _take_attention() -> None:
    from burrstone.quant.engine import plugin
    from burrstone.quant.engine import vllm_compat as vllm

    vllm.register_backend(vllm.AttentionBackendEnum.CPU_ATTN, plugin.ATTENTION)


def _inside(model: Any) -> dict[str, Any]:
    from burrstone.kernels.library import choices

    calls: dict[str, int] = {}
    for (name, *_), count in choices.items():
        calls[name] = calls.get(name, 0) + count
    modules = list(model.modules())
    schemes: list[Any] = [getattr(module, "scheme", None) for module in modules]
    return {
        "kernels": [type(scheme.kernel).__name__ for scheme in schemes if hasattr(scheme, "kernel")],
        "attention": sorted({type(module.impl).__name__ for module in modules if hasattr(module, "impl")}),
        "choices": calls,
    }


def main() -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    told = json.loads(sys.argv[1])
    if told["ours"] == "linear":
        _take_linear_layers()
    if told["ours"] == "attention":
        _take_attention()
    llm = LLM(
        model=told["folder"],
        **{"max_model_len": 256, "max_num_seqs": 4, "kv_cache_memory_bytes": 2**25} | told["arguments"],
    )
    greedy = SamplingParams(temperature=0, max_tokens=told["num_tokens"], logprobs=1, ignore_eos=True)
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in told["prompts"]]
    outputs = [each.outputs[0] for each in llm.generate(prompts, greedy)]
    tokens = [list(each.token_ids) for each in outputs]
    logprobs = [
        [step[token].logprob for token, step in zip(each.token_ids, each.logprobs, strict=True)] for each in outputs
    ]
    print(json.dumps({"tokens": tokens, "logprobs": logprobs} | llm.apply_model(_inside)[0]))


if __name__ == "__main__":
    main()
