"""What a recogniser keeps of its own images so that landmarks can be added, and the scores that follow from it.

Two answers in closed form are weighed against each other: the linear discriminant, which knows a landmark by its mean
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
"""Among which validation chooses what a log density counts for each log probability of the discriminant."""

MAX_NUMBERS = 1 << 21
"""Scores of validation images that the weights are chosen on."""


@dataclass(frozen=True)
class Weights:
    """What the discriminant's scores and the log densities are multiplied by."""

    discriminant: float
    density: float


@dataclass(frozen=True)
class ClosedForm:
    """Scores of K + L landmarks: K that a head was trained for, and L that were learned."""

    discriminant: Discriminant
    neighbourhood: Neighbourhood | None
    weights: Weights

    def scores(self, directions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return scores (N, K + L) of `directions` (N, C), larger is likelier."""
        scores = self.weights.discriminant * self.discriminant.scores(directions)
        if self.neighbourhood is None:
            return scores
        return scores + self.weights.density * self.neighbourhood.log_densities(directions, scores.shape[1])


@dataclass(frozen=True)
class Memory:
    """What a run keeps of its own images so that landmarks can be added."""

    moments: ClassMoments
    validation: Validation
    neighbourhood: Neighbourhood | None
    weights: Weights

    def with_learned(self, learned: Learned) -> ClosedForm:
        """Return the scores of the run's landmarks and the `learned` ones."""
        old, labels = len(self.moments.counts), len(self.moments.counts) + learned.places
        moments = self.moments.plus(learned.images, labels, old + len(learned.names))
        neighbourhood = self.neighbourhood
        if neighbourhood is not None and len(labels):
            neighbourhood = neighbourhood.plus(learned.images, labels)
        return ClosedForm(discriminant_of(moments), neighbourhood, self.weights)


def memory_of(
    moments: ClassMoments, validation: Validation, images: NDArray[np.floating], labels: NDArray[np.integer]
) -> Memory:
    """Return what to keep of training images with directions `images` (M, C), `labels` (M,) and their `moments`.

    Each answer is brought to its least log loss on the validation images; then the share of the densities and the
    scale of the sum are those with the least log loss.
    """
    neighbourhood = neighbourhood_of(moments, images, labels)
    classes = len(moments.counts)
    some = slice(None, None, max(1, len(validation.labels) * classes // MAX_NUMBERS))
    asked, truth = validation.images[some], validation.labels[some]
    discriminant = discriminant_of(moments).scores(asked)
    scale = fitted_scale(discriminant, truth)
    if neighbourhood is None:
        return Memory(moments, validation, None, Weights(1 / scale, 0.0))
    densities = neighbourhood.log_densities(asked, classes)
    density, logs = fitted_scale(densities, truth), log_softmax(discriminant / scale, axis=1)
    found = {share: fit_scale(logs + share * densities / density, truth) for share in DENSITY_SHARES}
    share = min(found, key=lambda one: found[one].loss)
    whole = found[share].scale
    return Memory(
        moments, validation, neighbourhood if share else None, Weights(1 / scale / whole, share / density / whole)
    )
