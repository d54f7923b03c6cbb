"""Global average precision (GAP, also µAP), the number the landmark recognition challenge ranked by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from landmarks.dataset.manifest import NO_LABEL
from landmarks.evaluation.metrics import Flags, Floats, Integers, Truth, correct_answers, require_numbers
from landmarks.support.errors import LandmarksError

DEFINITIONS = {
    "gap": "Global average precision: one answer and one score per photograph, sorted by score descending, ties by id "
    "and then by landmark, ascending; at each rank whose landmark is among those the photograph shows, the share of "
    "right answers so far is added; the sum is divided by the number of photographs that show a known landmark.",
    "gap_of_known": "The same over known photographs alone.",
    "gap_of_usage": "The same over the photographs of each usage alone (Public, Private).",
}


def gap(ids: Sequence[str] | NDArray[np.object_], answers: Integers, scores: Floats, truth: Truth) -> float:
    """Return the global average precision of one answer per photograph; NaN when no photograph shows a landmark.

    `ids` `(N,)` unique, `answers` `(N,)` landmarks with `NO_LABEL` where there is none, `scores` `(N,)` finite where
    there is an answer. As published with Google Landmarks v2 (Weyand et al., CVPR 2020, §4.2; Perronnin et al. 2009).
    Raises on an id that occurs twice and on scores that are no numbers.
    """
    refuse_twice(ids)
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


def refuse_twice(ids: Sequence[str] | NDArray[np.object_]) -> None:
    """Raise when an id occurs more than once: a photograph has one prediction."""
    array = np.sort(np.asarray(ids, dtype=str))
    again = np.flatnonzero(array[1:] == array[:-1])
    if len(again):
        raise LandmarksError(
            f"{len(again)} photograph{'s are' if len(again) > 1 else ' is'} predicted more than once",
            received=f'"{array[again[0]]}" twice',
            expected="one prediction per photograph",
        )
