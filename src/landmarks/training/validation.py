"""Validation of a network during its training, by all processes together."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from landmarks.dataset.manifest import Dataset
from landmarks.models.network import Network
from landmarks.training.feeding import on_device
from landmarks.training.loader import batches, epoch_steps, normalised
from landmarks.training.machine import Machine, compute_in_parts


@torch.no_grad()
def validate(network: Network, dataset: Dataset, images: pl.DataFrame, *, machine: Machine) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy on `images`, which are divided among the processes."""
    network.eval()
    at_once = machine.images_at_once
    steps = epoch_steps(np.arange(len(images)), at_once * machine.processes, machine.rank, machine.processes)
    sums = torch.zeros(2, device=machine.device)

    def logits_of(pixels: torch.Tensor) -> torch.Tensor:
        with machine.computing():
            features = network.features(normalised(pixels, network.preprocessing))
        return network.classify(features.float())

    loaded = batches(
        dataset,
        images,
        network.preprocessing,
        steps=steps,
        workers=machine.workers,
    )
    for batch in on_device(loaded, machine.device):
        if batch.ids:
            logits, at_once = compute_in_parts(logits_of, batch.pixels, at_once)
            sums[0] += (logits.argmax(1) == batch.labels).sum()
            sums[1] += F.cross_entropy(logits, batch.labels, reduction="sum")
    accuracy, loss = (machine.summed(sums).cpu().double() / len(images)).tolist()
    return accuracy, loss
