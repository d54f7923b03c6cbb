"""What stands on a trunk's pooled features and answers: the study's two dense layers, one dense layer, or cosines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from landmarks.networks.margin_loss import Margin, cosines, margin_cross_entropy
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
    """From pooled features (N, C) to logits (N, K), by the `forward` of each kind, and the loss it is trained with."""

    classes: int
    settings: dict[str, Any]
    """What `build_head` needs beside the sizes to make it again."""

    def adapt(self, photographs: NDArray[np.int64]) -> None:
        """Take note of how many `photographs` (K,) of each landmark there are to train on; most heads do not care."""

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


class CosineHead(Head):
    """Cosines between a photograph's embedding and each landmark's centres: for many landmarks.

    Trained with ArcFace's margin (Deng et al. 2019) on the largest of `centres` sub-centres (Deng et al. 2020). An
    `embedding` of that many dimensions stands before it; 0 compares the features themselves. `margin` is in radians;
    `adapt` gives each landmark one of its own, from half of it to one and a half.
    """

    margins: Tensor

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        embedding: int = HIDDEN,
        centres: int = 1,
        scale: float = 24.0,
        margin: float = 0.2,
    ) -> None:
        super().__init__()
        if not 1 <= centres <= 255:
            raise UsageError("a landmark has 1 to 255 sub-centres", received=centres)
        self.classes = classes
        self.settings = {"embedding": embedding, "centres": centres, "scale": scale, "margin": margin}
        self.scale = scale
        self.embedding = _dense(features, embedding) if embedding else nn.Identity()
        width = embedding or features
        self.centres = nn.Parameter(torch.randn(classes, centres, width) / width**0.5)
        self.register_buffer("margins", torch.full((classes,), float(margin)))

    def adapt(self, photographs: NDArray[np.int64]) -> None:
        """Give landmarks with few of `photographs` (K,) a large margin, and those with many a small one.

        The margin falls with the fourth root of the count (Ha et al. 2020); where all have equally many it is equal.
        """
        rarity = np.maximum(photographs, 1) ** -0.25
        low, high = rarity.min(), rarity.max()
        share = (rarity - low) / (high - low) if high > low else np.full_like(rarity, 0.5)
        self.margins.copy_(torch.from_numpy(self.settings["margin"] * (0.5 + share)).float())

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K): scale × cosine to the nearest centre, without any margin."""
        embedded = self.embedding(features)
        unit = F.normalize(embedded if embedded.dtype == torch.float64 else embedded.float(), dim=1)
        return self.scale * cosines(unit, self.centres)[0]

    def loss(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy with margins, computed in chunks of landmarks."""
        margin = Margin(self.scale, self.margins, label_smoothing, class_weights)
        return margin_cross_entropy(self.embedding(features), self.centres, labels, margin)


def _dense(inputs: int, outputs: int) -> nn.Linear:
    """Return a dense layer that starts as Keras's does: Glorot's uniform weights (Glorot & Bengio 2010), no bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


HEADS: dict[str, Callable[..., Head]] = {"study": StudyHead, "linear": LinearHead, "cosine": CosineHead}
"""Name → head; a new head stands here and in CONTRIBUTING's recipe."""
