"""`python -m burrstone.serving.engine.gguf_convert FILE FOLDER`: a GGUF file as a bf16 safetensors folder."""

import sys
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Weights, configuration and tokenizer of `source` into the folder `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
