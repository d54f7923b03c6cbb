"""How much a run's answers change when its backbone computes with fewer bits: agreement with float32, and distances.

    python benchmarks/precisions.py RUN DATA [--images 96]

`tf32` rounds the inputs of each convolution and matrix product to 10 bits of mantissa and accumulates in float32, as
NVIDIA's cards do; it is emulated here, so that any processor can run it. `float16` and `bfloat16` are PyTorch's
autocast. The head and the softmax are always in float32.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from results import save

import landmarks
from landmarks.models.network import Network
from landmarks.training.loader import batches, normalised

Features = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=96)
    chosen = parser.parse_args()
    recogniser = landmarks.load(chosen.run, by="classifier", device="cpu")
    network, dataset = recogniser.trained, landmarks.open_dataset(chosen.data)
    ways = {
        "tf32": in_tf32(network).features,
        "float16": autocast(network, torch.float16),
        "bfloat16": autocast(network, torch.bfloat16),
    }
    same: dict[str, list[float]] = {name: [] for name in ways}
    distances: dict[str, list[float]] = {name: [] for name in ways}
    largest = dict.fromkeys(ways, 0.0)
    images = dataset.split("all")
    images = images.sample(min(chosen.images, len(images)), seed=0)
    with torch.no_grad():
        for batch in batches(dataset, images, network.preprocessing, batch_size=32):
            pixels = normalised(batch.pixels, network.preprocessing)
            exact = network.features(pixels)
            expected = (network.classify(exact) / recogniser.temperature).softmax(1)
            for name, features_of in ways.items():
                features = features_of(pixels).float()
                found = (network.classify(features) / recogniser.temperature).softmax(1)
                same[name] += (found.argmax(1) == expected.argmax(1)).float().tolist()
                distances[name] += ((features - exact).norm(dim=1) / exact.norm(dim=1)).tolist()
                largest[name] = max(largest[name], float((found - expected).abs().max()))
    rows = [
        {
            "precision": name,
            "same_answer": float(np.mean(same[name])),
            "largest_difference_of_a_probability": largest[name],
            "features_apart_mean": float(np.mean(distances[name])),
            "features_apart_most": float(np.max(distances[name])),
        }
        for name in ways
    ]
    save("precisions", rows, backbone=network.backbone_name, images=len(images))


def autocast(network: Network, dtype: torch.dtype) -> Features:
    """Return the network's features as PyTorch computes them in `dtype` on the processor."""

    def features_of(pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return network.features(pixels)

    return features_of


def in_tf32(network: Network) -> Network:
    """Return a copy of `network` whose products have factors with 10 bits of mantissa."""
    emulated = copy.deepcopy(network)
    for module in emulated.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.weight.data = rounded(module.weight.data)
            module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    return emulated


def rounded(numbers: torch.Tensor) -> torch.Tensor:
    """Return float32 `numbers` rounded to 10 of the 23 bits of mantissa."""
    mantissa, exponent = torch.frexp(numbers)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


if __name__ == "__main__":
    main()
