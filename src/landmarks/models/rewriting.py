"""Rewriting a network without changing its answers: folded batch normalisation, and gradient checkpointing."""

from __future__ import annotations

import contextlib
import copy
import itertools
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

from landmarks.models.backbones import parts_of
from landmarks.models.network import Network

TOLERANCE = 1e-3
"""Largest difference of folded features, relative to the largest feature; rounding alone stays below a tenth of it."""


@torch.no_grad()
def fold_batch_norm(network: Network) -> Network:
    """Return a copy of `network`, in evaluation mode, with batch normalisation folded into the convolutions.

    A forward pass of a random image shows which convolution feeds which normalisation. The copy must give the same
    features for another random image: a backbone that also uses a convolution's output elsewhere is returned unchanged.
    """
    network.eval()
    size = network.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    image, other = torch.randn(2, 1, 3, size, size, generator=generator).to(next(network.parameters()).device)
    folded = copy.deepcopy(network)
    pairs = _pairs(folded, image)
    for convolution, layer in pairs:
        weights = (layer.running_mean, layer.running_var, layer.eps, layer.weight, layer.bias)
        weight, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *weights)
        convolution.weight, convolution.bias = weight, bias
    # What replaces a normalisation: in timm's layers the activation is part of it.
    replacements = {id(layer): getattr(layer, "act", nn.Identity()) for _, layer in pairs}
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])
    expected, found = network.features(other), folded.features(other)
    return folded if bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max()) else network


def _pairs(network: Network, image: Tensor) -> list[tuple[Any, Any]]:
    """Return each convolution whose output goes into a batch normalisation, with that; both are used only once."""
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # references to the tensors keep their ids unique
    pairs: list[tuple[Any, Any]] = []
    calls: Counter[int] = Counter()

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[id(module)] += 1
        outputs[id(output)] = (module, output)

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[id(module)] += 1
        if id(inputs[0]) in outputs and module.running_var is not None:
            pairs.append((outputs[id(inputs[0])][0], module))

    hooks = [module.register_forward_hook(after) for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks += [
        module.register_forward_pre_hook(before) for module in network.modules() if isinstance(module, _BatchNorm)
    ]
    network.features(image)
    for hook in hooks:
        hook.remove()
    return [pair for pair in pairs if all(calls[id(module)] == 1 for module in pair)]


# ── Gradient checkpointing ──────────────────────────────────────────────────────────────────────────────────────────
#
# The blocks of a backbone save only their inputs, and compute the rest again in the backward pass (Chen et al. 2016).
# Memory falls to about the inputs of the blocks and the activations of one block, for one more forward pass. This works
# for any backbone, while timm has it for some only (not for Xception or Inception). The running statistics of batch
# normalisation are updated once per image: they do not change while a block is recomputed.


def enable_gradient_checkpointing(backbone: nn.Module) -> int:
    """Let every block of `backbone` recompute its activations, and return their number; the results are the same."""
    all_blocks = list(blocks(backbone))
    for block in all_blocks:
        block.forward = partial(_checkpointed, block, block.forward)
    return len(all_blocks)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the composite children with weights of `module`, descending into sequences (stages) and joined networks."""
    for child in itertools.chain.from_iterable(part.children() for part in parts_of(module)):
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from blocks(child)
        elif any(True for _ in child.children()) and any(True for _ in child.parameters()):
            yield child


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return contextlib.nullcontext(), frozen_statistics(block)  # of the forward pass, of the recomputation

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within this context, batch normalisation uses batch statistics without updating the running ones."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked = layer.num_batches_tracked.clone()
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count
