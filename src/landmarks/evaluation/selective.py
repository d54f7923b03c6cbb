"""Answering only when sure: the risk–coverage curve, and how well a score tells known photographs from others."""

from __future__ import annotations

import math

import numpy as np

from landmarks.evaluation.metrics import Flags, Floats, require_numbers

DEFINITIONS = {
    "risk_coverage": "Known photographs are answered in the order of the probability of their best answer, surest "
    "first; coverage is the share answered, risk the share of wrong answers among them; photographs of equal "
    "probability share their mistakes evenly. `area` is the mean of the risk over all coverages (smaller is better).",
    "auroc": "Probability that a random known photograph scores higher than a random unknown one; ties count half.",
}


def risk_coverage(confidence: Floats, correct: Flags) -> tuple[Floats, Floats]:
    """Return `(coverage, risk)`, each `(N,)`, of answering the 1, 2, .. N surest photographs.

    Within equal confidences the expected number of mistakes over all orders counts, so the order of the rows does not
    matter (Geifman & El-Yaniv, NeurIPS 2017).
    """
    require_numbers(confidence, "confidences")
    _, block, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    mistakes = np.bincount(block, weights=~correct, minlength=len(sizes))
    expected = np.cumsum(np.repeat(mistakes / sizes, sizes))
    answered = np.arange(1, len(confidence) + 1)
    return answered / max(len(confidence), 1), expected / answered


def risk_area(risk: Floats) -> float:
    """Return the area under a risk–coverage curve: the mean risk over the N coverages (AURC)."""
    return float(np.mean(risk)) if len(risk) else math.nan


def auroc(known: Floats, unknown: Floats) -> float:
    """Return the area under the receiver operating characteristic of scores that should be larger for `known`.

    The Mann–Whitney statistic by ranks: O(n log n); NaN when either side is empty.
    """
    require_numbers(known, "scores")
    require_numbers(unknown, "scores")
    if not len(known) or not len(unknown):
        return math.nan
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, side="left")
    equal = np.searchsorted(ordered, known, side="right") - below
    return float(np.mean((below + equal / 2) / len(ordered)))


def threshold_for_false_acceptance(unknown: Floats, rate: float) -> float:
    """Return the smallest threshold that lets at most the share `rate` of `unknown` `(N,)` score at or above it."""
    require_numbers(unknown, "scores")
    allowed = math.floor(rate * len(unknown))
    descending = np.sort(unknown)[::-1]
    if allowed >= len(descending):
        return -math.inf
    return float(np.nextafter(descending[allowed], np.inf, dtype=descending.dtype))


def threshold_for_loss(known: Floats, share: float) -> float:
    """Return the largest threshold below which at most the share `share` of `known` `(N,)` scores."""
    require_numbers(known, "scores")
    if not len(known):
        return -math.inf
    return float(np.sort(known)[min(math.floor(share * len(known)), len(known) - 1)])
