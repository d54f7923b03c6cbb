"""A linear probe in closed form: the first honest number about a trunk, in seconds and without any setting.

Ridge regression from features to one column per landmark, as in big_vision's few-shot evaluation; see `ridge.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landmarks.training.features import Rows
from landmarks.training.ridge import Ridge, moments_of, rows_at_once

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ, as a share of the features' mean squared length; the best on validation is taken."""


@dataclass(frozen=True)
class Probe:
    """What the probe reached: the share of validation photographs answered rightly, and the penalty that did."""

    val_accuracy: float
    penalty: float


def ridge_probe(
    x: Rows,
    y: NDArray[np.int64],
    x_val: Rows,
    y_val: NDArray[np.int64],
    classes: int,
) -> Probe | None:
    """Fit features x (P, C) to labels y (P,) in closed form and measure it on x_val (Q, C), y_val (Q,).

    Returns None where photographs and features are both too many for it. Time grows with P·C·min(P, C) and with C·K
    for K `classes`, memory with the square of the smaller of P and C.
    """
    moments = moments_of(x, y, classes)
    if moments is None:
        return None
    best = Probe(val_accuracy=-1.0, penalty=0.0)
    for penalty in PENALTIES:
        accuracy = float((_answers(moments.fitted(penalty), x_val) == y_val).mean())
        if accuracy > best.val_accuracy:
            best = Probe(accuracy, penalty)
    return best


def _answers(ridge: Ridge, asked: Rows) -> NDArray[np.int64]:
    """Return the label (Q,) with the largest value for each of `asked`, the first of equal ones."""
    largest, labels = np.full(len(asked), -np.inf), np.zeros(len(asked), np.int64)
    step = rows_at_once(asked.shape[1])
    for first, last in ridge.blocks():
        weights = ridge.weights(first, last)
        for start in range(0, len(asked), step):
            values = ridge.values(asked[start : start + step], weights, first)
            top = values.argmax(axis=1)
            value = values[np.arange(len(top)), top]
            rows = start + np.flatnonzero(value > largest[start : start + step])
            largest[rows], labels[rows] = value[rows - start], first + top[rows - start]
    return labels
