"""Are 80 % sure answers right in 80 of 100 cases? Expected calibration error, the reliability curve, temperature."""

from __future__ import annotations

import math

import numpy as np

from landmarks.evaluation.metrics import Flags, Floats, Integers
from landmarks.support.errors import LandmarksError

BINS = 15
"""Bins of equal width, the number most papers use, so that values can be compared."""

DEFINITIONS = {
    "ece": "Expected calibration error: known photographs fall into 15 bins of equal width by the probability of "
    "their best answer; mean over photographs of the distance between a bin's mean probability and its share of right "
    "answers.",
    "ece_before_temperature": "The same error of the probabilities as the network gives them, before the temperature.",
    "reliability": "Per bin that holds photographs: mean probability of the best answer, share of right answers, "
    "photographs.",
    "temperature": "Number by which the outputs are divided before the softmax, fitted on the validation part by "
    "least log loss; above 1 it makes answers less sure and never changes their order.",
}


def reliability(confidence: Floats, correct: Flags, bins: int = BINS) -> tuple[Floats, Floats, Integers]:
    """Return `(mean confidence, accuracy, photographs)` of each bin ((b-1)/B, b/B] that holds photographs."""
    if len(confidence) and (np.isnan(confidence).any() or confidence.min() < 0 or confidence.max() > 1):
        raise LandmarksError("a confidence is no probability", expected="values between 0 and 1")
    edges = np.linspace(0, 1, bins + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    held = counts > 0
    means = np.bincount(places, weights=confidence, minlength=bins)[held] / counts[held]
    accuracy = np.bincount(places, weights=correct, minlength=bins)[held] / counts[held]
    return means, accuracy, counts[held]


def calibration_error(confidence: Floats, correct: Flags, bins: int = BINS) -> float:
    """Return the expected calibration error of `confidence` `(N,)` in 0..1.

    Naeini et al. (AAAI 2015); Guo et al. (ICML 2017), equation 3.
    """
    if not len(confidence):
        return math.nan
    means, accuracy, counts = reliability(confidence, correct, bins)
    return float(np.sum(counts * np.abs(means - accuracy)) / counts.sum())
