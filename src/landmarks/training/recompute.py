"""Gradient checkpointing: a trunk's blocks keep their input alone, and compute the rest again on the way back.

Chen et al. 2016. Memory falls to about the blocks' inputs and one block's insides, for one more way forth. Written
over any trunk of convolutions or tokens, since timm has it for some networks only (not for Xception or Inception), and
so that batch normalisation counts a photograph once: its running statistics do not move while a block repeats itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_gradients(trunk: nn.Module) -> int:
    """Make every block of `trunk` recompute, and return how many there are: the same gradients, statistics, weights."""
    found = list(blocks(trunk))
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
        return contextlib.nullcontext(), statistics_kept(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=first_and_again, **named)


@contextlib.contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
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
