"""Ridge regression in closed form: features to one column per landmark, exact, with memory that has a bound.

With features X `(P, C)`, centred, and targets Y of +1 for an image's landmark and -1 for all others, centred, the
weights are W = (XᵀX + λI)⁻¹ XᵀY (Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, §4.2). With fewer
images than features the same weights come from the smaller square, W = Xᵀ (XXᵀ + λI)⁻¹ Y. Images are read,
and landmarks answered, a block at a time: nothing is dense in images × landmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from landmarks.support.errors import LandmarksError
from landmarks.training.features import Rows

if TYPE_CHECKING:
    from landmarks.training.features import Rows


MAX_SIDE = 8192
"""Of the square that is solved, in numbers of 8 bytes: half a gigabyte."""

BLOCK_BYTES = 1 << 25
"""About what one block of images, or of landmarks, takes."""

ROWS = 1024
"""Images at a time, where their features are not too long for that."""


@dataclass(frozen=True)
class RidgeMoments:
    """What the regressions of all penalties on the same images share."""

    x: Rows | NDArray[np.floating]  # (P, C)
    y: NDArray[np.integer]  # (P,)
    mean: NDArray[np.float64]  # (C,)
    counts: NDArray[np.int64]  # (K,) images of each landmark
    square: NDArray[np.float64]  # (C, C) XᵀX, or (P, P) XXᵀ where that is smaller

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
        """Where in `order` the rows of each label begin, and the last ones end (K + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def kept(self) -> dict[tuple[int, int], NDArray[np.float64]]:
        """The targets asked for last: with few landmarks they are the same for every penalty."""
        return {}

    def fit(self, penalty: float) -> Ridge:
        """Return the regression with λ = `penalty` times the features' mean squared length per dimension."""
        strength = max(penalty * float(np.trace(self.square)) / len(self.mean), 1e-12)  # all may be the same
        regular = self.square.copy()
        regular[np.diag_indices_from(regular)] += strength
        return Ridge(self, scipy.linalg.cho_factor(regular, lower=True, overwrite_a=True, check_finite=False))

    def targets(self, first: int, last: int) -> NDArray[np.float64]:
        """Return the equations' right side for the labels from `first` up to `last`: XᵀY `(C, k)`, or Y `(P, k)`."""
        if (first, last) not in self.kept:
            self.kept.clear()
            self.kept[first, last] = self._targets(first, last)
        return self.kept[first, last]

    def _targets(self, first: int, last: int) -> NDArray[np.float64]:
        counts, rows = self.counts[first:last], self.order[self.ends[first] : self.ends[last]]
        if self.of_images:
            targets = np.repeat(-2 * counts[None] / len(self.y), len(self.y), axis=0)
            targets[rows, self.y[rows] - first] += 2
            return targets
        sums = np.zeros((last - first, len(self.mean)))
        for start in range(0, len(rows), rows_at_once(len(self.mean))):
            some = rows[start : start + rows_at_once(len(self.mean))]
            labels, begins = np.unique(self.y[some] - first, return_index=True)
            sums[labels] += np.add.reduceat(np.asarray(self.x[some], dtype=np.float64), begins, axis=0)
        return 2 * (sums - counts[:, None] * self.mean).T  # the -1 of every target falls out with the mean of X


@dataclass(frozen=True)
class Ridge:
    """A fitted regression."""

    moments: RidgeMoments
    factor: tuple[Any, bool]  # of the square, as `cho_solve` takes it

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the labels a block at a time, each from its first up to its last."""
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

    def values(self, asked: NDArray[np.floating], weights: NDArray[np.float64], first: int) -> NDArray[np.float64]:
        """Return the values `(Q, k)` of `asked` `(Q, C)` for the labels from `first` on, near +1 for yes, -1 for no."""
        counts = self.moments.counts[first : first + weights.shape[1]]
        values: NDArray[np.float64] = (asked - self.moments.mean) @ weights
        return values + (2 * counts / len(self.moments.y) - 1)


def ridge_moments(x: Rows | NDArray[np.floating], y: NDArray[np.integer], classes: int) -> RidgeMoments | None:
    """Return the moments of features `x` `(P, C)` with labels `y` `(P,)`; None where the smaller square is too large.

    Time grows with P·C·min(P, C), memory with the square of the smaller.
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
    """Return how many images with features of length `width` make a block."""
    return min(ROWS, max(1, BLOCK_BYTES // (8 * width)))


def centred_blocks(
    x: Rows | NDArray[np.floating], mean: NDArray[np.float64], start: int = 0
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the rows of `x` from `start` on, less `mean`, a block at a time, each with the position of its first."""
    step = rows_at_once(x.shape[1])
    for first in range(start, len(x), step):
        yield first, np.asarray(x[first : first + step], dtype=np.float64) - mean


# A linear probe in closed form: the first honest number about a backbone, in seconds and without any setting.
#
# Ridge regression from features to one column per landmark, as in big_vision's few-shot evaluation; see `ridge.py`.


PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ, as a share of the features' mean squared length; the best on validation is taken."""


@dataclass(frozen=True)
class Probe:
    """What the probe reached: the share of validation images answered rightly, and the penalty that did."""

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

    Returns None where images and features are both too many for it. Time grows with P·C·min(P, C) and with C·K
    for K `classes`, memory with the square of the smaller of P and C.
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


# A classifier in closed form on features: ridge regression to one column per landmark, one solve for any number.


PENALTY = 0.2
"""λ as a share of the features' mean squared length per dimension; between 0.05 and 0.5 little changes."""


def fit_ridge(x: Rows | NDArray[np.floating], y: NDArray[np.integer], classes: int) -> Ridge:
    """Return the regression of features `x` `(P, C)` to labels `y` `(P,)`; see `training/ridge.py`.

    Raises `LandmarksError` where images and features are both too many to be solved for.
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
    x: NDArray[np.floating], y: NDArray[np.integer], asked: NDArray[np.floating], classes: int
) -> NDArray[np.float64]:
    """Return the regression's values `(Q, classes)` for `asked` `(Q, C)`, fitted to `x` `(P, C)` with labels `y`.

    Values near +1 mean yes, near -1 no. Time grows with P·C·min(P, C).
    """
    ridge = fit_ridge(x, y, classes)
    return np.hstack([ridge.values(asked, ridge.weights(first, last), first) for first, last in ridge.blocks()])
