"""Grad-CAM: a network's answers with a heat map for each, from one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landmarks.models.backbones import is_mean_of_maps
from landmarks.models.heads import ArcFaceHead, Head, LinearHead, MlpHead
from landmarks.models.network import Network, halves
from landmarks.support.errors import LandmarksError

ANALYTIC = "Grad-CAM from the head's own matrices (exact, no backward pass)"
GRADIENT = "Grad-CAM by automatic differentiation"


@dataclass(frozen=True)
class Explained:
    """The answers to N images with heat maps."""

    labels: Tensor  # (N, k), the best answers
    probabilities: Tensor  # (N, K), of all classes
    maps: Tensor  # (N, k, h, w), heat maps of the best answers
    method: str


def explain_images(network: Network, images: Tensor, answers: int = 4, temperature: float = 1.0) -> Explained:
    """Return the `answers` best classes of normalised images (N, 3, S, S) with their heat maps.

    Probabilities are the softmax of logits / `temperature`. Ties go to the smaller label. The maps explain the logits,
    so a saturated softmax does not make them empty. The network must be in evaluation mode.
    """
    with torch.no_grad():
        maps, features = network.maps_and_features(images)
        logits = network.classify(features)
        order = logits.sort(dim=1, descending=True, stable=True).indices
        labels = order[:, : min(answers, network.classes)]
        probabilities = (logits / temperature).softmax(1)
        if has_head_gradient(network.head) and is_mean_of_maps(maps, features):
            heat = weighted_maps(maps, channel_weights(network.head, maps, features, labels))
            return Explained(labels, probabilities, heat, ANALYTIC)
    return Explained(labels, probabilities, maps_by_gradient(network, images, labels), GRADIENT)


def scale_maps(maps: Tensor) -> Tensor:
    """Return heat maps (..., h, w), each scaled to a maximum of 1; an empty map stays empty."""
    top = maps.amax((-2, -1), keepdim=True)
    return torch.where(top > 0, maps / top.clamp(min=torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))


# ── Grad-CAM weights from the head's own matrices, without a backward pass ──────────────────────────────────────────
#
# The Grad-CAM map (Selvaraju et al. 2017, equations 1 and 2) of class k is, for the last maps A of Z = h · w positions,
#
#     L_k = ReLU( Σ_c α_kc A_c ),        α_kc = 1/Z Σ_ij ∂y_k / ∂A_c(i, j).
#
# If the backbone's features are the averages of its maps, f_c = 1/Z Σ_ij A_c(i, j), every position contributes equally:
# ∂f_c / ∂A_c(i, j) = 1/Z. By the chain rule ∂y_k / ∂A_c(i, j) = 1/Z · ∂y_k / ∂f_c at every position, so the mean over
# positions is the same number and
#
#     α_kc = 1/Z · ∂y_k / ∂f_c.
#
# What remains is the gradient G_kc = ∂y_k / ∂f_c of the head alone, which has a closed form:
#
# - dense, y = W f + b:  G = W. This is the class activation map (Zhou et al. 2016), up to the constant 1/Z.
# - dense, ReLU, dense, z = W₁ f + b₁, y = W₂ max(z, 0) + b₂:  G = W₂ · diag(z > 0) · W₁. The hidden units that are
#   inactive for this image drop out; the rest of the head is linear. One product gives the weights of any number of
#   classes at once.
# - cosine, y_k = s · ⟨w_k, ê⟩ with unit vectors w_k (of several sub-centres the nearest), e = E f + b and ê = e / ‖e‖:
#   G_k = s / ‖e‖ · (w_k − ⟨w_k, ê⟩ ê) · E, since only the component of w_k orthogonal to e changes the cosine (E: the
#   embedding, if any).
#
# At z = 0 the derivative is taken as 0, as in PyTorch.


def has_head_gradient(head: Head) -> bool:
    """Return whether `head_gradient` has a closed form for `head`."""
    return isinstance(_explained_head(head), LinearHead | MlpHead | ArcFaceHead)


def _explained_head(head: nn.Module) -> nn.Module:
    return head.explained_head if isinstance(head, Head) else head


def head_gradient(head: Head, features: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return ∂ logit / ∂ feature (N, k, C) for features (N, C) and the classes `labels` (N, k), or for all classes.

    Raises `TypeError` for a head without a closed form.
    """
    explained = _explained_head(head)
    if isinstance(explained, LinearHead):
        # With labels the rows are (N, k, C) already, and `expand` would make N constant in an export.
        weight = explained.output.weight
        return weight.expand(features.shape[0], -1, -1) if labels is None else weight[labels]
    if isinstance(explained, MlpHead):
        active = (explained.hidden(features) > 0).to(features.dtype)
        rows = explained.output.weight if labels is None else explained.output.weight[labels]
        gradient: Tensor = (rows * active[:, None]) @ explained.hidden.weight
        return gradient
    if isinstance(explained, ArcFaceHead):
        return _cosine_gradient(explained, features, labels)
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
    nearest = torch.einsum("nkjd,nkj->nkd", centres, chosen)  # indexing would fix the batch size of an export
    gradient: Tensor = head.scale / length * (nearest - best.values * unit)
    if isinstance(head.embedding, nn.Linear):
        gradient = gradient @ head.embedding.weight
    return gradient


def channel_weights(head: Head, maps: Tensor, features: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return Grad-CAM's α (N, k, C) for maps (N, C, h, w) whose averages are `features` (N, C).

    `labels` (N, k) are the classes; None means all of them.
    """
    return head_gradient(head, features, labels) / (maps.shape[2] * maps.shape[3])


def weighted_maps(maps: Tensor, weights: Tensor) -> Tensor:
    """Return heat maps (N, k, h, w): the positive part of the sum of maps (N, C, h, w) with weights (N, k, C)."""
    return torch.relu(torch.einsum("nchw,nkc->nkhw", maps, weights))


# ── Grad-CAM by automatic differentiation, for networks without a closed form: other heads, transformers ────────────
#
# The backward pass is as short as possible: it goes from the logits to the maps. The backbone below them is computed
# once, without a graph, for any number of classes.


def maps_by_gradient(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Return heat maps (N, k, h, w) of the classes `labels` (N, k) for normalised images (N, 3, S, S).

    The maps are those that the backbone returns. In a transformer that answers from a class token, its last patch
    tokens have no influence, so the input of the last attention is used instead.
    """
    with torch.no_grad():
        last = network.before_pooling(images)
    if last.ndim == 3 and getattr(network.backbone, "num_prefix_tokens", 0):
        return _heat(network, *_last_attention(network, images), labels)
    source = last.detach().requires_grad_()
    with torch.enable_grad():
        logits = network.classify(network.pooled(source))
    return _heat(network, source, logits, labels)


def _heat(network: Network, source: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        gradients = [
            torch.autograd.grad(logits.gather(1, labels[:, [each]]).sum(), source, retain_graph=True)[0]
            for each in range(labels.shape[1])
        ]
    with torch.no_grad():
        weights = torch.stack([network.as_maps(gradient).mean((2, 3)) for gradient in gradients], dim=1)
        maps = network.as_maps(source)
        if network.averages_flip:  # both sides of an image count together, as if they were channels of one map
            own, flipped = halves(maps)
            maps, weights = torch.cat([own, flipped.flip(3)], dim=1), torch.cat(halves(weights), dim=2)
        return weighted_maps(maps, weights)


def _last_attention(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normalised input tokens of the last block's attention, as a leaf, and the resulting logits."""
    blocks = getattr(network.backbone, "blocks", None)
    layer = getattr(blocks[-1], "norm1", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None
    if layer is None:
        raise LandmarksError(
            f"no heat maps for {network.backbone_name}: it answers from a class token, and its last attention is not "
            "found",
            way_out="explain a run with another network",
        )
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[0]

    handle = layer.register_forward_hook(cut)
    frozen = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in frozen:  # so that no graph is built below the cut
            parameter.requires_grad_(False)
        with torch.enable_grad():
            logits = network(images)
    finally:
        handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)
    return leaves[0], logits
