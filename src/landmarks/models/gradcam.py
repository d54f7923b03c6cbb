"""A network's answers and where it looked for each of them, from one pass over the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landmarks.models.heads import ArcFaceHead, Head, LinearHead, MlpHead
from landmarks.models.network import Network
from landmarks.support.errors import LandmarksError

ANALYTIC = "Grad-CAM from the head's own matrices (exact, no backward pass)"
GRADIENT = "Grad-CAM by automatic differentiation"


@dataclass(frozen=True)
class Explained:
    """For N images: the k best answers `labels` (N, k), all `probabilities` (N, K), heat `maps` (N, k, h, w)."""

    labels: Tensor
    probabilities: Tensor
    maps: Tensor
    method: str

    def only(self, row: int) -> Explained:
        """Return what concerns one of the images."""
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
        if has_head_gradient(network.head) and is_mean_of_maps(maps, features):
            heat = weighted(maps, channel_weights(network.head, maps, features, labels))
            return Explained(labels, probabilities, heat, ANALYTIC)
    return Explained(labels, probabilities, maps_by_gradient(network, images, labels), GRADIENT)


def scaled(maps: Tensor) -> Tensor:
    """Return heat maps (..., h, w) each scaled so that its warmest position is 1; an empty map stays empty."""
    top = maps.amax((-2, -1), keepdim=True)
    return torch.where(top > 0, maps / top.clamp(min=torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))


# ── Grad-CAM weights of every class from the head's own matrices, without a backward pass ───────────────────────────
#
# Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) draws, for class k and the last maps A of Z = h · w positions,
#
#     L_k = ReLU( Σ_c α_kc A_c ),        α_kc = 1/Z Σ_ij ∂y_k / ∂A_c(i, j).
#
# Where the backbone's features are the average of its maps, f_c = 1/Z Σ_ij A_c(i, j), every position has the same share
# in them: ∂f_c / ∂A_c(i, j) = 1/Z. By the chain rule ∂y_k / ∂A_c(i, j) = 1/Z · ∂y_k / ∂f_c, the same number at all
# positions, so its mean over them is that number itself and
#
#     α_kc = 1/Z · ∂y_k / ∂f_c.
#
# What is left is the gradient G_kc = ∂y_k / ∂f_c of the head alone, which can be written down:
#
# - dense, y = W f + b:  G = W. This is the class activation map (Zhou et al. 2016), up to the constant 1/Z.
# - dense, ReLU, dense, z = W₁ f + b₁, y = W₂ max(z, 0) + b₂:  G = W₂ · diag(z > 0) · W₁. The hidden units that are
#   silent for this image drop out; the rest of the head is linear. One product gives the weights of any number of
#   classes at once.
# - cosine, y_k = s · ⟨w_k, ê⟩ with unit vectors w_k (of several sub-centres the nearest), e = E f + b and ê = e / ‖e‖:
#   G_k = s / ‖e‖ · (w_k − ⟨w_k, ê⟩ ê) · E, since only the part of w_k across e turns e (E: the embedding, if any).
#
# At the kink z = 0 the derivative is taken as 0, as PyTorch does.


TOLERANCE = 1e-3
"""Largest relative difference between pooled features and the mean of the maps that rounding can explain."""


def is_mean_of_maps(maps: Tensor, features: Tensor) -> bool:
    """Return whether `features` (N, C) are the averages of `maps` (N, C, h, w), which the formula presupposes."""
    if maps.shape[:2] != features.shape:
        return False
    mean = maps.mean((2, 3))
    return bool((mean - features).abs().max() <= TOLERANCE * features.abs().max())


def has_head_gradient(head: Head) -> bool:
    """Return whether the gradient of `head` is written down here."""
    return isinstance(_drawn(head), LinearHead | MlpHead | ArcFaceHead)


def _drawn(head: nn.Module) -> nn.Module:
    return head.drawn if isinstance(head, Head) else head


def head_gradient(head: Head, features: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return ∂ logit / ∂ feature (N, k, C) for features (N, C) and classes `labels` (N, k), or for all of them.

    Raises `TypeError` for a head without a formula.
    """
    drawn = _drawn(head)
    if isinstance(drawn, LinearHead):
        # Of labels the rows are (N, k, C) already, and widening them would freeze N in an export.
        weight = drawn.output.weight
        return weight.expand(features.shape[0], -1, -1) if labels is None else weight[labels]
    if isinstance(drawn, MlpHead):
        awake = (drawn.hidden(features) > 0).to(features.dtype)
        rows = drawn.output.weight if labels is None else drawn.output.weight[labels]
        gradient: Tensor = (rows * awake[:, None]) @ drawn.hidden.weight
        return gradient
    if isinstance(drawn, ArcFaceHead):
        return _cosine_gradient(drawn, features, labels)
    raise TypeError(f"no formula for the gradient of {type(head).__name__}")


def _cosine_gradient(head: ArcFaceHead, features: Tensor, labels: Tensor | None) -> Tensor:
    embedded = head.embedding(features)
    length = embedded.norm(dim=1)[:, None, None]
    unit = embedded[:, None] / length
    centres = F.normalize(head.centres, dim=2)
    centres = centres.expand(features.shape[0], *centres.shape) if labels is None else centres[labels]
    cosine = torch.einsum("nkjd,nd->nkj", centres, unit[:, 0])
    best = cosine.max(2, keepdim=True)
    chosen = F.one_hot(best.indices[..., 0], centres.shape[2]).to(centres.dtype)
    nearest = torch.einsum("nkjd,nkj->nkd", centres, chosen)  # taken by place it would fix the batch of an export
    across: Tensor = head.scale / length * (nearest - best.values * unit)
    if isinstance(head.embedding, nn.Linear):
        across = across @ head.embedding.weight
    return across


def channel_weights(head: Head, maps: Tensor, features: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return Grad-CAM's α (N, k, C) for maps (N, C, h, w) whose averages are `features` (N, C).

    `labels` (N, k) names the classes; without it, all of them.
    """
    return head_gradient(head, features, labels) / (maps.shape[2] * maps.shape[3])


def weighted(maps: Tensor, weights: Tensor) -> Tensor:
    """Return the heat maps (N, k, h, w): the positive part of maps (N, C, h, w) summed with weights (N, k, C)."""
    return torch.relu(torch.einsum("nchw,nkc->nkhw", maps, weights))


# Grad-CAM by automatic differentiation, for networks whose weights cannot be written down: other heads, transformers.
#
# The backward pass is as short as it can be: it begins at the logits and ends at the maps, and the backbone below them
# is computed once, without a graph, for any number of classes.


def maps_by_gradient(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Return heat maps (N, k, h, w) of classes `labels` (N, k) for normalised images (N, 3, S, S).

    Maps with positions are taken as the backbone returns them. A transformer that answers from a class token alone
    leaves the last patch tokens without any influence, so there the input of the last attention is looked at instead.
    """
    with torch.no_grad():
        last = network.backbone.forward_features(images)  # type: ignore[operator]
    if last.ndim == 3 and getattr(network.backbone, "num_prefix_tokens", 0):
        return _heat(network, *_last_attention(network, images), labels)
    source = last.detach().requires_grad_()
    with torch.enable_grad():
        logits = network.classify(network.backbone.forward_head(source, pre_logits=True))  # type: ignore[operator]
    return _heat(network, source, logits, labels)


def _heat(network: Network, source: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        gradients = [
            torch.autograd.grad(logits.gather(1, labels[:, [each]]).sum(), source, retain_graph=True)[0]
            for each in range(labels.shape[1])
        ]
    with torch.no_grad():
        weights = torch.stack([network.as_maps(gradient).mean((2, 3)) for gradient in gradients], dim=1)
        return weighted(network.as_maps(source), weights)


def _last_attention(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normalised tokens that enter the last block's attention, as a leaf, and the logits they lead to."""
    blocks = getattr(network.backbone, "blocks", None)
    layer = getattr(blocks[-1], "norm1", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None
    if layer is None:
        raise LandmarksError(
            f"no heat maps for {network.backbone_name}: it answers from a class token, and its last attention is not "
            f"found",
            way_out="explain a run with another network",
        )
    kept: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    handle = layer.register_forward_hook(cut)
    frozen = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in frozen:  # so that no graph is kept below the cut
            parameter.requires_grad_(False)
        with torch.enable_grad():
            logits = network(images)
    finally:
        handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)
    return kept[0], logits
