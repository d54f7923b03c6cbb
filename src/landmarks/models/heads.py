"""Heads, which classify a backbone's pooled features: the study's two dense layers, one dense layer, or cosines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from landmarks.support.errors import UsageError, did_you_mean

HIDDEN = 512
"""Width of the study's hidden layer."""


def build_head(name: str, features: int, classes: int, settings: Mapping[str, Any] | None = None) -> Head:
    """Return a new head from `features` to `classes`; raise `UsageError` for unknown names and settings."""
    if name not in HEADS:
        raise UsageError(f'no head "{name}"', expected=" or ".join(HEADS), way_out=did_you_mean(name, HEADS))
    if classes < 1:
        raise UsageError("a head needs at least one landmark", received=f"{classes} landmarks")
    try:
        return HEADS[name](features, classes, **(settings or {}))
    except TypeError as error:
        raise UsageError(f'the head "{name}" cannot be made with {dict(settings or {})} ({error})') from error


class Head(nn.Module):
    """A classifier from pooled features (N, C) to logits (N, K), with its training loss."""

    classes: int
    settings: dict[str, Any]
    """The `settings` with which `build_head` builds this head again."""

    @property
    def explained_head(self) -> Head:
        """The head whose gradient heat maps show: this one, unless it wraps another."""
        return self

    def adapt(self, images: NDArray[np.int64]) -> None:
        """Adapt to the number of training `images` (K,) of each landmark; most heads ignore it."""

    def loss(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy (scalar) of features (N, C) and labels (N,) int64, none of them -1."""
        return F.cross_entropy(self(features), labels, weight=class_weights, label_smoothing=label_smoothing)

    def loss_and_correct(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return `loss`, and for each image whether its best logit is that of its label (N,), bool."""
        loss = self.loss(features, labels, label_smoothing=label_smoothing, class_weights=class_weights)
        with torch.no_grad():
            return loss, self(features).argmax(1) == labels


class MlpHead(Head):
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


class ArcFaceHead(Head):
    """Cosines between an image's embedding and the centres of each landmark; suited to many landmarks.

    It is trained with ArcFace's margin (Deng et al. 2019) on the nearest of `sub_centres` sub-centres (Deng et al.
    2020). `embedding` is the width of a linear layer before it; 0 compares the features themselves. `margin` is in
    radians; `adapt` gives each landmark its own, between 0.5 and 1.5 times `margin`.
    """

    margins: Tensor

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        embedding: int = HIDDEN,
        sub_centres: int = 1,
        scale: float = 24.0,
        margin: float = 0.2,
    ) -> None:
        super().__init__()
        if not 1 <= sub_centres <= 255:
            raise UsageError("a landmark has 1 to 255 sub-centres", received=sub_centres)
        self.classes = classes
        self.settings = {"embedding": embedding, "sub_centres": sub_centres, "scale": scale, "margin": margin}
        self.scale = scale
        self.embedding = _dense(features, embedding) if embedding else nn.Identity()
        width = embedding or features
        self.centres = nn.Parameter(torch.randn(classes, sub_centres, width) / width**0.5)
        self.register_buffer("margins", torch.full((classes,), float(margin)))

    def adapt(self, images: NDArray[np.int64]) -> None:
        """Give landmarks with few training `images` (K,) a large margin, and those with many a small one.

        The margin falls with the fourth root of the count (Ha et al. 2020). Equal counts give equal margins.
        """
        rarity = np.maximum(images, 1) ** -0.25
        low, high = rarity.min(), rarity.max()
        share = (rarity - low) / (high - low) if high > low else np.full_like(rarity, 0.5)
        self.margins.copy_(torch.from_numpy(self.settings["margin"] * (0.5 + share)).float())

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of features (N, C): scale × cosine to the nearest centre, without margin."""
        return self.scale * cosines(_unit(self.embedding(features)), self.centres)[0]

    def loss(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy with margins (scalar), computed in chunks of landmarks."""
        return self.loss_and_correct(features, labels, label_smoothing=label_smoothing, class_weights=class_weights)[0]

    def loss_and_correct(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return `loss`, and which images (N,) are answered correctly without margins, from the same chunks."""
        margin = Margin(self.scale, self.margins, label_smoothing, class_weights)
        return margin_loss_and_correct(self.embedding(features), self.centres, labels, margin)


def _dense(inputs: int, outputs: int) -> nn.Linear:
    """Return a dense layer initialised as in Keras: Glorot uniform weights (Glorot & Bengio 2010), zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


HEADS: dict[str, Callable[..., Head]] = {"mlp": MlpHead, "linear": LinearHead, "arcface": ArcFaceHead}
"""Name → head; CONTRIBUTING describes how to add one."""


# ── Cross-entropy over cosines with an angular margin, in chunks of classes so that memory is bounded ───────────────
#
# The dense computation needs a matrix images × classes × sub-centres, its softmax, and their gradients. For 203,094
# landmarks and a batch of 256, each of them takes 208 MB per sub-centre. Here the logits of a few classes at a time are
# computed, added to a running log-sum-exp, and discarded; the backward pass computes them again. Apart from the
# weights, their gradient and one chunk, nothing grows with the number of classes.
#
# For unit features f and unit sub-centres w_kj: cos θ_k = max_j ⟨w_kj, f⟩ (Deng et al. 2020), logits z_k = s · cos θ_k,
# and for the true class y, z_y = s · cos(θ_y + m_y) (ArcFace, Deng et al. 2019). Where θ_y + m_y exceeds π, the logit
# continues linearly as s · (cos θ_y − m_y sin m_y), so that it keeps decreasing.
#
# Classes may be divided among processes (`Shares`). Then each computes, for the images of all, what its own classes add
# to the softmax, and five numbers per image are exchanged (Deng et al. 2019, section 3; An et al. 2022, "Killing Two
# Birds with One Stone", whose sampling of classes is left out).


CHUNK_NUMBERS = 4_000_000
"""Numbers in one chunk's matrix of cosines: 16 MB, of which a few exist at a time."""


def _same(numbers: Tensor) -> Tensor:
    return numbers


@dataclass(frozen=True)
class Shares:
    """How the classes are divided among processes, which all compute the loss of the same images together.

    By default one process has them all, and exchanges nothing.
    """

    first: int = 0  # the first of this process's classes
    highest: Callable[[Tensor], Tensor] = _same  # the element-wise maximum over all processes
    summed: Callable[[Tensor], Tensor] = _same  # the sum over all processes
    attempt: Callable[[], AbstractContextManager[None]] = nullcontext  # encloses what may run out of memory in one


@dataclass(frozen=True)
class Margin:
    """The settings of `margin_cross_entropy` for K classes."""

    scale: float
    angles: Tensor  # (K,), margin of each class in radians, added to its angle when it is the true class
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None  # (K,)
    chunk: int | None = None  # classes at a time; None: as many as `CHUNK_NUMBERS` allows
    shares: Shares = Shares()


def margin_cross_entropy(features: Tensor, centres: Tensor, labels: Tensor, margin: Margin) -> Tensor:
    """Return the mean cross-entropy (scalar) of features (N, D), centres (K, J, D) and labels (N,).

    Features and centres are normalised here. Label smoothing and class weights are as in PyTorch's `cross_entropy`: the
    mean is weighted by the true classes.
    """
    return margin_loss_and_correct(features, centres, labels, margin)[0]


def margin_loss_and_correct(features: Tensor, centres: Tensor, labels: Tensor, margin: Margin) -> tuple[Tensor, Tensor]:
    """Return `margin_cross_entropy`, and which images (N,), bool, are nearest to their own class, without margins.

    With `margin.shares`, features and labels are those of all processes, and centres (k, J, D) this process's own. The
    loss is the same in every process, the gradient of the centres is complete, and that of the features is the part
    that these centres cause: its sum over all processes is the gradient.
    """
    with torch.autocast(features.device.type, enabled=False):  # half precision is too coarse for the margins
        loss, correct = _MarginCrossEntropy.apply(_unit(features), centres, labels, margin)
    return loss, correct


def _unit(features: Tensor) -> Tensor:
    """Return features (N, D) at length one, in float32 unless they are in float64."""
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=1)


def cosines(unit: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest cosine (N, k) of unit features (N, D) to the centres (k, J, D) of each class.

    The second result (N, k), uint8, is the index of that centre.
    """
    directions = F.normalize(centres, dim=2)
    best = unit @ directions[:, 0].T
    nearest = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for index in range(1, centres.shape[1]):
        cosine = unit @ directions[:, index].T
        nearest.masked_fill_(cosine > best, index)
        best = torch.maximum(best, cosine)
    return best, nearest


class _MarginCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, unit: Tensor, centres: Tensor, labels: Tensor, margin: Margin) -> tuple[Tensor, Tensor]:
        shares, classes = margin.shares, len(margin.angles)
        smoothing, weights = margin.label_smoothing, margin.class_weights
        with shares.attempt():
            target = _Target(unit, centres, labels, margin)
            maximum = torch.full_like(target.logit, -torch.inf)
            total, smooth = torch.zeros_like(maximum), torch.zeros_like(maximum)
            for start, logits, _ in _chunks(unit, centres, labels, margin, target):
                new_maximum = torch.maximum(maximum, logits.amax(1))
                total = total * torch.exp(maximum - new_maximum) + torch.exp(logits - new_maximum[:, None]).sum(1)
                maximum = new_maximum
                if smoothing:
                    smooth += logits.sum(1) if weights is None else logits @ weights[start : start + logits.shape[1]]
        highest = shares.highest(maximum)
        total = total * torch.exp(maximum - highest)
        total, target_logit, target_plain, smooth = shares.summed(
            torch.stack([total, target.logit, target.plain, smooth])
        )
        log_sum = highest + total.log()
        weight = torch.ones_like(log_sum) if weights is None else weights[labels]
        all_weights = classes if weights is None else weights.sum()
        losses = (1 - smoothing) * weight * (log_sum - target_logit)
        losses = losses + smoothing / classes * (all_weights * log_sum - smooth)
        ctx.save_for_backward(unit, centres, labels, log_sum, weight)
        ctx.margin, ctx.target, ctx.all_weights = margin, target, all_weights
        # Margins only lower the label's logit: without, it reaches the highest one exactly if it is the best.
        correct = target_plain >= highest
        ctx.mark_non_differentiable(correct)
        return losses.sum() / weight.sum(), correct

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        unit, centres, labels, log_sum, weight = ctx.saved_tensors
        margin, target, first = ctx.margin, ctx.target, ctx.margin.shares.first
        classes, smoothing, weights = len(margin.angles), margin.label_smoothing, margin.class_weights
        with margin.shares.attempt():
            outer = outputs[0] * margin.scale / weight.sum()
            sum_weight = (1 - smoothing) * weight + smoothing / classes * ctx.all_weights
            unit_gradient, centre_gradient = torch.zeros_like(unit), torch.empty_like(centres)
            for start, logits, nearest in _chunks(unit, centres, labels, margin, target):
                size, own = logits.shape[1], slice(start - first, start - first + logits.shape[1])
                slope = logits.sub_(log_sum[:, None]).exp_().mul_(sum_weight[:, None])  # ∂ loss / ∂ logit
                if smoothing:
                    slope -= smoothing / classes * (1.0 if weights is None else weights[start : start + size])
                columns, is_inside = target.inside(labels, start, size)
                at_columns = slope.gather(1, columns)
                at_target = (at_columns - (1 - smoothing) * weight[:, None]) * target.slope[:, None]
                slope.scatter_(1, columns, torch.where(is_inside, at_target, at_columns))
                slope *= outer
                chunk_unit_gradient, centre_gradient[own] = _gradients(unit, centres[own], slope, nearest)
                unit_gradient += chunk_unit_gradient
        return unit_gradient, centre_gradient, None, None


class _Target:
    """The true class's logit with margin and without (`plain`), both (N,) and 0 where another process has the class.

    `slope` (N,) is ∂ logit / ∂ (s · cosine).
    """

    def __init__(self, unit: Tensor, centres: Tensor, labels: Tensor, margin: Margin) -> None:
        place = labels - margin.shares.first
        is_here = (place >= 0) & (place < len(centres))
        own = F.normalize(centres[place.clamp(0, len(centres) - 1)], dim=2)
        cosine = torch.einsum("nd,njd->nj", unit, own).amax(1).clamp(-1, 1)
        angle = margin.angles[labels]
        sine = (1 - cosine**2).clamp(min=1e-12).sqrt()
        is_linear = cosine <= torch.cos(torch.pi - angle)
        rotated = cosine * torch.cos(angle) - sine * torch.sin(angle)
        rotated_slope = torch.cos(angle) + torch.sin(angle) * cosine / sine
        logit = margin.scale * torch.where(is_linear, cosine - angle * torch.sin(angle), rotated)
        self.logit, self.plain = logit * is_here, margin.scale * cosine * is_here
        self.slope = torch.where(is_linear, torch.ones_like(cosine), rotated_slope)

    @staticmethod
    def inside(labels: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
        """Return the column (N, 1) of each image's true class in a chunk of classes, and whether it is in there (N, 1).

        Where it is not, the column is any other. (To list those that are, a GPU would have to be waited for.)
        """
        columns = (labels - start)[:, None]
        return columns.clamp(0, size - 1), (columns >= 0) & (columns < size)


def _chunks(unit: Tensor, centres: Tensor, labels: Tensor, margin: Margin, target: _Target) -> Any:
    """Yield for each chunk: its first class, logits (N, k) including margins, and nearest sub-centres (N, k)."""
    classes, sub_centres, _ = centres.shape
    size = margin.chunk or max(1, CHUNK_NUMBERS // (len(unit) * sub_centres))
    for start in range(0, classes, size):
        cosine, nearest = cosines(unit, centres[start : start + size])
        logits, first = cosine.mul_(margin.scale), margin.shares.first + start
        columns, is_inside = target.inside(labels, first, logits.shape[1])
        logits.scatter_(1, columns, torch.where(is_inside, target.logit[:, None], logits.gather(1, columns)))
        yield first, logits, nearest


def _gradients(unit: Tensor, centres: Tensor, slope: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of features (N, D) and centres (k, J, D), from `slope` (N, k) of the largest cosines."""
    length = centres.norm(dim=2, keepdim=True).clamp(min=1e-12)
    directions = centres / length
    centre_gradient, unit_gradient = torch.empty_like(centres), torch.zeros_like(unit)
    for index in range(centres.shape[1]):
        own = slope if centres.shape[1] == 1 else slope * (nearest == index)
        unit_gradient += own @ directions[:, index]
        centre_gradient[:, index] = own.T @ unit
    centre_gradient -= (centre_gradient * directions).sum(2, keepdim=True) * directions
    return unit_gradient, centre_gradient.div_(length)
