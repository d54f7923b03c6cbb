"""A small dataset of striped images and a run over it, made without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from landmarks.dataset.images import encode
from landmarks.dataset.manifest import IMAGES, LABELS, REJECTED, SPLIT, Dataset, write_dataset
from landmarks.dataset.shards import ShardWriter
from landmarks.models.network import build_network, save_network
from landmarks.support.files import file_digest, write_record
from landmarks.support.tables import write_table
from landmarks.training.run import SEEN, SEEN_FILE, Run, open_run

NAMES = ["Charles Bridge", "Český Krumlov, zámek", "Łódź"]


def image(label: int, number: int) -> np.ndarray:
    """Return a grey image (60, 80, 3) with one bright square, whose colour is the label's."""
    image = np.full((60, 80, 3), 100, dtype=np.uint8)
    image[20:40, 10 + 5 * number : 30 + 5 * number] = 40
    image[20:40, 10 + 5 * number : 30 + 5 * number, label] = 250
    return image


@pytest.fixture
def striped(tmp_path: Path) -> Dataset:
    folder = tmp_path / "data"
    rows = []
    with ShardWriter(folder / "shards" / "one.tar") as shard:
        for label in range(3):
            for number in range(4):
                identity = f"{label}{number}" + "0" * 14
                offset, length = shard.add(identity, encode(image(label, number)))
                rows.append({"image_id": identity, "landmark_id": 10 * label, "offset": offset, "length": length})
    images = pl.DataFrame(rows).with_columns(
        *(pl.lit(None).cast(kind).alias(name) for name, kind in IMAGES.items() if name not in rows[0])
    )
    images = images.with_columns(shard=pl.lit("one.tar"), width=pl.lit(80), height=pl.lit(60))
    labels = pl.DataFrame(
        {"label": [0, 1, 2], "landmark_id": [0, 10, 20], "name": NAMES, "category": [None] * 3, "images": [4] * 3},
        schema=LABELS,
    )
    rejected = pl.DataFrame(schema=REJECTED)
    tested = pl.DataFrame({"image_id": images["image_id"], "split": "test"}, schema=SPLIT).sort("image_id")
    write_table(folder / "splits.parquet", tested, rule="by hand", seed=0)
    return write_dataset(folder, verb="import", images=images, labels=labels, rejected=rejected, record={"set": "-"})


@pytest.fixture
def colour_run(tmp_path: Path, striped: Dataset) -> Run:
    """A run whose baseline answers with the colour it sees: red, green or blue; nothing was shown to it."""
    network = build_network("baseline", classes=3, weights="none", image_size=32)
    first, second = network.backbone.layers[0], network.backbone.layers[3]
    with torch.no_grad():
        for layer in (first, second):
            layer.weight.zero_()
            layer.bias.zero_()
        network.head.output.weight.zero_()
        maps = network.head.output.weight.view(3, 64, 28, 28)
        for colour in range(3):
            first.weight[colour, :, 1, 1] = -1.0
            first.weight[colour, colour, 1, 1] = 1.0
            second.weight[colour, colour, 1, 1] = 1.0
            maps[colour, colour] = 0.05
    folder = tmp_path / "run"
    save_network(network, folder, temperature=2.0)
    write_table(folder / "labels.parquet", striped.labels)
    write_table(folder / SEEN_FILE, pl.DataFrame(schema=SEEN))
    data = {"folder": str(striped.folder), "digest": striped.digest, "seen": file_digest(folder / SEEN_FILE)}
    write_record(folder / "run.json", {"data": data}, verb="train")
    return open_run(folder)
