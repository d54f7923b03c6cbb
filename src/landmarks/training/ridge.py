"""Ridge regression in closed form from features to one column per landmark, in bounded memory.

With centred features X `(P, C)` and centred targets Y (+1 for an image's landmark, -1 for all others), the weights are
W = (XᵀX + λI)⁻¹ XᵀY (Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, §4.2). With fewer images than
features the same weights come from the smaller matrix, W = Xᵀ (XXᵀ + λI)⁻¹ Y. Images and landmarks are processed in
blocks, so that nothing is dense in images × landmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from landmarks.support.errors import LandmarksError
from landmarks.training.features import Rows

MAX_SIDE = 8192
"""Largest matrix that is solved, in rows and columns of 8 bytes: half a gigabyte."""

BLOCK_BYTES = 1 << 25
"""Approximate size of a block of images or landmarks."""

ROWS = 1024
"""Images per block, unless their features are too long."""


@dataclass(frozen=True)
class RidgeMoments:
    """What regressions with different penalties on the same images have in common."""

    x: Rows | NDArray[np.floating]  # (P, C)
    y: NDArray[np.integer]  # (P,)
    mean: NDArray[np.float64]  # (C,)
    counts: NDArray[np.int64]  # (K,) images of each landmark
    square: NDArray[np.float64]  # XᵀX (C, C), or XXᵀ (P, P) if that is smaller

    @property
    def of_images(self) -> bool:
        """Whether `square` is XXᵀ."""
        return len(self.y) < len(self.mean)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Rows (P,) sorted by their label."""
        return np.argsort(self.y, kind="stable")

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Positions (K + 1,) in `order` at which the rows of each label begin, and the last ones end."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def _last_targets(self) -> dict[tuple[int, int], NDArray[np.float64]]:
        """A cache of one: with few landmarks the targets are the same for every penalty."""
        return {}

    def fit(self, penalty: float) -> Ridge:
        """Return the regression with λ = `penalty` times the features' mean squared length per dimension."""
        strength = max(penalty * float(np.trace(self.square)) / len(self.mean), 1e-12)  # 0 if all images are the same
        regular = self.square.copy()
        regular[np.diag_indices_from(regular)] += strength
        return Ridge(self, scipy.linalg.cho_factor(regular, lower=True, overwrite_a=True, check_finite=False))

    def targets(self, first: int, last: int) -> NDArray[np.float64]:
        """Return the right-hand side for the labels from `first` up to `last`: XᵀY `(C, k)`, or Y `(P, k)`."""
        if (first, last) not in self._last_targets:
            self._last_targets.clear()
            self._last_targets[first, last] = self._targets(first, last)
        return self._last_targets[first, last]

    def _targets(self, first: int, last: int) -> NDArray[np.float64]:
        counts, rows = self.counts[first:last], self.order[self.ends[first] : self.ends[last]]
        if self.of_images:
            targets = np.repeat(-2 * counts[None] / len(self.y), len(self.y), axis=0)
            targets[rows, self.y[rows] - first] += 2
            return targets
        sums = np.zeros((last - first, len(self.mean)))
        for start in range(0, len(rows), rows_at_once(len(self.mean))):
            block = rows[start : start + rows_at_once(len(self.mean))]
            labels, begins = np.unique(self.y[block] - first, return_index=True)
            sums[labels] += np.add.reduceat(np.asarray(self.x[block], dtype=np.float64), begins, axis=0)
        return 2 * (sums - counts[:, None] * self.mean).T  # the -1 of the targets cancels, because X is centred


@dataclass(frozen=True)
class Ridge:
    """A fitted regression."""

    moments: RidgeMoments
    factor: tuple[Any, bool]  # Cholesky factor of the regularised square, for `cho_solve`

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield blocks of labels, each as its first label and one past its last."""
        longest = max(len(self.moments.mean), ROWS, len(self.moments.y) if self.moments.of_images else 0)
        step, classes = max(1, BLOCK_BYTES // (8 * longest)), len(self.moments.counts)
        for first in range(0, classes, step):
            yield first, min(first + step, classes)

    def weights(self, first: int, last: int) -> NDArray[np.float64]:
        """Return the weights `(C, k)` of the labels from `first` up to `last`."""
        solved: NDArray[np.float64] = scipy.linalg.cho_solve(
            self.factor, self.moments.targets(first, last), check_finite=False
        )
        if not self.moments.of_images:
            return solved
        weights = np.zeros((len(self.moments.mean), last - first))
        for start, block in centred_blocks(self.moments.x, self.moments.mean):
            weights += block.T @ solved[start : start + len(block)]
        return weights

    def values(self, x: NDArray[np.floating], weights: NDArray[np.float64], first: int) -> NDArray[np.float64]:
        """Return the values `(Q, k)` of features `x` `(Q, C)` for the labels from `first` on: +1 for yes, -1 for no."""
        counts = self.moments.counts[first : first + weights.shape[1]]
        values: NDArray[np.float64] = (x - self.moments.mean) @ weights
        return values + (2 * counts / len(self.moments.y) - 1)


def ridge_moments(x: Rows | NDArray[np.floating], y: NDArray[np.integer], classes: int) -> RidgeMoments | None:
    """Return the moments of features `x` `(P, C)` with labels `y` `(P,)`, or None if P and C both exceed `MAX_SIDE`.

    Time grows with P·C·min(P, C), memory with min(P, C)².
    """
    images, width = x.shape
    if min(images, width) > MAX_SIDE:
        return None
    mean = np.zeros(width)
    for _, block in centred_blocks(x, np.zeros(width)):
        mean += block.sum(axis=0) / images
    if images < width:
        square = np.empty((images, images))
        for start, block in centred_blocks(x, mean):
            for other, second in centred_blocks(x, mean, start):
                product = block @ second.T
                square[start : start + len(block), other : other + len(second)] = product
                square[other : other + len(second), start : start + len(block)] = product.T
    else:
        square = np.zeros((width, width))
        for _, block in centred_blocks(x, mean):
            square += block.T @ block
    return RidgeMoments(x, y, mean, np.bincount(y, minlength=classes), square)


def rows_at_once(width: int) -> int:
    """Return the number of images in a block, for features of length `width`."""
    return min(ROWS, max(1, BLOCK_BYTES // (8 * width)))


def centred_blocks(
    x: Rows | NDArray[np.floating], mean: NDArray[np.float64], start: int = 0
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield blocks of the rows of `x` from `start` on, minus `mean`, each with the position of its first row."""
    step = rows_at_once(x.shape[1])
    for first in range(start, len(x), step):
        yield first, np.asarray(x[first : first + step], dtype=np.float64) - mean


# ── The linear probe: a first measure of a backbone, without settings (big_vision's few-shot evaluation) ────────────


PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ relative to the features' mean squared length per dimension; the best on validation is taken."""


@dataclass(frozen=True)
class Probe:
    """The validation accuracy of a linear probe, and its penalty."""

    val_accuracy: float
    penalty: float


def ridge_probe(
    x: Rows,
    y: NDArray[np.int64],
    x_val: Rows,
    y_val: NDArray[np.int64],
    classes: int,
) -> Probe | None:
    """Fit features `x` (P, C) to labels `y` (P,) in closed form and validate on `x_val` (Q, C), `y_val` (Q,).

    Returns None if P and C both exceed `MAX_SIDE`. Time grows with P·C·min(P, C) and with C·K for K `classes`, memory
    with min(P, C)².
    """
    moments = ridge_moments(x, y, classes)
    if moments is None:
        return None
    best = Probe(val_accuracy=-1.0, penalty=0.0)
    for penalty in PENALTIES:
        accuracy = float((_answers(moments.fit(penalty), x_val) == y_val).mean())
        if accuracy > best.val_accuracy:
            best = Probe(accuracy, penalty)
    return best


def _answers(ridge: Ridge, x: Rows) -> NDArray[np.int64]:
    """Return the label (Q,) with the largest value for each row of `x`; of equal ones, the first."""
    largest, labels = np.full(len(x), -np.inf), np.zeros(len(x), np.int64)
    step = rows_at_once(x.shape[1])
    for first, last in ridge.blocks():
        weights = ridge.weights(first, last)
        for start in range(0, len(x), step):
            values = ridge.values(x[start : start + step], weights, first)
            top = values.argmax(axis=1)
            value = values[np.arange(len(top)), top]
            rows = start + np.flatnonzero(value > largest[start : start + step])
            largest[rows], labels[rows] = value[rows - start], first + top[rows - start]
    return labels


# ── A classifier on features ────────────────────────────────────────────────────────────────────────────────────────


PENALTY = 0.2
"""λ relative to the features' mean squared length per dimension; between 0.05 and 0.5 little changes."""


def fit_ridge(x: Rows | NDArray[np.floating], y: NDArray[np.integer], classes: int) -> Ridge:
    """Return the regression from features `x` `(P, C)` to labels `y` `(P,)`.

    Raises `LandmarksError` if P and C both exceed `MAX_SIDE`.
    """
    moments = ridge_moments(x, y, classes)
    if moments is None:
        raise LandmarksError(
            "the features are too long for a regression on so many images",
            received=f"{x.shape[1]:,} numbers, {x.shape[0]:,} images",
            expected=f"at most {MAX_SIDE:,} of either",
        )
    return moments.fit(PENALTY)


def ridge_scores(
    x: NDArray[np.floating], y: NDArray[np.integer], x_test: NDArray[np.floating], classes: int
) -> NDArray[np.float64]:
    """Fit features `x` `(P, C)` to labels `y` and return the values `(Q, classes)` of `x_test` `(Q, C)`.

    Values near +1 mean yes, near -1 no. Time grows with P·C·min(P, C).
    """
    ridge = fit_ridge(x, y, classes)
    return np.hstack([ridge.values(x_test, ridge.weights(first, last), first) for first, last in ridge.blocks()])
