"""The memory of a recogniser, which lets landmarks be added, and the closed-form scores computed from it.

The scores are the weighted sum of two closed forms: the linear discriminant, which represents a landmark by its mean
(`training/discriminant.py`), and the density of remembered images around the image (`kernel_density.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from landmarks.recognition.kernel_density import Neighbourhood, neighbourhood_of
from landmarks.recognition.learned_images import Learned
from landmarks.training.discriminant import (
    ClassMoments,
    Discriminant,
    Validation,
    discriminant_of,
    fit_scale,
    fitted_scale,
)

DENSITY_SHARES = (0.0, 0.5, 1.0, 2.0)
"""Candidates for the weight of the log densities relative to the discriminant's; validation chooses one."""

MAX_NUMBERS = 1 << 21
"""Most scores of validation images that the weights are chosen on."""


@dataclass(frozen=True)
class Weights:
    """Factors of the discriminant's scores and of the log densities."""

    discriminant: float
    density: float


@dataclass(frozen=True)
class ClosedForm:
    """Scores of K trained and L learned landmarks."""

    discriminant: Discriminant
    neighbourhood: Neighbourhood | None
    weights: Weights

    def scores(self, directions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the scores (N, K + L) of `directions` (N, C); larger is likelier."""
        scores = self.weights.discriminant * self.discriminant.scores(directions)
        if self.neighbourhood is None:
            return scores
        return scores + self.weights.density * self.neighbourhood.log_densities(directions, scores.shape[1])


@dataclass(frozen=True)
class Memory:
    """What a run keeps of its own images so that it can learn landmarks."""

    moments: ClassMoments
    validation: Validation
    neighbourhood: Neighbourhood | None
    weights: Weights

    def with_learned(self, learned: Learned) -> ClosedForm:
        """Return the closed form of the run's landmarks and the `learned` ones."""
        old, labels = len(self.moments.counts), len(self.moments.counts) + learned.places
        moments = self.moments.plus(learned.images, labels, old + len(learned.names))
        neighbourhood = self.neighbourhood
        if neighbourhood is not None and len(labels):
            neighbourhood = neighbourhood.plus(learned.images, labels)
        return ClosedForm(discriminant_of(moments), neighbourhood, self.weights)


def memory_of(
    moments: ClassMoments, validation: Validation, images: NDArray[np.floating], labels: NDArray[np.integer]
) -> Memory:
    """Return the memory of training images with directions `images` (M, C), `labels` (M,) and `moments`.

    Discriminant and densities are each scaled for the least log loss on the validation images; then the share of the
    densities and the scale of the sum are chosen, again for the least log loss.
    """
    neighbourhood = neighbourhood_of(moments, images, labels)
    classes = len(moments.counts)
    rows = slice(None, None, max(1, len(validation.labels) * classes // MAX_NUMBERS))
    directions, truth = validation.images[rows], validation.labels[rows]
    discriminant = discriminant_of(moments).scores(directions)
    scale = fitted_scale(discriminant, truth)
    if neighbourhood is None:
        return Memory(moments, validation, None, Weights(1 / scale, 0.0))
    densities = neighbourhood.log_densities(directions, classes)
    density, logs = fitted_scale(densities, truth), log_softmax(discriminant / scale, axis=1)
    fits = {share: fit_scale(logs + share * densities / density, truth) for share in DENSITY_SHARES}
    share = min(fits, key=lambda candidate: fits[candidate].loss)
    total_scale = fits[share].scale
    weights = Weights(1 / scale / total_scale, share / density / total_scale)
    return Memory(moments, validation, neighbourhood if share else None, weights)
