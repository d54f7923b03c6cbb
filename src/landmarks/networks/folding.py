"""Folding for answers: each batch normalisation becomes part of the convolution before it, for networks that only look.

In evaluation mode a normalisation is a factor and an addend per channel, which the convolution can do on its way
(Jacob et al. 2018, §3.2). The same answers but for rounding, from fewer passes over memory.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from landmarks.networks.network import Network

TOLERANCE = 1e-3
"""How far folded features may lie from the network's own, of their largest; rounding alone stays below a tenth."""


@torch.no_grad()
def folded(network: Network) -> Network:
    """Return a copy of `network`, in evaluation mode, whose normalisations are folded; itself where that is wrong.

    Which convolution feeds which normalisation is seen in one pass of a made-up photograph, and the copy has to answer
    another one like the network does: a trunk that uses a convolution's output elsewhere too is left as it is.
    """
    network.eval()
    size = network.preprocessing.image_size
    made_up = torch.Generator().manual_seed(0)
    image, other = torch.randn(2, 1, 3, size, size, generator=made_up).to(next(network.parameters()).device)
    twin = copy.deepcopy(network)
    pairs = _pairs(twin, image)
    for convolution, layer in pairs:
        weights = (layer.running_mean, layer.running_var, layer.eps, layer.weight, layer.bias)
        weight, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *weights)
        convolution.weight, convolution.bias = weight, bias
    rest = {id(layer): getattr(layer, "act", nn.Identity()) for _, layer in pairs}  # timm's layers activate too
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in rest:
                setattr(parent, name, rest[id(child)])
    wanted, found = network.features(other), twin.features(other)
    return twin if bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max()) else network


def _pairs(network: Network, image: Tensor) -> list[tuple[Any, Any]]:
    """Return each convolution whose output is what a normalisation of running statistics gets, both used once."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensors are kept, so that no two have one id
    pairs: list[tuple[Any, Any]] = []
    calls: Counter[int] = Counter()

    def after(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        calls[id(module)] += 1
        made[id(output)] = (module, output)

    def before(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        calls[id(module)] += 1
        if id(given[0]) in made and module.running_var is not None:
            pairs.append((made[id(given[0])][0], module))

    hooks = [module.register_forward_hook(after) for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks += [
        module.register_forward_pre_hook(before) for module in network.modules() if isinstance(module, _BatchNorm)
    ]
    network.features(image)
    for hook in hooks:
        hook.remove()
    return [pair for pair in pairs if all(calls[id(module)] == 1 for module in pair)]
