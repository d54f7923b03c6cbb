"""Time of ten epochs of head training on cached features, against one pass over the images and ten frozen epochs.

    python benchmarks/warmup.py DATA WEIGHTS [--backbone mobilenetv2_100] [--image-size 160] [--images 800]

DATA is a dataset with splits, of which `--images` training images are used. One pass sends every image, without
augmentation, through the frozen backbone and stores nothing. The head training is that of `train`: it caches the
features, then trains the head on them for ten epochs. The frozen epochs read, augment and pass every image ten times,
as training loops without a cache do.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from results import save, share_shards

from landmarks.dataset.manifest import open_dataset
from landmarks.models.network import build_network
from landmarks.training.augmentation import EpochAugmentation
from landmarks.training.choices import set_memory_layout
from landmarks.training.features import Rows, cached_features, labels_of
from landmarks.training.head_training import train_head
from landmarks.training.loader import Batch, as_input, batches
from landmarks.training.machine import open_machine
from landmarks.training.recipe import recipe_named

EPOCHS, BATCH_SIZE = 10, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--images", type=int, default=800)
    chosen = parser.parse_args()
    recipe = recipe_named(
        "default", backbone=chosen.backbone, weights=chosen.weights, tracking="none", head_epochs=EPOCHS
    )
    recipe = replace(recipe, image_size=chosen.image_size, head_patience=EPOCHS)
    dataset = open_dataset(chosen.data)
    machine, _ = open_machine(recipe, dataset.folder)
    network = build_network(
        chosen.backbone, classes=len(dataset.labels), weights=chosen.weights, image_size=chosen.image_size
    ).eval()
    set_memory_layout(network)
    train, val = (dataset.split(part).sort("image_id") for part in ("train", "val"))
    train = train.head(chosen.images)
    labels = labels_of(train)

    def read(epoch: int | None = None) -> Iterator[Batch]:
        augment = None if epoch is None else EpochAugmentation(recipe.augmentation, epoch=epoch)
        return batches(dataset, train, network.preprocessing, batch_size=BATCH_SIZE, augment=augment)

    @torch.no_grad()
    def features(batch: Batch) -> torch.Tensor:
        with machine.computing():
            return network.features(as_input(batch, network.preprocessing)).float()

    # One pass, nothing stored.
    features(next(iter(read())))  # the first batch is always slow
    started = time.perf_counter()
    for batch in read():
        features(batch)
    one_pass = time.perf_counter() - started

    # Caching, and ten epochs on the cached features.
    with tempfile.TemporaryDirectory(dir=dataset.folder.parent) as place:
        copy = Path(place) / "data"
        shutil.copytree(dataset.folder, copy, ignore=shutil.ignore_patterns("features", "shards"))
        share_shards(dataset.folder, copy)
        uncached = open_dataset(copy)
        val_rows = Rows(cached_features(network, uncached, val, machine=machine).values, np.arange(len(val)))
        started = time.perf_counter()
        cached = cached_features(network, uncached, train, machine=machine)
        rows = Rows(cached.values, np.arange(len(train)))
        train_head(network, [rows], labels, val_rows, labels_of(val), recipe=recipe)
        trained = time.perf_counter() - started

    # Ten frozen epochs.
    optimizer = torch.optim.AdamW(network.head.parameters(), lr=recipe.head_learning_rate)
    started = time.perf_counter()
    for epoch in range(EPOCHS):
        for batch in read(epoch):
            loss = network.head.loss(features(batch), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    frozen = time.perf_counter() - started
    row = {"images": len(train), "one_pass_seconds": one_pass, "warm_up_seconds": trained}
    row |= {"ten_frozen_epochs_seconds": frozen, "to_one_pass": trained / one_pass, "to_frozen": frozen / trained}
    save("head", [row], backbone=chosen.backbone, image_size=chosen.image_size, precision=machine.precision)


if __name__ == "__main__":
    main()
