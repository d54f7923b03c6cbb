"""The optimizer: which learning rate each layer has, and which weights decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay
from torch import nn

from landmarks.models.network import Network
from landmarks.training.recipe import Recipe


def make_optimizer(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over all weights; each of its groups keeps its highest learning rate as `peak`."""
    groups = parameter_groups(network, recipe)
    kinds: dict[str, Any] = {
        "adamw": lambda: torch.optim.AdamW(groups, fused=True),
        "adam": lambda: torch.optim.Adam(groups, fused=True),
        "rmsprop": lambda: torch.optim.RMSprop(groups, alpha=0.9, eps=1e-7),  # as Keras has it
        "sgd": lambda: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    }
    optimizer: torch.optim.Optimizer = kinds[recipe.optimizer]()
    return optimizer


def parameter_groups(network: Network, recipe: Recipe) -> list[dict[str, Any]]:
    """Return groups of parameters with `peak` and `weight_decay`, from the backbone's first layer to the head.

    The peak falls from the backbone's last layer to its first by the same factor per layer; from scratch all layers
    have
    one. Vectors and scalars (biases, scales of normalisation) do not decay, nor does what timm spares in this network
    (class tokens, positions, tables of relative positions).
    """
    spared = {id(parameter) for parameter in spared_from_decay(network)}

    def groups_of(parameters: list[nn.Parameter], peak: float) -> list[dict[str, Any]]:
        decaying = [parameter for parameter in parameters if id(parameter) not in spared]
        constant = [parameter for parameter in parameters if id(parameter) in spared]
        return [
            {"params": chosen, "lr": peak, "peak": peak, "weight_decay": decay}
            for chosen, decay in ((decaying, recipe.weight_decay), (constant, 0.0))
            if chosen
        ]

    if recipe.from_scratch:
        return groups_of(list(network.parameters()), recipe.learning_rate)
    layers = backbone_layers(network)
    groups = []
    for depth, layer in enumerate(layers):
        below = (len(layers) - 1 - depth) / max(len(layers) - 1, 1)
        groups += groups_of(layer, recipe.backbone_learning_rate * recipe.first_layer_share**below)
    return groups + groups_of(list(network.head.parameters()), recipe.learning_rate)


def spared_from_decay(network: Network) -> list[nn.Parameter]:
    """Return the parameters that do not decay, as timm chooses them: by their shape, and by the backbone's own list."""
    names: Iterable[str] = getattr(network.backbone, "no_weight_decay", tuple)()
    groups = param_groups_weight_decay(network, 1.0, no_weight_decay_list=[f"backbone.{name}" for name in names])
    return [parameter for group in groups if not group["weight_decay"] for parameter in group["params"]]


def backbone_layers(network: Network) -> list[list[nn.Parameter]]:
    """Return the backbone's parameters, layer by layer from the input, as timm groups them; one group if it does
    not."""
    matcher = getattr(network.backbone, "group_matcher", None)
    if matcher is None:
        return [list(network.backbone.parameters())]
    named = dict(network.backbone.named_parameters())
    layers = group_parameters(network.backbone, matcher(coarse=False))
    return [[named[name] for name in layers[depth]] for depth in sorted(layers)]
