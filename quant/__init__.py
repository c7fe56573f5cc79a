"""INT8 quantization for Python programs: make a checkpoint, judge it, record the verdict.

    from pathlib import Path

    from burrstone.quant import Checkpoint, Data, Job, Recipe, SilentBar, evaluate_checkpoint, find_checkpoint
    from burrstone.quant import load_tokenizer, load_tokens, record_quality

    source = Checkpoint(find_checkpoint("owner/name"))  # or a folder
    tokenizer = load_tokenizer(source.folder)
    tokens = load_tokens("chats.jsonl", tokenizer, rows=128, length=512, split="calibration")
    Job(source, Path("int8"), Recipe(), tokens, SilentBar()).run()  # Recipe(method="rtn") needs no tokens: None
    text = load_tokens("chats.jsonl", tokenizer, rows=64, length=512, split="held-out")
    quality = evaluate_checkpoint(source, Checkpoint(Path("int8")), Data(text))
    record_quality(Path("int8"), quality)

The maths is in `rounding`, `smoothing`, `gptq` and `statistics`, with shapes and sources in their docstrings. Names are
loaded when they are asked for: the command line's flags are to come without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burrstone.quant.card import record_quality as record_quality
    from burrstone.quant.cases import load_cases as load_cases
    from burrstone.quant.checkpoint import Checkpoint as Checkpoint
    from burrstone.quant.checkpoint import find_checkpoint as find_checkpoint
    from burrstone.quant.errors import QuantizeError as QuantizeError
    from burrstone.quant.evaluate import Data as Data
    from burrstone.quant.evaluate import Evaluation as Evaluation
    from burrstone.quant.job import Job as Job
    from burrstone.quant.job import Result as Result
    from burrstone.quant.judging import evaluate_checkpoint as evaluate_checkpoint
    from burrstone.quant.progress import SilentBar as SilentBar
    from burrstone.quant.progress import TerminalBar as TerminalBar
    from burrstone.quant.quality import standing as standing
    from burrstone.quant.recipe import Recipe as Recipe
    from burrstone.quant.texts import load_tokenizer as load_tokenizer
    from burrstone.quant.texts import load_tokens as load_tokens
    from burrstone.quant.verdict import Margins as Margins

_HOMES = {
    "card": ("record_quality",),
    "cases": ("load_cases",),
    "checkpoint": ("Checkpoint", "find_checkpoint"),
    "errors": ("QuantizeError",),
    "evaluate": ("Data", "Evaluation"),
    "job": ("Job", "Result"),
    "judging": ("evaluate_checkpoint",),
    "progress": ("SilentBar", "TerminalBar"),
    "quality": ("standing",),
    "recipe": ("Recipe",),
    "texts": ("load_tokenizer", "load_tokens"),
    "verdict": ("Margins",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in _HOMES.values() for name in names)})
