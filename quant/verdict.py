"""Judging what an evaluation measured: non-inferior within margins, or not, and why."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burrstone.quant.statistics import CONFIDENCE, bounded_mean, lost_cases

_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, slots=True)
class Margins:
    """How much worse the candidate may be, at the bad end of its one-sided 95 % interval.

    perplexity: relative. mean_kl: nats a token. task: share of cases.
    """

    perplexity: float = 0.02
    mean_kl: float = 0.02
    task: float = 0.02


@dataclass(frozen=True, slots=True)
class Measured:
    """Row by row, paired. nll: [rows], mean negative log likelihood a token, in nats. kl, agreement: [rows], means of
    KL(reference || candidate) and of equal first choices. task: [cases, 2] right or not, reference and candidate.
    """

    nll_reference: NDArray[np.float64]
    nll_candidate: NDArray[np.float64]
    kl: NDArray[np.float64]
    agreement: NDArray[np.float64]
    task: NDArray[np.float64]


def judge(measured: Measured, margins: Margins, looks: int = 1) -> dict[str, Any]:
    """The figures with their bounds, `verdict` ("pass" or "fail") and `reasons` for a fail, as JSON values.

    looks: how many candidates may be tried on these data until one passes; the more, the surer each has to be, so that
    the chance that any bad one passes stays 5 % (Bonferroni).
    """
    confidence = 1 - (1 - CONFIDENCE) / looks
    worse = bounded_mean(measured.nll_candidate - measured.nll_reference, confidence)
    kl = bounded_mean(measured.kl, confidence)
    figures: dict[str, Any] = {
        "perplexity_ratio": _exp(worse.mean),
        "perplexity_ratio_upper": _exp(worse.upper),
        "perplexity_reference": _exp(float(measured.nll_reference.mean())),
        "mean_kl": kl.mean,
        "mean_kl_upper": kl.upper,
        "top1_agreement": float(measured.agreement.mean()),
    }
    reasons = []
    # Written so that a figure that is no number fails.
    if not figures["perplexity_ratio_upper"] <= 1 + margins.perplexity:
        reasons.append(
            f"perplexity may be {figures['perplexity_ratio_upper']:.4f} times the reference's; "
            f"{1 + margins.perplexity:g} is allowed"
        )
    if not kl.upper <= margins.mean_kl:
        reasons.append(f"mean KL may be {kl.upper:.4f} nats a token; {margins.mean_kl:g} is allowed")
    if len(measured.task):
        reference, candidate = measured.task.T
        difference = lost_cases(measured.task, confidence)
        figures["task"] = {
            "cases": len(measured.task),
            "accuracy_reference": float(reference.mean()),
            "accuracy_candidate": float(candidate.mean()),
            "difference": difference.mean,
            "difference_lower": difference.lower,
        }
        if not difference.lower >= -margins.task:
            reasons.append(
                f"task accuracy may be lower by {-difference.lower:.4f}; {margins.task:g} is allowed "
                f"({len(measured.task)} cases: more of them narrow the interval)"
            )
    return {
        "verdict": "fail" if reasons else "pass",
        "reasons": reasons,
        **_without_nonsense(figures),
        "confidence": round(confidence, 6),
        "looks": looks,
        "margins": asdict(margins),
    }


def _exp(value: float) -> float:
    return math.exp(value) if value < _LARGEST_EXPONENT else math.inf


def _without_nonsense(figures: dict[str, Any]) -> dict[str, Any]:
    """What is no finite number has no place in JSON: None."""
    return {
        name: _without_nonsense(value) if isinstance(value, dict) else value if math.isfinite(value) else None
        for name, value in figures.items()
    }


def shown(value: float | None, form: str) -> str:
    """A figure for people."""
    return "no number" if value is None else format(value, form)


def summary(quality: dict[str, Any]) -> str:
    """The verdict for people, as Markdown."""
    margins = quality["margins"]
    ratio, ratio_upper = (shown(quality[f"perplexity_ratio{end}"], ".4f") for end in ("", "_upper"))
    kl, kl_upper = (shown(quality[f"mean_kl{end}"], ".4f") for end in ("", "_upper"))
    rows = [
        ("perplexity", f"x{ratio}", f"x{ratio_upper}", f"x{1 + margins['perplexity']:g}"),
        ("mean KL, nats a token", kl, kl_upper, f"{margins['mean_kl']:g}"),
        ("top-1 agreement", shown(quality["top1_agreement"], ".2%"), "", ""),
    ]
    greedy = quality["greedy"]
    if greedy.get("tokens"):
        rows.append(("greedy text in common", f"{greedy['mean_prefix']:.1f} of {greedy['tokens']} tokens", "", ""))
    if "task" in quality:
        task = quality["task"]
        accuracy = f"{task['accuracy_candidate']:.2%} (reference {task['accuracy_reference']:.2%})"
        rows.append(
            (f"task, {task['cases']} cases", accuracy, f"{task['difference_lower']:+.2%}", f"-{margins['task']:.2%}")
        )
    text = quality["text"]
    about = (
        f"**{quality['verdict'].upper()}** on {quality['date']}, against {quality['reference']['name']}, "
        f"on {text['shape'][0]} rows of {text['shape'][1]} tokens of {text['name']}."
    )
    lines = [
        about,
        "",
        f"| figure | found | at worst ({quality['confidence']:.4g}) | allowed |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    if quality["looks"] > 1:
        lines += ["", f"Chosen on this text, as one of up to {quality['looks']} tries; the bounds allow for that."]
    if quality["reasons"]:
        lines += ["", *(f"- {reason}" for reason in quality["reasons"])]
    if text["notice"]:
        lines += ["", f"> **{text['notice']}**"]
    return "\n".join(lines)
