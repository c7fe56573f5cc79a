"""Runs in llm-compressor's own environment, whose compressed-tensors is another than vLLM's: FOLDER OUT METHOD ROWS.json"""

import json
import sys

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.smoothquant import SmoothQuantModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(source: str, out: str, method: str, rows_file: str) -> None:
    with open(rows_file) as file:
        rows = json.load(file)
    rounding = GPTQModifier if method.endswith("gptq") else QuantizationModifier
    recipe = [rounding(targets="Linear", scheme="W8A8", ignore=["lm_head"])]
    if method.startswith("smoothquant"):
        recipe.insert(0, SmoothQuantModifier(smoothing_strength=0.8))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    length = len(rows[0])
    oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=length, num_calibration_samples=len(rows))
    model.save_pretrained(out, save_compressed=True)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
