"""The epsilon of batch normalisation, for weights whose epsilon was folded into their running variances.

A network trained with ε = 1e-3 and run with ε = 1e-5 gives the same answers when 0.00099 is added to every running
variance, since evaluation only uses their sum. Fine-tuning however replaces the variances by measured ones, which hold
no such addition, so the normalisation would shift. Taking the addition out again and setting ε to what the network
was trained with is the same in evaluation mode and right in training mode.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from landmarks.support.errors import LandmarksError

TRAINED_WITH = {"legacy_xception": 1e-3}
"""timm's name → the epsilon its ImageNet weights were trained with, where timm builds the network with another one."""


def epsilon_of(trunk: nn.Module) -> float | None:
    """Return the epsilon that all batch normalisations of `trunk` share, or None when there is no such number."""
    values = {layer.eps for layer in trunk.modules() if isinstance(layer, _BatchNorm)}
    return values.pop() if len(values) == 1 else None


def set_epsilon(trunk: nn.Module, epsilon: float) -> None:
    """Set the epsilon of every batch normalisation in `trunk`, in place."""
    for layer in trunk.modules():
        if isinstance(layer, _BatchNorm):
            layer.eps = epsilon


def is_folded(trunk: nn.Module, epsilon: float) -> bool:
    """Return whether every running variance is large enough to hold the difference between `epsilon` and the layer's.

    That is a necessary sign, not a proof; unfolding is exact in evaluation mode either way.
    """
    layers = [layer for layer in trunk.modules() if isinstance(layer, _BatchNorm)]
    return bool(layers) and all(
        layer.running_var is not None and float(layer.running_var.min()) >= epsilon - layer.eps > 0 for layer in layers
    )


def unfold_epsilon(trunk: nn.Module, epsilon: float) -> None:
    """Set every epsilon in `trunk` to `epsilon` and subtract the difference from the running variances, in place.

    The answers in evaluation mode stay the same. Raises `LandmarksError` when a variance is smaller than the
    difference: then nothing was folded in.
    """
    if not is_folded(trunk, epsilon):
        raise LandmarksError(f"no epsilon of {epsilon:g} was folded into these running variances")
    for layer in trunk.modules():
        if isinstance(layer, _BatchNorm) and layer.running_var is not None:
            layer.running_var -= epsilon - layer.eps
            layer.eps = epsilon
