"""What stands on a trunk's pooled features and answers: the study's two dense layers, one dense layer, or cosines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landmarks.support.errors import UsageError, did_you_mean

HIDDEN = 512
"""Width of the study's hidden layer."""


def build_head(name: str, features: int, classes: int, settings: Mapping[str, Any] | None = None) -> Head:
    """Return a new head from `features` to `classes`; unknown names and settings are a `UsageError`."""
    if name not in HEADS:
        raise UsageError(f'no head "{name}"', expected=" or ".join(HEADS), way_out=did_you_mean(name, HEADS))
    if classes < 1:
        raise UsageError("a head needs at least one landmark", received=f"{classes} landmarks")
    try:
        return HEADS[name](features, classes, **(settings or {}))
    except TypeError as error:
        raise UsageError(f'the head "{name}" cannot be made with {dict(settings or {})} ({error})') from error


class Head(nn.Module):
    """From pooled features (N, C) to logits (N, K), and the loss it is trained with."""

    classes: int
    settings: dict[str, Any]
    """What `build_head` needs beside the sizes to make it again."""

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of features (N, C)."""
        raise NotImplementedError

    def loss(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy, a scalar, of features (N, C) against labels (N,) int64 without any -1."""
        return F.cross_entropy(self(features), labels, weight=class_weights, label_smoothing=label_smoothing)


class StudyHead(Head):
    """Dense 512, ReLU, dense K: the head of every pretrained network in the study."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.classes, self.settings = classes, {}
        self.hidden = _dense(features, HIDDEN)
        self.output = _dense(HIDDEN, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of features (N, C)."""
        logits: Tensor = self.output(torch.relu(self.hidden(features)))
        return logits


class LinearHead(Head):
    """One dense layer."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.classes, self.settings = classes, {}
        self.output = _dense(features, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of features (N, C)."""
        logits: Tensor = self.output(features)
        return logits


def _dense(inputs: int, outputs: int) -> nn.Linear:
    """Return a dense layer that starts as Keras's does: Glorot's uniform weights (Glorot & Bengio 2010), no bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


HEADS: dict[str, type[StudyHead] | type[LinearHead]] = {"study": StudyHead, "linear": LinearHead}
"""Name → head; a new head stands here and in CONTRIBUTING's recipe."""
