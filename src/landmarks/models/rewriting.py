"""A network rewritten without changing what it answers: normalisation folded away, or activations computed twice."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint

from landmarks.models.network import Network

TOLERANCE = 1e-3
"""How far folded features may lie from the network's own, of their largest; rounding alone stays below a tenth."""


@torch.no_grad()
def folded(network: Network) -> Network:
    """Return a copy of `network`, in evaluation mode, whose normalisations are folded; itself where that is wrong.

    Which convolution feeds which normalisation is seen in one pass of a made-up image, and the copy has to answer
    another one like the network does: a backbone that uses a convolution's output elsewhere too is left as it is.
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


# Gradient checkpointing: a backbone's blocks keep their input alone, and compute the rest again on the way back.
#
# Chen et al. 2016. Memory falls to about the blocks' inputs and one block's insides, for one more way forth. Written
# over any backbone of convolutions or tokens, since timm has it for some networks only (not for Xception or Inception),
# and so that batch normalisation counts an image once: its running statistics do not move while a block repeats itself.


def enable_gradient_checkpointing(backbone: nn.Module) -> int:
    """Make every block of `backbone` recompute, and return how many there are: the same gradients, statistics,
    weights."""
    found = list(blocks(backbone))
    for block in found:
        block.forward = partial(_recomputed, block, block.forward)
    return len(found)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts that `module` applies one after the other and that have parts themselves, stages opened up."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from blocks(child)
        elif any(True for _ in child.children()) and any(True for _ in child.parameters()):
            yield child


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)

    def first_and_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return contextlib.nullcontext(), frozen_statistics(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=first_and_again, **named)


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within, batch normalisation uses a batch's own statistics and leaves the running ones as they are."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked = layer.num_batches_tracked.clone()
    try:
        yield
    finally:
        for layer, (momentum, counted) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, counted
