"""Heads that answer by remembered images: by these alone, with the trained head, or with landmarks learned later.

The scores of all landmarks, old (trained) and new (learned), are the weighted sum of the discriminant's scores and the
log densities of remembered images around the image. Let p_k be the trained head's probabilities of the old landmarks,
after temperature, and q_k the probabilities from the scores; let o_j be the odds, from the scores, of new landmark j
against all old ones together. Then, up to a common divisor, P(old k) is the mean of p_k and q_k, and P(new j) is o_j.
The heads return logits whose sum of exponentials over the old landmarks equals that of the trained head, so that
temperature, energy, heat maps and exports work unchanged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from landmarks.models.heads import Head
from landmarks.recognition.closed_form import ClosedForm
from landmarks.recognition.directions import Directions
from landmarks.recognition.kernel_density import LogDensities, Neighbourhood


class LearnedHead(Head):
    """A trained `head` mixed with a closed form, and the logits of the landmarks that only the closed form knows."""

    weights: Tensor
    bias: Tensor

    def __init__(self, head: Head, width: int, closed: ClosedForm, *, temperature: float, offset: float) -> None:
        """Take features of length `width`; `offset` is added to the log odds of the new landmarks."""
        super().__init__()
        discriminant, self.density_weight = closed.discriminant, closed.weights.density
        self.head, self.old, self.classes = head, head.classes, discriminant.weights.shape[1]
        self.settings = {"learned": self.classes - self.old}
        self.temperature, self.offset = temperature, offset
        self.directions = Directions(width)
        near = closed.neighbourhood
        self.densities = None if near is None else LogDensities(near, self.classes)
        self.register_buffer("weights", torch.from_numpy(discriminant.weights * closed.weights.discriminant).float())
        self.register_buffer("bias", torch.from_numpy(discriminant.bias * closed.weights.discriminant).float())

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores (N, K + L) of pooled features (N, C)."""
        directions = self.directions(features.float())
        scores: Tensor = directions @ self.weights + self.bias
        return scores if self.densities is None else scores + self.density_weight * self.densities(directions)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K + L) of pooled features (N, C): K old landmarks, then L new ones."""
        scaled = self.head(features).float() / self.temperature
        scores = self.scores(features)
        old, new = scores[:, : self.old], scores[:, self.old :]
        mean = torch.logaddexp(torch.log_softmax(scaled, 1), torch.log_softmax(old, 1)) - math.log(2)
        odds = new - torch.logsumexp(old, 1, keepdim=True) + self.offset
        logits: Tensor = torch.logsumexp(scaled, 1, keepdim=True) + torch.cat([mean, odds], 1)
        return self.temperature * logits


class NeighbourHead(Head):
    """Answers by the density of each landmark's remembered images around an image; `head` is kept, but not used."""

    def __init__(self, head: Head, width: int, near: Neighbourhood, *, classes: int, factor: float) -> None:
        """Take features of length `width`; logits are `factor` times the log densities of `classes` landmarks."""
        super().__init__()
        self.head, self.classes, self.settings, self.factor = head, classes, {}, factor
        self.directions, self.densities = Directions(width), LogDensities(near, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of pooled features (N, C)."""
        logits: Tensor = self.factor * self.densities(self.directions(features.float()))
        return logits


class BothHead(Head):
    """Answers by the mean probabilities of the trained head and the closed form; heat maps are the trained head's."""

    def __init__(self, mixed: LearnedHead, *, scale: float) -> None:
        """Take a head without new landmarks; its log probabilities are divided by `scale`."""
        super().__init__()
        self.mixed, self.classes, self.settings, self.scale = mixed, mixed.classes, {}, scale

    @property
    def head(self) -> Head:
        """The trained head."""
        return self.mixed.head

    @property
    def explained_head(self) -> Head:
        """The trained head, from whose gradient heat maps are computed."""
        return self.mixed.head

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of pooled features (N, C)."""
        # The sum of exponentials stays that of the trained head, as in `LearnedHead`, so that energy keeps its meaning.
        logits = self.mixed(features) / self.mixed.temperature
        total = torch.logsumexp(logits, 1, keepdim=True)
        shares = torch.log_softmax((logits - total) / self.scale, 1)
        scaled: Tensor = self.mixed.temperature * (total + shares)
        return scaled


def trained_head(head: Head) -> Head:
    """Return the head that training made, without the heads around it."""
    while isinstance(head, NeighbourHead | BothHead | LearnedHead):
        head = head.head
    return head
