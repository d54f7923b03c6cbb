"""Heads that answer by remembered images: by them alone, or by the trained head and them together."""

from __future__ import annotations

import torch
from torch import Tensor

from landmarks.models.heads import Head
from landmarks.recognition.directions import Directions
from landmarks.recognition.kernel_density import LogDensities, Neighbourhood
from landmarks.recognition.learned_head import LearnedHead


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
