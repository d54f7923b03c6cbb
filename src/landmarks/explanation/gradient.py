"""Grad-CAM by automatic differentiation, for networks whose weights cannot be written down: other heads, transformers.

The backward pass is as short as it can be: it begins at the logits and ends at the maps, and the trunk below them is
computed once, without a graph, for any number of classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from landmarks.explanation.analytic import weighted
from landmarks.networks.network import Network
from landmarks.support.errors import LandmarksError


def heat_by_gradient(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Return heat maps (N, k, h, w) of classes `labels` (N, k) for normalised images (N, 3, S, S).

    Maps with positions are taken as the trunk returns them. A transformer that answers from a class token alone leaves
    the last patch tokens without any influence, so there the input of the last attention is looked at instead.
    """
    with torch.no_grad():
        last = network.trunk.forward_features(images)  # type: ignore[operator]
    if last.ndim == 3 and getattr(network.trunk, "num_prefix_tokens", 0):
        return _heat(network, *_last_attention(network, images), labels)
    source = last.detach().requires_grad_()
    with torch.enable_grad():
        logits = network.classify(network.trunk.forward_head(source, pre_logits=True))  # type: ignore[operator]
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
    blocks = getattr(network.trunk, "blocks", None)
    layer = getattr(blocks[-1], "norm1", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None
    if layer is None:
        raise LandmarksError(
            f"no heat maps for {network.backbone}: it answers from a class token, and its last attention is not found",
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
