"""A network's answers and where it looked for each of them, from one pass over the photographs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landmarks.explanation.analytic import averages, channel_weights, has_formula, weighted
from landmarks.explanation.gradient import heat_by_gradient
from landmarks.networks.network import Network

ANALYTIC = "Grad-CAM from the head's own matrices (exact, no backward pass)"
GRADIENT = "Grad-CAM by automatic differentiation"


@dataclass(frozen=True)
class Explained:
    """For N photographs: the k best answers `labels` (N, k), all `probabilities` (N, K), heat `maps` (N, k, h, w)."""

    labels: Tensor
    probabilities: Tensor
    maps: Tensor
    method: str

    def only(self, row: int) -> Explained:
        """Return what concerns one of the photographs."""
        one = slice(row, row + 1)
        return Explained(self.labels[one], self.probabilities[one], self.maps[one], self.method)


def explain_images(network: Network, images: Tensor, answers: int = 4, temperature: float = 1.0) -> Explained:
    """Return the `answers` best classes of normalised images (N, 3, S, S) with their heat maps.

    Probabilities are the softmax of the logits over `temperature`. Ties go to the smaller label. The maps are those of
    the logits, so a saturated softmax does not empty them. The network must be in evaluation mode.
    """
    with torch.no_grad():
        maps, features = network.maps_and_features(images)
        logits = network.classify(features)
        order = logits.sort(dim=1, descending=True, stable=True).indices
        labels = order[:, : min(answers, network.classes)]
        probabilities = (logits / temperature).softmax(1)
        if has_formula(network.head) and averages(maps, features):
            heat = weighted(maps, channel_weights(network.head, maps, features, labels))
            return Explained(labels, probabilities, heat, ANALYTIC)
    return Explained(labels, probabilities, heat_by_gradient(network, images, labels), GRADIENT)


def scaled(maps: Tensor) -> Tensor:
    """Return heat maps (..., h, w) each scaled so that its warmest position is 1; an empty map stays empty."""
    top = maps.amax((-2, -1), keepdim=True)
    return torch.where(top > 0, maps / top.clamp(min=torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))
