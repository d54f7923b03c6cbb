"""Accuracy of answers, from arrays: what is right, per landmark and on average, and what is mistaken for what.

`N` photographs, `T` truths (a photograph may show several landmarks, or none), `k` answers a photograph, best first.
Labels are integers that need not be dense: nothing here allocates by the number of landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landmarks.dataset.manifest import NO_LABEL
from landmarks.support.errors import LandmarksError

Integers = NDArray[np.integer]
Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

DEFINITIONS = {
    "photographs": "Photographs judged, known and unknown ones.",
    "known": "Photographs that show at least one of the run's landmarks; all others are unknown.",
    "unknown": "Photographs that show none of the run's landmarks.",
    "landmarks": "Landmarks that at least one known photograph shows first.",
    "top1": "Share of known photographs whose best answer is one of the landmarks they show; of answers with equal "
    "scores the one with the smallest label is the better.",
    "top5": "Share of known photographs with one of the landmarks they show among the five best answers.",
    "macro": "Mean over landmarks of the share of a landmark's photographs whose best answer is right; a photograph "
    "counts for the first landmark it shows; landmarks without photographs in this part are left out.",
    "landmark_accuracy": "Share of a landmark's photographs whose best answer is right, with Wilson's score interval "
    "at 95 %.",
    "log_loss": "Mean over known photographs of minus the natural logarithm of the probability given to the first "
    "landmark they show.",
    "confused": "Ordered pairs (landmark shown first, wrong best answer), counted over known photographs, most "
    "frequent first, ties by truth and then by answer; a photograph without an answer is in no pair.",
}
"""What each number means, in one sentence; carried beside the numbers wherever they are stored."""


@dataclass(frozen=True)
class Truth:
    """Which landmarks each of `photographs` photographs shows: photograph `rows[i]` shows `labels[i]`.

    `rows` ascend; a photograph's first entry is the landmark it counts for.
    """

    rows: Integers
    labels: Integers
    photographs: int

    @property
    def known(self) -> Flags:
        """`(N,)`: does the photograph show any landmark?"""
        known = np.zeros(self.photographs, dtype=bool)
        known[self.rows] = True
        return known

    @property
    def first(self) -> Integers:
        """`(N,)`: the landmark that a photograph counts for, `NO_LABEL` where it shows none."""
        first = np.full(self.photographs, NO_LABEL, dtype=np.int64)
        first[self.rows[::-1]] = self.labels[::-1]
        return first

    def of(self, chosen: Flags) -> Truth:
        """Return the truth of the photographs marked in `chosen` `(N,)`, renumbered in their order."""
        renumbered = np.cumsum(chosen) - 1
        kept = chosen[self.rows]
        return Truth(renumbered[self.rows[kept]], self.labels[kept], int(chosen.sum()))


def truth_of(lists: list[list[int]] | list[set[int]]) -> Truth:
    """Return the `Truth` of one list of labels per photograph."""
    counts = [len(labels) for labels in lists]
    flat = np.array([label for labels in lists for label in labels], dtype=np.int64)
    return Truth(np.repeat(np.arange(len(lists)), counts), flat, len(lists))


def correct_answers(labels: Integers, truth: Truth) -> Flags:
    """Return `(N, k)`: is the answer among the landmarks that its photograph shows?"""
    require_photographs(labels, truth.photographs)
    if not truth.rows.size or not labels.size:
        return np.zeros(labels.shape, dtype=bool)
    names, places = np.unique(np.concatenate([labels.ravel(), truth.labels]), return_inverse=True)
    rows = np.repeat(np.arange(labels.shape[0]), labels.shape[1])
    asked = rows * len(names) + places[: labels.size]
    true = truth.rows * len(names) + places[labels.size :]
    right: Flags = np.isin(asked, true).reshape(labels.shape) & (labels != NO_LABEL)
    return right


def top_k(labels: Integers, truth: Truth, k: int) -> Flags:
    """Return `(N,)`: is one of the first `k` answers right? Photographs of nothing known are always False."""
    right: Flags = np.any(correct_answers(labels[:, :k], truth), axis=1)
    return right


def log_loss(truth_log_score: Floats) -> float:
    """Return the mean of `-truth_log_score` `(N,)`, natural logarithms of the probability given to the truth."""
    if not len(truth_log_score):
        return float("nan")
    require_numbers(truth_log_score, "logarithms of probabilities")
    return float(-np.mean(truth_log_score, dtype=np.float64))


def per_landmark(first: Integers, correct: Flags) -> tuple[Integers, Integers, Integers]:
    """Return `(labels, photographs, correct)`, each `(L,)`, of the landmarks in `first` `(N,)`, labels ascending."""
    labels, places, photographs = np.unique(first, return_inverse=True, return_counts=True)
    hits = np.bincount(places, weights=correct, minlength=len(labels)).astype(np.int64)
    return labels, photographs, hits


def macro_accuracy(first: Integers, correct: Flags) -> float:
    """Return the mean over the landmarks in `first` `(N,)` of the share of their photographs that are `correct`."""
    _, photographs, hits = per_landmark(first, correct)
    return float(np.mean(hits / photographs)) if len(photographs) else float("nan")


def confusion(first: Integers, answers: Integers, correct: Flags) -> tuple[Integers, Integers, Integers]:
    """Return `(truth, answer, count)` of every pair that occurs, sorted by truth, then answer: the sparse matrix.

    Where an answer is right although it is not the first landmark shown, the photograph counts as that landmark's.
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
    """Raise when `values` hold NaN or infinity: no order and no mean of them means anything."""
    broken = ~np.isfinite(values)
    if broken.any():
        raise LandmarksError(
            f"{int(broken.sum())} of {values.size} {what} are no numbers", received=str(values[broken].ravel()[0])
        )


def require_photographs(values: NDArray[np.generic], photographs: int) -> None:
    """Raise when `values` are not one row per photograph."""
    if len(values) != photographs:
        raise LandmarksError("answers and truth differ in length", received=len(values), expected=photographs)
