"""Linear discriminant analysis in closed form, to which new landmarks can be added.

Three sums over the directions x `(C,)` of the training images are stored (see `vectors.py`): XᵀX `(C, C)`, the sums
XᵀY `(K, C)` of each landmark and its number of images `(K,)`. They determine the linear discriminant exactly (Hastie,
Tibshirani & Friedman, §4.3): with the means m_k = sum_k / count_k and the within-landmark covariance
S = (XᵀX - Σ count_k m_k m_kᵀ) / N, shrunk towards a multiple of the identity, an image's score for landmark k is
xᵀS⁻¹m_k - m_kᵀS⁻¹m_k / 2. Unlike ridge regression to ±1, it does not answer rare landmarks less often, such as a new
one with five images among hundreds. The mean of n images lies further from the origin than the true mean: m_kᵀS⁻¹m_k is
too large by tr(S⁻¹S) / n in expectation, and half of that is added to the score.

A new landmark adds its images to the same sums, so the result does not depend on the order or number of additions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.special import logsumexp

from landmarks.training.features import Rows

SHRINKAGE = 0.5
"""Weight of the scaled identity mixed into the measured covariance; between 0.3 and 0.7 little changes."""

ROWS = 4096
"""Images processed at a time."""

MAX_LOST_SHARE = 0.0025
"""Largest share of the validation images by which new landmarks may lower the number of correct answers."""

MAX_OFFSET = 3.0
"""Largest offset added to the log odds of new landmarks."""

TEMPERATURES = np.geomspace(0.02, 200, 121)
"""Scales that scores are divided by, among which validation chooses."""

LEAST_WRONG = 3
"""Wrong answers needed to fit a scale or a temperature. Without any the best one would be 0, which makes every answer
certain; one or two would decide it alone."""

STRIDE = 8
"""Step through `TEMPERATURES` in the first, coarse search."""


@dataclass(frozen=True)
class ClassMoments:
    """Exact sums over images, in double precision."""

    square: NDArray[np.float64]  # (C, C) XᵀX
    sums: NDArray[np.float64]  # (K, C) XᵀY
    counts: NDArray[np.int64]  # (K,)

    def plus(self, images: NDArray[np.floating] | Rows, labels: NDArray[np.integer], classes: int) -> ClassMoments:
        """Return the moments with `images` `(m, C)` of `labels` `(m,)` added; `classes` is K or more."""
        square, sums = self.square.copy(), np.zeros((classes, self.square.shape[0]))
        sums[: len(self.sums)] = self.sums
        counts = np.zeros(classes, dtype=np.int64)
        counts[: len(self.counts)] = self.counts
        for start in range(0, len(images), ROWS):
            block = images[start : start + ROWS].astype(np.float64)
            np.add.at(sums, labels[start : start + ROWS], block)
            square += block.T @ block
        return ClassMoments(square, sums, counts + np.bincount(labels, minlength=classes))


def class_moments(images: NDArray[np.floating] | Rows, labels: NDArray[np.integer], classes: int) -> ClassMoments:
    """Return the moments of directions `images` `(M, C)` with `labels` `(M,)`, all below `classes`."""
    width = images.shape[1]
    empty = ClassMoments(np.zeros((width, width)), np.zeros((0, width)), np.zeros(0, dtype=np.int64))
    return empty.plus(images, labels, classes)


@dataclass(frozen=True)
class Discriminant:
    """A linear classifier of directions x: the scores are `x @ weights + bias`."""

    weights: NDArray[np.float64]  # (C, K)
    bias: NDArray[np.float64]  # (K,), -inf for a landmark without images

    def scores(self, images: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the scores `(N, K)` of directions `images` `(N, C)`."""
        found: NDArray[np.float64] = images.astype(np.float64) @ self.weights + self.bias
        return found


def discriminant_of(moments: ClassMoments, shrinkage: float = SHRINKAGE) -> Discriminant:
    """Return the linear discriminant of `moments`; time grows with C³ + C²·K."""
    images, has_images = int(moments.counts.sum()), moments.counts > 0
    means = moments.sums / np.maximum(moments.counts, 1)[:, None]
    within = within_of(moments)
    shrunk = _shrunk(within, shrinkage)
    factor = scipy.linalg.cho_factor(shrunk, lower=True, check_finite=False)
    middle = moments.sums.sum(axis=0) / images
    # Centring changes no difference between scores, and keeps them small.
    centred = np.where(has_images[:, None], means - middle, 0)
    weights = scipy.linalg.cho_solve(factor, centred.T, check_finite=False)
    excess = float(np.trace(scipy.linalg.cho_solve(factor, within, check_finite=False)))
    bias = excess / np.maximum(moments.counts, 1) / 2 - np.einsum("kc,ck->k", centred / 2 + middle, weights)
    return Discriminant(weights, np.where(has_images, bias, -np.inf))


def within_of(moments: ClassMoments) -> NDArray[np.float64]:
    """Return the within-landmark covariance (C, C)."""
    means = moments.sums / np.maximum(moments.counts, 1)[:, None]
    within: NDArray[np.float64] = moments.square - (means * moments.counts[:, None]).T @ means
    within /= moments.counts.sum()
    return within


def shrunk_within(moments: ClassMoments, shrinkage: float = SHRINKAGE) -> NDArray[np.float64]:
    """Return the within-landmark covariance (C, C), shrunk by `shrinkage` towards a multiple of the identity."""
    return _shrunk(within_of(moments), shrinkage)


def _shrunk(within: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    spread = max(float(np.trace(within)), 1e-6)  # 0 if every landmark has one image
    shrunk = (1 - shrinkage) * within
    shrunk[np.diag_indices(len(within))] += shrinkage * spread / len(within)
    return shrunk


@dataclass(frozen=True)
class Validation:
    """V validation images of the old landmarks and the head's answers to them, which limit those of new landmarks."""

    images: NDArray[np.float16]  # (V, C) directions
    labels: NDArray[np.int64]  # (V,)
    logs: NDArray[np.float16]  # (V, K) log probabilities of the head, after temperature


@dataclass(frozen=True)
class FittedScale:
    """The scale with the lowest log loss, and that loss."""

    scale: float
    loss: float


def fit_scale(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> FittedScale:
    """Return the scale that `scores` `(V, K)` are divided by for the lowest log loss on `labels` `(V,)`.

    Images whose true score is not finite are ignored; the scale is 1 if none remains. Where fewer than `LEAST_WRONG`
    are answered wrong, it is 1 or more: nothing but the range of scales would limit how sure the answers become.
    """
    true = scores[np.arange(len(scores)), labels]
    finite = np.isfinite(true)
    if not finite.any():
        return FittedScale(1.0, np.inf)
    scores, true = scores[finite], true[finite]
    wrong = int((scores.argmax(axis=1) != labels[finite]).sum())
    least = 0 if wrong >= LEAST_WRONG else int(np.searchsorted(TEMPERATURES, 1.0))

    def fit(index: int) -> FittedScale:
        scale = float(TEMPERATURES[index])
        return FittedScale(scale, float(np.mean(logsumexp(scores / scale, axis=1) - true / scale)))

    def best(indices: range) -> int:
        return min(indices, key=lambda index: fit(index).loss)

    # The loss is convex in 1 / scale, so the minimum is close to the best of a few.
    near = best(range(least, len(TEMPERATURES), STRIDE))
    return fit(best(range(max(least, near - STRIDE + 1), min(near + STRIDE, len(TEMPERATURES)))))


def fitted_scale(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the `scale` of `fit_scale`."""
    return fit_scale(scores, labels).scale


def log_odds_of_new(scores: NDArray[np.floating], old: int) -> NDArray[np.float64]:
    """Return the log odds `(N, K - old)` of each new landmark against all `old` ones, from scores `(N, K)`."""
    odds: NDArray[np.float64] = scores[:, old:] - logsumexp(scores[:, :old], axis=1, keepdims=True)
    return odds


def mean_log_probabilities(head_logs: NDArray[np.floating], scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the log `(N, K)` of the mean of two probabilities: the head's, and the softmax of `scores` `(N, K)`."""
    logs: NDArray[np.float64] = np.logaddexp(head_logs, scores - logsumexp(scores, axis=1, keepdims=True))
    logs -= np.log(2)
    return logs


def new_landmark_offset(scores: NDArray[np.floating], validation: Validation) -> float:
    """Return the offset of the new landmarks' log odds, from the scores `(V, K + L)` of the validation images.

    It is the largest, up to `MAX_OFFSET`, with which head and scores together answer at most `MAX_LOST_SHARE` of the
    validation images less correctly than the head alone. It is 0 without validation images or new landmarks.
    """
    old = validation.logs.shape[1]
    if not len(validation.labels) or old >= scores.shape[1]:
        return 0.0
    logs = validation.logs.astype(np.float64)
    answers = mean_log_probabilities(logs, scores[:, :old])
    correct = answers.argmax(axis=1) == validation.labels
    head_correct = logs.argmax(axis=1) == validation.labels
    may_lose = max(int(correct.sum() - head_correct.sum() + MAX_LOST_SHARE * len(correct)), 0)
    margins = np.sort((answers.max(axis=1) - log_odds_of_new(scores, old).max(axis=1))[correct])
    return min(MAX_OFFSET, float(margins[may_lose]) - 1e-6) if may_lose < len(margins) else MAX_OFFSET
