"""Metrics as functions of arrays: accuracy, confusion, GAP, selective prediction, calibration.

Shapes: `N` images, `k` answers per image, best first, `T` truths (an image may show several landmarks, or none).
Labels are integers that need not be dense: nothing here allocates by the number of landmarks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landmarks.dataset.manifest import NO_LABEL
from landmarks.support.errors import LandmarksError

Integers = NDArray[np.integer]
Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

ACCURACY_DEFINITIONS = {
    "images": "Images judged, known and unknown ones.",
    "known": "Images that show at least one of the run's landmarks; all others are unknown.",
    "unknown": "Images that show none of the run's landmarks.",
    "landmarks": "Landmarks that at least one known image shows first.",
    "top1": "Share of known images whose best answer is one of the landmarks they show; of answers with equal "
    "scores the one with the smallest label is the better.",
    "top5": "Share of known images with one of the landmarks they show among the five best answers.",
    "macro": "Mean over landmarks of the share of a landmark's images whose best answer is right; an image "
    "counts for the first landmark it shows; landmarks without images in this split are left out.",
    "landmark_accuracy": "Share of a landmark's images whose best answer is right, with Wilson's score interval "
    "at 95 %.",
    "log_loss": "Mean over known images of minus the natural logarithm of the probability given to the first "
    "landmark they show.",
    "confused": "Ordered pairs (landmark shown first, wrong best answer), counted over known images, most "
    "frequent first, ties by truth and then by answer; an image without an answer is in no pair.",
}
"""What each number means, in one sentence; stored with the numbers."""


@dataclass(frozen=True)
class Truth:
    """Which landmarks each of N images shows: image `rows[i]` shows `labels[i]`.

    `rows` ascend; an image counts for the landmark of its first entry.
    """

    rows: Integers  # (T,)
    labels: Integers  # (T,)
    images: int  # N

    @property
    def known(self) -> Flags:
        """`(N,)`: whether the image shows any landmark."""
        known = np.zeros(self.images, dtype=bool)
        known[self.rows] = True
        return known

    @property
    def first(self) -> Integers:
        """`(N,)`: the landmark that the image counts for, `NO_LABEL` where it shows none."""
        first = np.full(self.images, NO_LABEL, dtype=np.int64)
        first[self.rows[::-1]] = self.labels[::-1]
        return first

    def subset(self, chosen: Flags) -> Truth:
        """Return the truth of the images where `chosen` `(N,)` is true, renumbered in their order."""
        renumbered = np.cumsum(chosen) - 1
        kept = chosen[self.rows]
        return Truth(renumbered[self.rows[kept]], self.labels[kept], int(chosen.sum()))


def truth_of(lists: list[list[int]] | list[set[int]]) -> Truth:
    """Return the `Truth` of images given as one list of labels each."""
    counts = [len(labels) for labels in lists]
    flat = np.array([label for labels in lists for label in labels], dtype=np.int64)
    return Truth(np.repeat(np.arange(len(lists)), counts), flat, len(lists))


def correct_answers(labels: Integers, truth: Truth) -> Flags:
    """Return `(N, k)`: whether the answer is among the landmarks that its image shows."""
    require_row_per_image(labels, truth.images)
    if not truth.rows.size or not labels.size:
        return np.zeros(labels.shape, dtype=bool)
    names, places = np.unique(np.concatenate([labels.ravel(), truth.labels]), return_inverse=True)
    rows = np.repeat(np.arange(labels.shape[0]), labels.shape[1])
    answered_pairs = rows * len(names) + places[: labels.size]  # one number per pair of image and label
    true_pairs = truth.rows * len(names) + places[labels.size :]
    right: Flags = np.isin(answered_pairs, true_pairs).reshape(labels.shape) & (labels != NO_LABEL)
    return right


def top_k(labels: Integers, truth: Truth, k: int) -> Flags:
    """Return `(N,)`: whether one of the first `k` answers is right; False for unknown images."""
    right: Flags = np.any(correct_answers(labels[:, :k], truth), axis=1)
    return right


def log_loss(truth_log_score: Floats) -> float:
    """Return the mean of `-truth_log_score` `(N,)`, natural logarithms of the probability given to the truth."""
    if not len(truth_log_score):
        return float("nan")
    require_numbers(truth_log_score, "logarithms of probabilities")
    return float(-np.mean(truth_log_score, dtype=np.float64))


def per_landmark(first: Integers, correct: Flags) -> tuple[Integers, Integers, Integers]:
    """Return `(labels, images, correct)`, each `(L,)`, of the landmarks in `first` `(N,)`, labels ascending."""
    labels, places, images = np.unique(first, return_inverse=True, return_counts=True)
    hits = np.bincount(places, weights=correct, minlength=len(labels)).astype(np.int64)
    return labels, images, hits


def macro_accuracy(first: Integers, correct: Flags) -> float:
    """Return the mean over the landmarks in `first` `(N,)` of the share of their images that are `correct`."""
    _, images, hits = per_landmark(first, correct)
    return float(np.mean(hits / images)) if len(images) else float("nan")


def confusion_pairs(first: Integers, answers: Integers, correct: Flags) -> tuple[Integers, Integers, Integers]:
    """Return the confusion matrix in sparse form: `(truth, answer, count)` of every pair that occurs, sorted.

    An image that shows several landmarks counts for the one answered if that is right, else for the first.
    """
    shown = np.where(correct, answers, first)
    pairs, counts = np.unique(np.stack([shown, answers], axis=1), axis=0, return_counts=True)
    return pairs[:, 0], pairs[:, 1], counts


def most_confused(truth: Integers, answer: Integers, count: Integers, limit: int) -> list[tuple[int, int, int]]:
    """Return at most `limit` wrong pairs `(truth, answer, count)` of a sparse confusion matrix, most frequent first."""
    wrong = truth != answer
    truth, answer, count = truth[wrong], answer[wrong], count[wrong]
    order = np.lexsort((answer, truth, -count))[:limit]
    return [(int(truth[i]), int(answer[i]), int(count[i])) for i in order]


def require_numbers(values: Floats, what: str) -> None:
    """Raise `LandmarksError` when `values` hold NaN or infinity, which have no order and no mean."""
    broken = ~np.isfinite(values)
    if broken.any():
        raise LandmarksError(
            f"{int(broken.sum())} of {values.size} {what} are no numbers", received=str(values[broken].ravel()[0])
        )


def require_row_per_image(values: NDArray[np.generic], images: int) -> None:
    """Raise `LandmarksError` when `values` does not have one row per image."""
    if len(values) != images:
        raise LandmarksError("answers and truth differ in length", received=len(values), expected=images)


# Global average precision (GAP, also µAP), the metric of the landmark recognition challenge.


GAP_DEFINITIONS = {
    "gap": "Global average precision: one answer and one score per image, sorted by score descending, ties by id "
    "and then by landmark, ascending; at each rank whose landmark is among those the image shows, the share of "
    "right answers so far is added; the sum is divided by the number of images that show a known landmark.",
    "gap_of_known": "The same over known images alone.",
    "gap_of_usage": "The same over the images of each usage alone (Public, Private).",
}


def global_average_precision(
    ids: Sequence[str] | NDArray[np.object_], answers: Integers, scores: Floats, truth: Truth
) -> float:
    """Return the global average precision of one answer per image; NaN when no image shows a landmark.

    `ids` `(N,)` unique, `answers` `(N,)` landmarks with `NO_LABEL` where there is none, `scores` `(N,)` finite where
    there is an answer. As published with Google Landmarks v2 (Weyand et al., CVPR 2020, §4.2; Perronnin et al. 2009).
    Raises `LandmarksError` on an id that occurs twice and on scores that are not finite.
    """
    require_unique_ids(ids)
    answered = answers != NO_LABEL
    require_numbers(scores[answered], "scores")
    landmarks = int(truth.known.sum())
    if not landmarks:
        return float("nan")
    correct = correct_answers(answers[:, None], truth)[:, 0]
    kept = np.flatnonzero(answered)
    order = np.lexsort((answers[kept], np.asarray(ids, dtype=str)[kept], -scores[kept]))
    return _precision_sum(correct[kept][order]) / landmarks


def _precision_sum(correct: Flags) -> float:
    ranks = np.flatnonzero(correct) + 1
    return float(np.sum(np.arange(1, len(ranks) + 1) / ranks))


def require_unique_ids(ids: Sequence[str] | NDArray[np.object_]) -> None:
    """Raise `LandmarksError` when an id occurs more than once: an image has one prediction."""
    array = np.sort(np.asarray(ids, dtype=str))
    repeated = np.flatnonzero(array[1:] == array[:-1])
    if len(repeated):
        raise LandmarksError(
            f"{len(repeated)} image{'s are' if len(repeated) > 1 else ' is'} predicted more than once",
            received=f'"{array[repeated[0]]}" twice',
            expected="one prediction per image",
        )


# Selective prediction: the risk–coverage curve, and how well a score separates known from unknown images.


SELECTIVE_DEFINITIONS = {
    "risk_coverage": "Known images are answered in the order of the probability of their best answer, surest "
    "first; coverage is the share answered, risk the share of wrong answers among them; images of equal "
    "probability share their mistakes evenly. `area` is the mean of the risk over all coverages (smaller is better).",
    "auroc": "Probability that a random known image scores higher than a random unknown one; ties count half.",
}


def risk_coverage(confidence: Floats, correct: Flags) -> tuple[Floats, Floats]:
    """Return `(coverage, risk)`, each `(N,)`, of answering the 1, 2, .. N most confident images.

    Images of equal confidence share their mistakes evenly, which is the mean over all their orders: the order of the
    rows does not matter (Geifman & El-Yaniv, NeurIPS 2017).
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
    """Return the area under the receiver operating characteristic (AUROC) of scores, larger for `known` images.

    Computed as the Mann–Whitney statistic, in O(n log n); NaN when either side is empty.
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
    """Return the smallest threshold that at most the share `rate` of `unknown` `(N,)` reaches."""
    require_numbers(unknown, "scores")
    allowed = math.floor(rate * len(unknown))
    descending = np.sort(unknown)[::-1]
    if allowed >= len(descending):
        return -math.inf
    return float(np.nextafter(descending[allowed], np.inf, dtype=descending.dtype))


def threshold_for_loss(known: Floats, share: float) -> float:
    """Return the largest threshold that at most the share `share` of `known` `(N,)` falls below."""
    require_numbers(known, "scores")
    if not len(known):
        return -math.inf
    return float(np.sort(known)[min(math.floor(share * len(known)), len(known) - 1)])


# Calibration: expected calibration error, the reliability curve, temperature.


BINS = 15
"""Number of bins of equal width: what most papers use, so that values can be compared."""

CALIBRATION_DEFINITIONS = {
    "ece": "Expected calibration error: known images fall into 15 bins of equal width by the probability of "
    "their best answer; mean over images of the distance between a bin's mean probability and its share of right "
    "answers.",
    "ece_before_temperature": "The same error of the probabilities as the network gives them, before the temperature.",
    "reliability": "Per bin that holds images: mean probability of the best answer, share of right answers, images.",
    "temperature": "Number by which the outputs are divided before the softmax, fitted on the validation split by "
    "least log loss; above 1 it makes answers less sure and never changes their order. With fewer than 3 wrong answers "
    "to fit it to it stays 1.",
}


def reliability(confidence: Floats, correct: Flags, bins: int = BINS) -> tuple[Floats, Floats, Integers]:
    """Return `(mean confidence, accuracy, images)` of each bin ((b-1)/B, b/B] that holds images."""
    if len(confidence) and (np.isnan(confidence).any() or confidence.min() < 0 or confidence.max() > 1):
        raise LandmarksError("a confidence is no probability", expected="values between 0 and 1")
    edges = np.linspace(0, 1, bins + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    filled = counts > 0
    means = np.bincount(places, weights=confidence, minlength=bins)[filled] / counts[filled]
    accuracy = np.bincount(places, weights=correct, minlength=bins)[filled] / counts[filled]
    return means, accuracy, counts[filled]


def calibration_error(confidence: Floats, correct: Flags, bins: int = BINS) -> float:
    """Return the expected calibration error of `confidence` `(N,)` in 0..1.

    Naeini et al. (AAAI 2015); Guo et al. (ICML 2017), equation 3.
    """
    if not len(confidence):
        return math.nan
    means, accuracy, counts = reliability(confidence, correct, bins)
    return float(np.sum(counts * np.abs(means - accuracy)) / counts.sum())
