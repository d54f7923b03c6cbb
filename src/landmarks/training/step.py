"""One step's gradients: in parts when memory is short, and added up over processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from landmarks.networks.network import Network
from landmarks.support.errors import LandmarksError
from landmarks.training.machine import Machine
from landmarks.training.memory import is_out_of_memory, release
from landmarks.training.photos import Batch, normalised
from landmarks.training.recipe import Recipe


@dataclass(frozen=True)
class Training:
    """What every step works with."""

    network: Network
    recipe: Recipe
    machine: Machine
    class_weights: torch.Tensor  # (K,), of each landmark in the loss
    features: Callable[[torch.Tensor], torch.Tensor]  # the network's, perhaps compiled


def add_gradients(training: Training, batch: Batch, size: int, micro_batch: int) -> tuple[float, float, int]:
    """Add this process's part of the gradient of a step of `size` photographs to each parameter's `grad`.

    Returns the sum of losses, the number of right answers, and the micro-batch that fitted. The photographs pass in
    parts of at most `micro_batch`. When memory runs out, everything the failed pass held is let go, the micro-batch is
    halved, and the step begins anew with the same photographs: the same gradient, but that batch normalisation sees
    smaller parts. Raises `LandmarksError` when a single photograph does not fit.
    """
    network = training.network
    statistics = [buffer.clone() for buffer in network.buffers()]
    while True:
        try:
            return *_pass_through(training, batch, size, micro_batch), micro_batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if min(micro_batch, len(batch.ids)) <= 1:
                raise does_not_fit(network) from error
        # Outside of the handler the error, and with it every tensor of the failed pass, is gone.
        network.zero_grad(set_to_none=True)
        for buffer, before in zip(network.buffers(), statistics, strict=True):
            buffer.copy_(before)
        release()
        micro_batch = math.ceil(min(micro_batch, len(batch.ids)) / 2)
        training.machine.say(
            f"out of memory: going on with {micro_batch} photographs at a time, added up to the same {size} a step"
        )


def does_not_fit(network: Network) -> LandmarksError:
    """Return the error for a network that cannot train on a single photograph in the memory there is."""
    return LandmarksError(
        f"{network.backbone} at {network.preprocessing.image_size} pixels does not fit into memory",
        received="no room for a single photograph",
        way_out="--set gradient_checkpointing=true, smaller pictures (--image-size), or a smaller network",
    )


def _pass_through(training: Training, batch: Batch, size: int, micro_batch: int) -> tuple[float, float]:
    network, machine, weights = training.network, training.machine, training.class_weights
    loss_sum = correct = 0.0
    parts = math.ceil(len(batch.ids) / micro_batch)
    for start, end in zip(*_bounds(len(batch.ids), parts), strict=True):
        images = normalised(batch.images[start:end], network.preprocessing, machine.device)
        labels = batch.labels[start:end].to(machine.device)
        with machine.computing():
            features = training.features(images)
        features = features.float()
        loss = network.head.loss(
            features, labels, label_smoothing=training.recipe.label_smoothing, class_weights=weights
        )
        # The mean of a part, weighted so that the parts of all processes add up to the mean of the step.
        torch.autograd.backward(loss * (weights[labels].sum() / size))
        loss_sum += float(loss.detach()) * (end - start)
        with torch.no_grad():
            correct += float((network.classify(features).argmax(1) == labels).sum())
    return loss_sum, correct


def _bounds(count: int, parts: int) -> tuple[list[int], list[int]]:
    """Return starts and ends that divide `count` photographs into `parts` of nearly equal size."""
    edges = np.linspace(0, count, parts + 1).round().astype(int).tolist() if parts else [0]
    return edges[:-1], edges[1:]


def add_processes(network: Network, numbers: torch.Tensor, machine: Machine) -> torch.Tensor:
    """Replace gradients by their sums over all processes, and return the sums of `numbers`: one exchange a step."""
    if machine.processes == 1:
        return numbers
    parameters = list(network.parameters())
    for parameter in parameters:
        if parameter.grad is None:  # a process without photographs in this step
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), numbers.float().to(machine.device)])
    flat = machine.summed(flat)
    position = 0
    for gradient in gradients:
        gradient.copy_(flat[position : position + gradient.numel()].view(gradient.shape))
        position += gradient.numel()
    return flat[position:]


@torch.no_grad()
def average_statistics(network: Network, machine: Machine) -> None:
    """Replace batch normalisation's running statistics by their means over all processes."""
    if machine.processes == 1:
        return
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.copy_(machine.summed(buffer) / machine.processes)
