"""Measuring a quantized model against its reference, on the same tokens.

Both run layer by layer in float32, with the kernels' rounding emulated, so that nothing but the quantization differs.
Greedy agreement needs no second generation: as long as the candidate's first choice is the reference's next token, their
greedy texts are one, so a pass over the reference's text shows where they part.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burrstone.quant.cases import Case, cases_digest
from burrstone.quant.checkpoint import Checkpoint
from burrstone.quant.errors import BadCheckpoint, BadData
from burrstone.quant.progress import Bar
from burrstone.quant.quality import weights_digest
from burrstone.quant.statistics import MIN_ROWS
from burrstone.quant.streamed import Batch, StreamedModel, available_memory_bytes
from burrstone.quant.texts import SMOKE_NOTICE, Tokens
from burrstone.quant.verdict import Margins, Measured, judge

_GREEDY_ROWS = 16
_GREEDY_PROMPT = 32
_GREEDY_TOKENS = 32
# For the layers as they are read, beside what they become, and the KV cache.
_HEADROOM = 1.2


@dataclass(frozen=True, slots=True)
class Data:
    """What is compared on; cases may be empty."""

    text: Tokens
    cases: list[Case] = field(default_factory=list)
    cases_name: str | None = None


@dataclass(slots=True)
class _Run:
    """A model and its last hidden states: of the text, of the reference's greedy text, of each case's options."""

    model: StreamedModel
    text: list[Batch]
    greedy: list[Batch]
    options: list[list[Batch]]


class Evaluation:
    """One reference on one set of data, against any number of candidates. Raises QuantizeError's kinds.

    reference_digest: over the reference's files, as they were when the evaluation was made.
    """

    def __init__(
        self, reference: Checkpoint, data: Data, bar: Bar, *, margins: Margins = Margins(), device: str = "cpu"
    ) -> None:
        if len(data.text.rows) < MIN_ROWS:
            raise BadData(
                f"{data.text.name}: {len(data.text.rows)} rows are too few for an interval; give text for at least "
                f"{MIN_ROWS} rows (--rows) of {data.text.rows.shape[1]} tokens (--row-tokens)"
            )
        self._data, self._bar, self._margins, self._device = data, bar, margins, device
        bar.say("reading the reference's weights")
        self.reference_digest = weights_digest(reference.folder)
        model = StreamedModel(reference, device)
        self._greedy, self._no_greedy = self._generate(model)
        self._reference = self._run(model, "running the reference")

    @property
    def text(self) -> Tokens:
        return self._data.text

    def facts(self) -> dict[str, Any]:
        """What decides a verdict, beside the candidate."""
        text = self._data.text
        return {
            "text": text.facts(),
            "cases": self._data.cases_name,
            "cases_digest": cases_digest(self._data.cases),
            "margins": asdict(self._margins),
        }

    def compare(self, candidate: Checkpoint, looks: int = 1) -> dict[str, Any]:
        """What quality.json is to hold, as JSON values: figures, verdict, and what they are about. looks: as of `judge`."""
        run = self._run(StreamedModel(candidate, self._device), "running the candidate")
        text, model = self._data.text, self._reference.model
        return {
            **judge(self._measure(run), self._margins, looks),
            "greedy": self._common_greedy(run),
            "text": text.facts() | {"notice": SMOKE_NOTICE if text.smoke else None},
            "cases": self._data.cases_name,
            "reference": {"name": model.checkpoint.name, "weights_digest": self.reference_digest},
            "date": datetime.now(UTC).date().isoformat(),
            "computed": f"float32 on {self._device}, with the kernels' rounding emulated",
            "versions": {name: version(name) for name in ("burrstone", "torch", "transformers")},
        }

    def _run(self, model: StreamedModel, what: str) -> _Run:
        text = model.embed_all(self._data.text.rows)
        greedy = [] if self._greedy is None else [model.embed(self._greedy)]
        options = [[model.embed(option[None]) for option in case.options] for case in self._data.cases]
        batches = [*text, *greedy, *(batch for case in options for batch in case)]
        self._bar.start(model.num_layers * len(batches), what)
        for index in range(model.num_layers):
            with model.layer(index) as layer:
                for batch in batches:
                    batch.hidden = model.apply(layer, index, batch)
                    self._bar.step()
        return _Run(model, text, greedy, options)

    def _measure(self, run: _Run) -> Measured:
        self._bar.start(len(self._data.text.rows), "comparing")
        rows = np.array([self._text_row(*pair) for pair in self._pairs(run)], dtype=np.float64)
        task = np.zeros((0, 2))
        if self._data.cases:
            right = [
                [
                    case.correct([one.model.logits(batch, 0) for batch in one.options[number]])
                    for one in (self._reference, run)
                ]
                for number, case in enumerate(self._data.cases)
            ]
            task = np.array(right, dtype=np.float64)
        nll_reference, nll_candidate, kl, agreement = rows.T
        return Measured(nll_reference, nll_candidate, kl, agreement, task)

    def _pairs(self, run: _Run) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Tokens [length] of each row, and both models' logits [length, vocabulary]."""
        for ours, theirs in zip(self._reference.text, run.text, strict=True):
            for row in range(len(ours.tokens)):
                yield ours.tokens[row], self._reference.model.logits(ours, row), run.model.logits(theirs, row)
                self._bar.step()

    def _text_row(self, tokens: Tensor, reference: Tensor, candidate: Tensor) -> list[float]:
        """[NLL of the reference, of the candidate, KL, agreement], means over the row's predicted tokens."""
        if reference.shape != candidate.shape:
            raise BadCheckpoint(
                f"the candidate has a vocabulary of {candidate.shape[-1]}, the reference one of {reference.shape[-1]}: "
                "it is not the same model"
            )
        target = tokens[1:, None].to(reference.device)
        ref, got = (logits[:-1].log_softmax(dim=-1) for logits in (reference, candidate))
        nll = [-float(logp.gather(1, target).mean()) for logp in (ref, got)]
        kl = float((ref.exp() * (ref - got)).sum(dim=-1).mean())
        return [*nll, kl, float((ref.argmax(dim=-1) == got.argmax(dim=-1)).float().mean())]

    @torch.inference_mode()
    def _generate(self, model: StreamedModel) -> tuple[Tensor | None, str | None]:
        """The reference's greedy text after the first rows' beginnings, [rows, prompt + new]; or why there is none."""
        need, have = int(_HEADROOM * model.float32_bytes()), available_memory_bytes(self._device)
        if need > have:
            return None, f"generating takes the reference in float32 at once, about {need} bytes, and {have} are free"
        tokens = self._data.text.rows[:_GREEDY_ROWS, :_GREEDY_PROMPT].to(self._device)
        cache = None
        self._bar.start(_GREEDY_TOKENS, "generating with the reference")
        with model.resident() as whole:
            step = tokens
            for _ in range(_GREEDY_TOKENS):
                answer = whole(input_ids=step, past_key_values=cache, use_cache=True)
                cache, step = answer.past_key_values, answer.logits[:, -1:].argmax(dim=-1)
                tokens = torch.cat([tokens, step], dim=1)
                self._bar.step()
        return tokens.cpu(), None

    def _common_greedy(self, run: _Run) -> dict[str, Any]:
        if self._greedy is None:
            return {"missing": self._no_greedy}
        prompt = self._greedy.shape[1] - _GREEDY_TOKENS
        lengths = []
        for row, tokens in enumerate(self._greedy):
            told = run.model.logits(run.greedy[0], row)[prompt - 1 : -1].argmax(dim=-1).cpu()
            parted = (told != tokens[prompt:]).nonzero()
            lengths.append(int(parted[0]) if len(parted) else _GREEDY_TOKENS)
        whole = sum(length == _GREEDY_TOKENS for length in lengths)
        return {
            "rows": len(lengths),
            "tokens": _GREEDY_TOKENS,
            "mean_prefix": sum(lengths) / len(lengths),
            "identical": whole / len(lengths),
        }
