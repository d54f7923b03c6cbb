"""Grad-CAM weights of every class from the head's own matrices, without a backward pass.

Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) draws, for class k and the last maps A of Z = h · w positions,

    L_k = ReLU( Σ_c α_kc A_c ),        α_kc = 1/Z Σ_ij ∂y_k / ∂A_c(i, j).

Where the trunk's features are the average of its maps, f_c = 1/Z Σ_ij A_c(i, j), every position has the same share in
them: ∂f_c / ∂A_c(i, j) = 1/Z. By the chain rule ∂y_k / ∂A_c(i, j) = 1/Z · ∂y_k / ∂f_c, the same number at all
positions, so its mean over them is that number itself and

    α_kc = 1/Z · ∂y_k / ∂f_c.

What is left is the gradient G_kc = ∂y_k / ∂f_c of the head alone, which can be written down:

- dense, y = W f + b:  G = W. This is the class activation map (Zhou et al. 2016), up to the constant 1/Z.
- dense, ReLU, dense, z = W₁ f + b₁, y = W₂ max(z, 0) + b₂:  G = W₂ · diag(z > 0) · W₁. The hidden units that are
  silent for this photograph drop out; the rest of the head is linear. One product gives the weights of any number of
  classes at once.
- cosine, y_k = s · ⟨w_k, ê⟩ with unit vectors w_k (of several sub-centres the nearest), e = E f + b and ê = e / ‖e‖:
  G_k = s / ‖e‖ · (w_k − ⟨w_k, ê⟩ ê) · E, since only the part of w_k across e turns e (E: the embedding, if any).

At the kink z = 0 the derivative is taken as 0, as PyTorch does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landmarks.networks.heads import CosineHead, Head, LinearHead, StudyHead

TOLERANCE = 1e-3
"""Largest relative difference between pooled features and the mean of the maps that rounding can explain."""


def averages(maps: Tensor, features: Tensor) -> bool:
    """Return whether `features` (N, C) are the averages of `maps` (N, C, h, w), which the formula presupposes."""
    if maps.shape[:2] != features.shape:
        return False
    mean = maps.mean((2, 3))
    return bool((mean - features).abs().max() <= TOLERANCE * features.abs().max())


def has_formula(head: Head) -> bool:
    """Return whether the gradient of `head` is written down here."""
    return isinstance(head, LinearHead | StudyHead | CosineHead)


def head_gradient(head: Head, features: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return ∂ logit / ∂ feature (N, k, C) for features (N, C) and classes `labels` (N, k), or for all of them.

    Raises `TypeError` for a head without a formula.
    """
    if isinstance(head, LinearHead):
        rows = head.output.weight if labels is None else head.output.weight[labels]
        return rows.expand(len(features), -1, -1)
    if isinstance(head, StudyHead):
        awake = (head.hidden(features) > 0).to(features.dtype)
        rows = head.output.weight if labels is None else head.output.weight[labels]
        gradient: Tensor = (rows * awake[:, None]) @ head.hidden.weight
        return gradient
    if isinstance(head, CosineHead):
        return _cosine_gradient(head, features, labels)
    raise TypeError(f"no formula for the gradient of {type(head).__name__}")


def _cosine_gradient(head: CosineHead, features: Tensor, labels: Tensor | None) -> Tensor:
    embedded = head.embedding(features)
    length = embedded.norm(dim=1)[:, None, None]
    unit = embedded[:, None] / length
    centres = F.normalize(head.centres, dim=2)
    centres = centres.expand(len(features), *centres.shape) if labels is None else centres[labels]
    cosine = torch.einsum("nkjd,nd->nkj", centres, unit[:, 0])
    best = cosine.max(2, keepdim=True)
    nearest = torch.take_along_dim(centres, best.indices[..., None], dim=2)[:, :, 0]
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
