"""Training steps from JPEG shards, compared with Keras and timm: images per second, and ratios.

    python benchmarks/speed.py DATA FOLDERS --keras KERAS/bin/python --timm TIMM/bin/python [--rounds 2]

DATA is a dataset with splits, FOLDERS the same images after `landmarks unpack` (the peers read FOLDERS/train). The
interpreters belong to environments with keras, tensorflow-cpu and pillow, and with timm and torchvision. Every
measurement is a process of its own, all of them in turns; a figure is the best of its rounds. All networks have random
weights, see 224 pixels in batches of 16, and take one step before the clock starts. Ours takes the steps of our
training, with the recipe `default`, augmentation and precision included, from shards and on one batch made in advance.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from results import run_json, save

NETWORKS = {  # ours → timm's and Keras's names
    "resnet50": ("resnet50", "ResNet50"),
    "xception": ("legacy_xception", "Xception"),
    "inception_v3": ("inception_v3", "InceptionV3"),
}
PIXELS, BATCH = 224, 16
PEERS = Path(__file__).parent / "peers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folders", type=Path)
    parser.add_argument("--keras", required=True)
    parser.add_argument("--timm", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    chosen = parser.parse_args()
    numbers = (PIXELS, BATCH, chosen.steps)
    images, rows = chosen.folders / "train", []
    for network, (timm_name, keras_name) in NETWORKS.items():
        best: dict[str, float] = {}
        for _ in range(chosen.rounds):
            ours = run_json(sys.executable, __file__, "ours", chosen.data, network, *numbers)
            timm = run_json(chosen.timm, PEERS / "timm_steps.py", images, timm_name, *numbers)
            keras = run_json(chosen.keras, PEERS / "keras_steps.py", images, keras_name, *numbers)
            found = {"shards": ours["shards"], "tensors": ours["tensors"], "keras": keras["images_per_second"]}
            found |= {"timm": timm["jpeg"], "timm_tensors": timm["tensors"]}
            best = {name: max(rate, best.get(name, 0.0)) for name, rate in found.items()}
        rows.append(
            {"network": network, **best, "to_keras": best["shards"] / best["keras"]}
            | {"to_timm": best["shards"] / best["timm"], "shards_to_tensors": best["shards"] / best["tensors"]}
        )
        print(rows[-1], flush=True)
    precision = {"precision": ours["precision"], "timm": timm["timm"], "torch": timm["torch"], "keras": keras["keras"]}
    save("speed", rows, pixels=PIXELS, batch=BATCH, rounds=chosen.rounds, steps=chosen.steps, **precision)


def ours(data: str, backbone: str, pixels: int, batch_size: int, steps: int) -> dict[str, Any]:
    """Return images per second of our training step, from shards and on tensors."""
    import torch

    from landmarks.dataset.manifest import open_dataset
    from landmarks.models.network import build_network
    from landmarks.training.augmentation import EpochAugmentation
    from landmarks.training.choices import set_memory_layout
    from landmarks.training.finetune import Training, accumulate_gradients, set_training
    from landmarks.training.loader import Batch, batches
    from landmarks.training.machine import open_machine
    from landmarks.training.optimizer import make_optimizer
    from landmarks.training.recipe import recipe_named

    recipe = recipe_named("default", backbone=backbone, tracking="none", weights="none", image_size=pixels)
    dataset = open_dataset(data)
    machine, _ = open_machine(recipe, dataset.folder)
    network = build_network(backbone, classes=len(dataset.labels), weights="none", image_size=pixels)
    set_memory_layout(network)
    set_training(network, freeze_bn=False)
    training = Training(network, recipe, machine, torch.ones(network.classes), network.features)
    optimizer = make_optimizer(network, recipe)

    def rate(loaded: Iterator[Batch]) -> float:
        for step, batch in zip(range(steps + 1), loaded, strict=False):
            accumulate_gradients(training, batch, batch_size, batch_size)
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.max_grad_norm or float("inf"))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step == 0:
                started = time.perf_counter()
        return steps * batch_size / (time.perf_counter() - started)

    train = dataset.split("train")
    chosen = train[np.random.default_rng(0).permutation(len(train))[: (steps + 1) * batch_size]]

    def shards() -> Iterator[Batch]:
        augment = EpochAugmentation(recipe.augmentation)
        return batches(dataset, chosen, network.preprocessing, batch_size=batch_size, augment=augment)

    ready = next(iter(shards()))
    found = {"tensors": rate(iter([ready] * (steps + 1))), "shards": rate(shards())}
    return {**found, "precision": machine.precision}


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        print(json.dumps(ours(*sys.argv[2:4], *map(int, sys.argv[4:7]))))
    else:
        main()
