"""A linear probe in closed form: the first honest number about a trunk, in seconds and without any setting.

Ridge regression from features to one column per landmark (as in big_vision's few-shot evaluation): with features X,
centred, and targets Y of -1 and +1, centred, the weights are W = (XᵀX + λI)⁻¹ XᵀY. XᵀX is gathered in blocks, so that
memory depends on the features' length and not on the number of photographs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from landmarks.training.features import Rows

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ, as a share of the features' mean squared length; the best on validation is taken."""

BLOCK = 8192
"""Photographs at a time."""


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
) -> Probe:
    """Fit features x (P, C) to labels y (P,) in closed form and measure it on x_val (Q, C), y_val (Q,).

    Time grows with C³ + P·C², memory with C² + C·K for K `classes`.
    """
    width = x.shape[1]
    mean = np.zeros(width)
    sums = np.zeros((width, classes))
    gram = np.zeros((width, width))
    for start in range(0, len(x), BLOCK):
        block = np.asarray(x[start : start + BLOCK], dtype=np.float64)
        mean += block.sum(axis=0)
        gram += block.T @ block
        np.add.at(sums.T, y[start : start + BLOCK], block)
    mean /= len(x)
    gram -= len(x) * np.outer(mean, mean)
    counts = np.bincount(y, minlength=classes)
    moments = 2 * (sums - mean[:, None] * counts)  # XᵀY: the -1 of every target falls out with the mean of X
    centred_val = np.asarray(x_val[:], dtype=np.float64) - mean
    intercept = 2 * counts / len(x) - 1
    scale = np.trace(gram) / width
    best = Probe(val_accuracy=-1.0, penalty=0.0)
    for penalty in PENALTIES:
        regular = gram + (penalty * scale + np.finfo(np.float64).tiny) * np.eye(width)
        weights = scipy.linalg.solve(regular, moments, assume_a="pos")
        answers = (centred_val @ weights + intercept).argmax(axis=1)
        accuracy = float((answers == y_val).mean())
        if accuracy > best.val_accuracy:
            best = Probe(accuracy, penalty)
    return best
