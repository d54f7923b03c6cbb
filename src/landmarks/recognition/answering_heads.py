"""Heads that answer by remembered images: by them alone, with the trained head, or with landmarks learned since.

Scores of all landmarks, old and new, are the weighted sum of the discriminant's and of the log densities of remembered
images around the image. Let p_k be the trained head's probabilities of the old landmarks, after temperature, and q_k
those of the scores; let o_j be the odds of new landmark j against all old ones together, from the scores. Then, up to
the same divisor, P(old k) is the mean of p_k and q_k, and P(new j) is o_j. Written as logits whose sum of exponentials
over the old ones is the head's own, so that temperature, energy, heat maps and exports need to know nothing of it.
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
    """A trained `head`, and behind it the logits of the landmarks of a closed form that it does not know."""

    weights: Tensor
    bias: Tensor

    def __init__(self, head: Head, width: int, closed: ClosedForm, *, temperature: float, offset: float) -> None:
        """Take features of length `width`, the head's `temperature`, and what is added to the new ones' log odds."""
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
        """Return logits (N, K + L) of pooled features (N, C): K old landmarks, then L learned ones."""
        scaled = self.head(features).float() / self.temperature
        scores = self.scores(features)
        own, new = scores[:, : self.old], scores[:, self.old :]
        mean = torch.logaddexp(torch.log_softmax(scaled, 1), torch.log_softmax(own, 1)) - math.log(2)
        odds = new - torch.logsumexp(own, 1, keepdim=True) + self.offset
        logits: Tensor = torch.logsumexp(scaled, 1, keepdim=True) + torch.cat([mean, odds], 1)
        return self.temperature * logits


class NeighbourHead(Head):
    """Answers by how densely the remembered images of each landmark lie around an image; `head` waits behind it."""

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
    """Answers by the mean of the trained head's probabilities and the closed form's; heat maps are the former's."""

    def __init__(self, mixed: LearnedHead, *, scale: float) -> None:
        """Take a head that has learned nothing new, and what its log probabilities are divided by."""
        super().__init__()
        self.mixed, self.classes, self.settings, self.scale = mixed, mixed.classes, {}, scale

    @property
    def head(self) -> Head:
        """The trained head."""
        return self.mixed.head

    @property
    def drawn(self) -> Head:
        """The trained head, whose gradient is written down."""
        return self.mixed.head

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of pooled features (N, C)."""
        # The sum of exponentials stays the trained head's own, as in `LearnedHead`, so that energy means what it did.
        logits = self.mixed(features) / self.mixed.temperature
        whole = torch.logsumexp(logits, 1, keepdim=True)
        own = torch.log_softmax((logits - whole) / self.scale, 1)
        scaled: Tensor = self.mixed.temperature * (whole + own)
        return scaled


def trained_head(head: Head) -> Head:
    """Return the head that training made, whatever stands around it."""
    while isinstance(head, NeighbourHead | BothHead | LearnedHead):
        head = head.head
    return head
