"""Telling known from unknown: the scores, by their names in the literature, and the rule that combines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[str, NDArray[np.float32]]

MSP, KNN, MAHALANOBIS = "msp", "knn", "mahalanobis"
KNN_UNKNOWN, CONTRAST = "knn_unknown", "contrast"
COMPARING = frozenset({KNN, MAHALANOBIS, KNN_UNKNOWN, CONTRAST})
"""Scores that need remembered images."""

WITH_UNKNOWN = frozenset({KNN_UNKNOWN, CONTRAST})
"""Scores that need remembered unknown images."""

FROM_ANSWERS = frozenset({MSP, "energy"})
"""Scores computed from the answers, which differ between ways of answering."""

SCORE_DEFINITIONS = {
    "score": "The number that a submission gives with its answer.",
    "msp": "Largest probability of any landmark, after temperature (maximum softmax probability, Hendrycks and Gimpel, "
    "ICLR 2017).",
    "energy": "Logarithm of the sum of the exponentials of the network's outputs (Liu et al., NeurIPS 2020).",
    "knn": "The ten training images nearest in cosine between signed square roots of the features vote for "
    "their landmark with weight exp((cosine - 1) / 0.05); logarithm of the votes of the landmark that got most.",
    "mahalanobis": "Mahalanobis distance to the mean of all training images minus that to the nearest landmark's mean, "
    "on the same features (relative Mahalanobis distance, Ren et al. 2021).",
    "knn_unknown": "Minus the logarithm of the votes of the ten nearest among the unknown images that the threshold "
    "was chosen on, weighted as for knn; an image does not vote for itself.",
    "contrast": "Mahalanobis distance to the mean of these unknown images minus that to the nearest landmark's mean; "
    "an unknown image is compared with the mean of the others.",
    "combined": "Weighted sum of energy and all scores that compare features; the weights of a logistic regression of "
    "known against unknown on the images that the threshold was chosen on.",
}


@dataclass(frozen=True)
class KnownRule:
    """The value that is compared with a threshold: the sum of `weights[name] * score` plus `constant`."""

    name: str
    weights: dict[str, float]
    constant: float = 0.0

    def apply(self, scores: Scores) -> NDArray[np.float32]:
        """Return the value of the rule for each image `(N,)`."""
        total = sum(weight * scores[name].astype(np.float64) for name, weight in self.weights.items())
        return np.asarray(total + self.constant, dtype=np.float32)

    def record(self) -> dict[str, Any]:
        """Return this as a JSON object."""
        return asdict(self)


def combined_rule(scores: Scores, known: NDArray[np.bool_]) -> KnownRule:
    """Return the rule that best tells `known` `(N,)` from unknown: a logistic regression on standardised scores.

    Known and unknown images have equal total weight, and the coefficients are regularised (C = 1).
    """
    from sklearn.linear_model import LogisticRegression

    names = sorted(scores)
    matrix = np.stack([scores[name].astype(np.float64) for name in names], axis=1)
    mean, deviation = matrix.mean(axis=0), np.maximum(matrix.std(axis=0), 1e-12)
    model = LogisticRegression(C=1.0, class_weight="balanced").fit((matrix - mean) / deviation, known)
    weights = model.coef_[0] / deviation
    constant = float(model.intercept_[0] - weights @ mean)
    return KnownRule("combined", {name: float(weight) for name, weight in zip(names, weights, strict=True)}, constant)
