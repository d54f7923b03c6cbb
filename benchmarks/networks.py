"""Seconds and memory of two training steps of each of the study's networks, with 100 landmarks at its input size.

    python benchmarks/networks.py [--micro-batch 8] [--networks resnet50 …] [--gradient-checkpointing]

Every network has a process of its own. Weights are random, as their values affect neither time nor memory.
"""

from __future__ import annotations

import argparse
import sys

from results import run_json, save

from landmarks.models.backbones import STUDY

CLASSES = 100

TWO_STEPS = """
import json, resource, sys, time
import torch
from landmarks.models.network import build_network
from landmarks.training.optimizer import make_optimizer
from landmarks.training.choices import choose_precision
from landmarks.training.recipe import recipe_named
from landmarks.models.rewriting import enable_gradient_checkpointing
backbone, classes, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
network = build_network(backbone, classes=classes, weights="none").to(memory_format=torch.channels_last)
if sys.argv[4] == "True":
    enable_gradient_checkpointing(network.backbone)
network.train()
optimizer = make_optimizer(network, recipe_named("default", backbone=backbone, weights="none"))
precision = choose_precision("auto", "cpu").value
size = network.preprocessing.image_size
images, labels = torch.randn(batch, 3, size, size), torch.arange(batch)
started = time.perf_counter()
for _ in range(2):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        features = network.features(images.contiguous(memory_format=torch.channels_last))
    network.head.loss(features.float(), labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
row = {"network": backbone, "pixels": size, "micro_batch": batch, "precision": precision}
row["seconds_of_two_steps"] = round(time.perf_counter() - started, 1)
row["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6
print(json.dumps(row))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--networks", nargs="+", default=list(STUDY))
    parser.add_argument("--gradient-checkpointing", action="store_true")
    chosen = parser.parse_args()
    rows = []
    for backbone in chosen.networks:
        settings = (backbone, CLASSES, chosen.micro_batch, chosen.gradient_checkpointing)
        rows.append(run_json(sys.executable, "-c", TWO_STEPS, *settings))
    save("networks-checkpointing" if chosen.gradient_checkpointing else "networks", rows, classes=CLASSES)


if __name__ == "__main__":
    main()
