"""Training steps and answers with freed memory kept by the process, and given back to the system in every step.

    python benchmarks/freed_memory.py DATA [--rounds 2]

DATA is a dataset with splits. Each measurement is a process of its own, in turns; a figure is the best of its rounds.
Weights are random; batches are made in advance, so nothing is read while the clock runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import run_json, save

CASES = (
    ("training", "tf_efficientnet_lite2", 260, 32),
    ("training", "mobilenetv2_100", 160, 32),
    ("training", "resnet50", 224, 16),
    ("answers", "tf_efficientnet_lite2", 224, 32),
    ("answers", "resnet50", 224, 32),
)
"""What is done, with which network, at how many pixels and with how many images at once."""

STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    rows = []
    for case in CASES:
        found: dict[str, dict[str, Any]] = {}
        for _ in range(chosen.rounds):
            for how in ("given back", "kept"):
                row = run_json(sys.executable, __file__, "measure", chosen.data, how, *case)
                if how not in found or row["images_per_second"] > found[how]["images_per_second"]:
                    found[how] = row
        rates = [found[how]["images_per_second"] for how in ("kept", "given back")]
        rows.append(dict(zip(("what", "network", "pixels", "batch"), case, strict=True)) | found)
        rows[-1] |= {"ratio": rates[0] / rates[1]}
        print(rows[-1], flush=True)
    save("freed-memory", rows, rounds=chosen.rounds, steps=STEPS)


def measure(data: str, how: str, what: str, backbone: str, *numbers: int) -> dict[str, Any]:
    """Return images per second, and the share of the processor time that the system took.

    `numbers` are the side of the images in pixels and the images at once.
    """
    pixels, batch_size = numbers
    from landmarks.support import systems

    if how == "given back":
        systems.keep_freed_memory = lambda: False  # before the modules that call it are imported
    import torch

    from landmarks.dataset.manifest import open_dataset
    from landmarks.models.network import build_network
    from landmarks.models.rewriting import fold_batch_norm
    from landmarks.training.augmentation import EpochAugmentation
    from landmarks.training.choices import set_memory_layout
    from landmarks.training.finetune import Training, accumulate_gradients, set_training
    from landmarks.training.loader import batches, normalised
    from landmarks.training.machine import open_machine
    from landmarks.training.optimizer import make_optimizer
    from landmarks.training.recipe import recipe_named

    settings = {"backbone": backbone, "tracking": "none", "weights": "none", "image_size": pixels}
    recipe = recipe_named("default", precision="float32", **settings)
    dataset = open_dataset(data)
    machine, _ = open_machine(recipe, dataset.folder)
    network = build_network(backbone, classes=len(dataset.labels), weights="none", image_size=pixels)
    set_memory_layout(network)
    train = dataset.split("train").head(batch_size)
    augment = EpochAugmentation(recipe.augmentation)
    batch = next(iter(batches(dataset, train, network.preprocessing, batch_size=batch_size, augment=augment)))

    def training() -> Callable[[], object]:
        set_training(network, freeze_bn=False)
        state = Training(network, recipe, machine, torch.ones(network.classes), network.features)
        optimizer = make_optimizer(network, recipe)

        def step() -> None:
            accumulate_gradients(state, batch, batch_size, batch_size)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def answers() -> Callable[[], object]:
        folded, images = fold_batch_norm(network), normalised(batch.pixels, network.preprocessing)
        return torch.no_grad()(lambda: folded(images))

    step = {"training": training, "answers": answers}[what]()
    step()
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(STEPS):
        step()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    system, own = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    return {
        "images_per_second": STEPS * batch_size / seconds,
        "share_of_the_system": system / (system + own),
        "peak_mb": after.ru_maxrss / 1024,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(*sys.argv[2:6], *map(int, sys.argv[6:8]))))
    else:
        main()
