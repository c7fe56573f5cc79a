"""A verdict that is about what will be served: these files, this tokenizer, and rows that nobody calibrated on."""

from collections.abc import Callable
from typing import Any

from burrstone.quant.card import calibration_of
from burrstone.quant.checkpoint import Checkpoint, refuse_second_weights
from burrstone.quant.errors import BadCheckpoint
from burrstone.quant.evaluate import Data, Evaluation
from burrstone.quant.progress import Bar, SilentBar
from burrstone.quant.quality import weights_digest
from burrstone.quant.texts import Tokens, load_tokenizer, refuse_calibrated
from burrstone.quant.verdict import Margins

_SAMPLE_ROWS = 4


def evaluate_checkpoint(
    reference: Checkpoint,
    candidate: Checkpoint,
    data: Data,
    bar: Bar | None = None,
    *,
    margins: Margins = Margins(),
    device: str = "cpu",
) -> dict[str, Any]:
    """What quality.json is to hold (`record_quality` writes it): figures, bounds, verdict, and what they are about.

    The text of `data` is tokens of the reference's tokenizer. Raises BadCheckpoint for a candidate that would be served
    otherwise than judged, or files that change meanwhile; BadData for rows that were calibrated on.
    """
    bar = bar or SilentBar()
    refuse_second_weights(candidate.folder)
    _refuse_other_tokenizer(reference, candidate, data.text)
    refuse_calibrated(data.text, calibration_of(candidate.folder))
    bar.say("reading the candidate's weights")
    digest = weights_digest(candidate.folder)
    evaluation = Evaluation(reference, data, bar, margins=margins, device=device)
    quality = evaluation.compare(candidate)
    for folder, before in ((reference.folder, evaluation.reference_digest), (candidate.folder, digest)):
        if weights_digest(folder) != before:
            raise BadCheckpoint(f"{folder} was changed while it was evaluated; nothing is recorded, evaluate again")
    return {"weights_digest": digest, **quality}


def _refuse_other_tokenizer(reference: Checkpoint, candidate: Checkpoint, text: Tokens) -> None:
    """What is judged is the reference's tokens; what is served, the candidate's."""
    own, other = load_tokenizer(reference.folder), load_tokenizer(candidate.folder)
    sample = own.decode(text.rows[:_SAMPLE_ROWS].flatten())
    facts: dict[str, Callable[[Any], Any]] = {
        "vocabulary": lambda tokenizer: tokenizer.get_vocab(),
        "end token": lambda tokenizer: tokenizer.eos_token_id,
        "chat template": lambda tokenizer: tokenizer.chat_template,
        "way to cut text": lambda tokenizer: tokenizer(sample)["input_ids"],
    }
    for name, fact in facts.items():
        if fact(own) != fact(other):
            raise BadCheckpoint(
                f"{candidate.folder}: its tokenizer's {name} differs from the reference's; copy the tokenizer and its "
                "templates from there, or judge against the model that it belongs to"
            )
