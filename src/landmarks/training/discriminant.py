"""New landmarks in closed form: sums that are kept, and the one equation that turns them into answers.

Of the training images' directions x `(C,)` (see `directions.py`) are kept XᵀX `(C, C)`, the sums XᵀY `(K, C)` and
the counts `(K,)`. A linear discriminant follows from them exactly (Hastie, Tibshirani & Friedman, §4.3): with the means
m_k = sum_k / count_k and the covariance within landmarks S = (XᵀX - Σ count_k m_k m_kᵀ) / N, shrunk towards the round
one, an image's score for landmark k is xᵀS⁻¹m_k - m_kᵀS⁻¹m_k / 2. Unlike ridge regression to ±1 it does not answer rare
landmarks less often, which a new one with five images among hundreds would be. A mean of n images lies further from the
origin than the true one, by tr(S⁻¹S) / n in expectation: that much is added to its score (twice half of it).

A new landmark adds its images to the same sums, so learning one by one, in any order, and all at once are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.special import logsumexp

from landmarks.training.features import Rows

SHRINKAGE = 0.5
"""Share of the round covariance mixed into the measured one; between 0.3 and 0.7 little changes."""

ROWS = 4096
"""Images at a time."""

MAX_LOST_SHARE = 0.0025
"""Share of the validation images that may be answered wrongly where the head alone answers them rightly."""

MAX_OFFSET = 3.0
"""What the log odds of new landmarks are raised by at most."""

TEMPERATURES = np.geomspace(0.02, 200, 121)
"""Among which validation chooses what the scores are divided by."""

STRIDE = 8
"""How many of them lie between two that are tried first."""


@dataclass(frozen=True)
class ClassMoments:
    """What is kept of images: exact sums in double precision."""

    square: NDArray[np.float64]  # (C, C) XᵀX
    sums: NDArray[np.float64]  # (K, C) XᵀY
    counts: NDArray[np.int64]  # (K,)

    def plus(self, images: NDArray[np.floating] | Rows, places: NDArray[np.integer], classes: int) -> ClassMoments:
        """Return these with `images` `(m, C)` added that show `places` `(m,)` of `classes`, K or more."""
        square, sums = self.square.copy(), np.zeros((classes, self.square.shape[0]))
        sums[: len(self.sums)] = self.sums
        counts = np.zeros(classes, dtype=np.int64)
        counts[: len(self.counts)] = self.counts
        for start in range(0, len(images), ROWS):
            some = images[start : start + ROWS].astype(np.float64)
            np.add.at(sums, places[start : start + ROWS], some)
            square += some.T @ some
        return ClassMoments(square, sums, counts + np.bincount(places, minlength=classes))


def class_moments(images: NDArray[np.floating] | Rows, labels: NDArray[np.integer], classes: int) -> ClassMoments:
    """Return the moments of directions `images` `(M, C)` that show `labels` `(M,)`, all below `classes`."""
    width = images.shape[1]
    nothing = ClassMoments(np.zeros((width, width)), np.zeros((0, width)), np.zeros(0, dtype=np.int64))
    return nothing.plus(images, labels, classes)


@dataclass(frozen=True)
class Discriminant:
    """Scores of directions x: `x @ weights + bias`, larger is likelier."""

    weights: NDArray[np.float64]  # (C, K)
    bias: NDArray[np.float64]  # (K,), -inf where a landmark has no image

    def scores(self, images: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the scores `(N, K)` of directions `images` `(N, C)`."""
        found: NDArray[np.float64] = images.astype(np.float64) @ self.weights + self.bias
        return found


def discriminant_of(moments: ClassMoments, shrinkage: float = SHRINKAGE) -> Discriminant:
    """Return the linear discriminant that follows from `moments`; time grows with C³ + C²·K."""
    images, there = int(moments.counts.sum()), moments.counts > 0
    means = moments.sums / np.maximum(moments.counts, 1)[:, None]
    within = within_of(moments)
    shrunk = _shrunk(within, shrinkage)
    factor = scipy.linalg.cho_factor(shrunk, lower=True, check_finite=False)
    middle = moments.sums.sum(axis=0) / images
    centred = np.where(there[:, None], means - middle, 0)  # which changes no difference of scores, and keeps them small
    weights = scipy.linalg.cho_solve(factor, centred.T, check_finite=False)
    excess = float(np.trace(scipy.linalg.cho_solve(factor, within, check_finite=False)))
    bias = excess / np.maximum(moments.counts, 1) / 2 - np.einsum("kc,ck->k", centred / 2 + middle, weights)
    return Discriminant(weights, np.where(there, bias, -np.inf))


def within_of(moments: ClassMoments) -> NDArray[np.float64]:
    """Return the covariance (C, C) within landmarks."""
    means = moments.sums / np.maximum(moments.counts, 1)[:, None]
    within: NDArray[np.float64] = moments.square - (means * moments.counts[:, None]).T @ means
    within /= moments.counts.sum()
    return within


def shrunk_within(moments: ClassMoments, shrinkage: float = SHRINKAGE) -> NDArray[np.float64]:
    """Return the covariance (C, C) within landmarks, with the share `shrinkage` of the round one mixed in."""
    return _shrunk(within_of(moments), shrinkage)


def _shrunk(within: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    spread = max(float(np.trace(within)), 1e-6)  # 0 where every landmark has one image
    shrunk = (1 - shrinkage) * within
    shrunk[np.diag_indices(len(within))] += shrinkage * spread / len(within)
    return shrunk


@dataclass(frozen=True)
class Validation:
    """What new landmarks are held against: V validation images of the old ones, and what the head says of them."""

    images: NDArray[np.float16]  # (V, C) directions
    labels: NDArray[np.int64]  # (V,)
    logs: NDArray[np.float16]  # (V, K) natural logarithms of the head's probabilities, after temperature


@dataclass(frozen=True)
class FittedScale:
    """What scores are divided by for the least log loss, and that loss."""

    scale: float
    loss: float


def fit_scale(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> FittedScale:
    """Return what `scores` `(V, K)` are to be divided by for the least log loss on `labels` `(V,)`; 1 without any."""
    true = scores[np.arange(len(scores)), labels]
    kept = np.isfinite(true)
    if not kept.any():
        return FittedScale(1.0, np.inf)
    scores, true = scores[kept], true[kept]

    def at(place: int) -> FittedScale:
        scale = float(TEMPERATURES[place])
        return FittedScale(scale, float(np.mean(logsumexp(scores / scale, axis=1) - true / scale)))

    def least(places: range) -> int:
        return min(places, key=lambda place: at(place).loss)

    near = least(range(0, len(TEMPERATURES), STRIDE))  # convex in the inverse, so the least is close by
    return at(least(range(max(0, near - STRIDE + 1), min(near + STRIDE, len(TEMPERATURES)))))


def fitted_scale(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the `scale` of `fit_scale`."""
    return fit_scale(scores, labels).scale


def log_odds_of_new(scores: NDArray[np.floating], old: int) -> NDArray[np.float64]:
    """Return the log odds `(N, K - old)` of each new landmark against all `old` ones together, from scores `(N, K)`."""
    found: NDArray[np.float64] = scores[:, old:] - logsumexp(scores[:, :old], axis=1, keepdims=True)
    return found


def mean_log_probabilities(head_logs: NDArray[np.floating], scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logarithms `(N, K)` of the mean of two answers: the head's, and that of `scores` `(N, K)`."""
    found: NDArray[np.float64] = np.logaddexp(head_logs, scores - logsumexp(scores, axis=1, keepdims=True))
    found -= np.log(2)
    return found


def new_landmark_offset(scores: NDArray[np.floating], validation: Validation) -> float:
    """Return what is added to the new landmarks' log odds: as much as the old ones can bear, `MAX_OFFSET` at most.

    `scores` `(V, K + L)` are those of the validation images. The answers to these, head and scores together, may then
    be wrong for the share `MAX_LOST_SHARE` more of them than the head's alone are. Without validation images it is 0.
    """
    old = validation.logs.shape[1]
    if not len(validation.labels) or old >= scores.shape[1]:
        return 0.0
    logs = validation.logs.astype(np.float64)
    answers = mean_log_probabilities(logs, scores[:, :old])
    right = answers.argmax(axis=1) == validation.labels
    spare = int(right.sum() - (logs.argmax(axis=1) == validation.labels).sum() + MAX_LOST_SHARE * len(right))
    margins = np.sort((answers.max(axis=1) - log_odds_of_new(scores, old).max(axis=1))[right])
    bearable = float(margins[max(spare, 0)]) - 1e-6 if max(spare, 0) < len(margins) else MAX_OFFSET
    return min(MAX_OFFSET, bearable)
