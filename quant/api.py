"""INT8 quantization for Python programs: make a checkpoint, judge it, record the verdict.

    from pathlib import Path

    from burrstone.quant.api import Checkpoint, Data, Job, Recipe, SilentBar, evaluate_checkpoint, find_checkpoint
    from burrstone.quant.api import load_tokenizer, load_tokens, record_quality

    source = Checkpoint(find_checkpoint("owner/name"))  # or a folder
    tokenizer = load_tokenizer(source.folder)
    tokens = load_tokens("chats.jsonl", tokenizer, rows=128, length=512, split="calibration")
    Job(source, Path("int8"), Recipe(), tokens, SilentBar()).run()  # Recipe(method="rtn") needs no tokens: None
    text = load_tokens("chats.jsonl", tokenizer, rows=64, length=512, split="held-out")
    quality = evaluate_checkpoint(source, Checkpoint(Path("int8")), Data(text))
    record_quality(Path("int8"), quality)

The maths is in `rounding`, `smoothing`, `gptq` and `statistics`, with shapes and sources in their docstrings.
"""

from burrstone.quant.card import record_quality
from burrstone.quant.cases import load_cases
from burrstone.quant.checkpoint import Checkpoint, find_checkpoint
from burrstone.quant.errors import QuantizeError
from burrstone.quant.evaluate import Data, Evaluation
from burrstone.quant.job import Job, Result
from burrstone.quant.judging import evaluate_checkpoint
from burrstone.quant.progress import SilentBar, TerminalBar
from burrstone.quant.quality import standing
from burrstone.quant.recipe import Recipe
from burrstone.quant.texts import load_tokenizer, load_tokens
from burrstone.quant.verdict import Margins

__all__ = [
    "Checkpoint",
    "Data",
    "Evaluation",
    "Job",
    "Margins",
    "QuantizeError",
    "Recipe",
    "Result",
    "SilentBar",
    "TerminalBar",
    "evaluate_checkpoint",
    "find_checkpoint",
    "load_cases",
    "load_tokenizer",
    "load_tokens",
    "record_quality",
    "standing",
]
