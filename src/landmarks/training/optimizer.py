"""The optimizer: the learning rate of each layer, and which weights decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from landmarks.models.backbones import parts_of
from landmarks.models.network import Network
from landmarks.training.recipe import Recipe


def make_optimizer(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of all weights; each group stores its highest learning rate as `peak`."""
    groups = parameter_groups(network, recipe)
    kinds: dict[str, Any] = {
        "adamw": lambda: torch.optim.AdamW(groups, fused=True),
        "adam": lambda: torch.optim.Adam(groups, fused=True),
        "rmsprop": lambda: torch.optim.RMSprop(groups, alpha=0.9, eps=1e-7),  # Keras's defaults
        "sgd": lambda: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    }
    optimizer: torch.optim.Optimizer = kinds[recipe.optimizer]()
    return optimizer


def parameter_groups(network: Network, recipe: Recipe) -> list[dict[str, Any]]:
    """Return groups of parameters with `peak` and `weight_decay`, from the backbone's first layer to the head.

    The peak falls by the factor `layer_decay` per layer, from the backbone's last layer to its first, in timm's groups;
    from scratch it is the same for all layers. Vectors and scalars (biases, normalisation scales) do not decay, nor do
    the parameters that timm exempts in a network (class tokens, position embeddings, relative position tables).
    """
    groups: list[dict[str, Any]] = []
    for part in parts_of(network.backbone):
        exempt: Iterable[str] = getattr(part, "no_weight_decay", tuple)()
        layered = not recipe.from_scratch and hasattr(part, "group_matcher")
        if layered:
            groups += param_groups_layer_decay(
                part, recipe.weight_decay, no_weight_decay_list=exempt, layer_decay=recipe.layer_decay
            )
        else:
            groups += param_groups_weight_decay(part, recipe.weight_decay, no_weight_decay_list=exempt)
    highest = recipe.learning_rate if recipe.from_scratch else recipe.backbone_learning_rate
    peaks = [highest * group.get("lr_scale", 1.0) for group in groups]
    head_groups = param_groups_weight_decay(network.head, recipe.weight_decay)
    return [
        {"params": group["params"], "lr": peak, "peak": peak, "weight_decay": group["weight_decay"]}
        for group, peak in zip(groups + head_groups, peaks + [recipe.learning_rate] * len(head_groups), strict=True)
        if group["params"]
    ]
