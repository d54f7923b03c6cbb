"""A dataset so small that a training takes seconds: each landmark a pattern of its own, in noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from landmarks.dataset.images import encode
from landmarks.dataset.manifest import IMAGES, LABELS, REJECTED, SPLIT, Dataset, open_dataset, write_dataset
from landmarks.dataset.shards import ShardWriter
from landmarks.support.tables import write_table

SMALL = "test_resnet"


def painted(landmark: int, number: int, size: tuple[int, int] = (72, 96)) -> np.ndarray:
    """Stripes whose direction and colours are the landmark's, whose phase and noise are the image's."""
    random = np.random.default_rng((landmark, number))
    colours = np.random.default_rng(1000 + landmark)
    height, width = size
    down, right = np.mgrid[:height, :width]
    angle = np.pi * landmark / 5
    wave = np.sin((down * np.sin(angle) + right * np.cos(angle)) / 4 + random.uniform(0, 6)) / 2 + 0.5
    light, dark = colours.uniform(120, 230, 3), colours.uniform(20, 110, 3)
    image = wave[..., None] * light + (1 - wave[..., None]) * dark + random.normal(0, 18, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def make_dataset(folder: Path, *, landmarks: int = 3, train: int = 16, val: int = 6, test: int = 2) -> Dataset:
    """Write a divided dataset of `landmarks` × (train + val + test) images in two shards."""
    rows, splits = [], []
    for shard in ("a.tar", "b.tar"):
        with ShardWriter(folder / "shards" / shard) as writer:
            for landmark in range(landmarks):
                for number in range(train + val + test):
                    if (number % 2 == 0) != (shard == "a.tar"):
                        continue
                    identity = f"{landmark:08x}{number:08x}"
                    image = painted(landmark, number)
                    offset, length = writer.add(identity, encode(image))
                    height, width = image.shape[:2]
                    rows.append(
                        {
                            "image_id": identity,
                            "landmark_id": 100 + landmark,
                            "shard": shard,
                            "offset": offset,
                            "length": length,
                            "width": width,
                            "height": height,
                            "phash": landmark * 1000 + number,
                        }
                    )
                    split = "train" if number < train else "val" if number < train + val else "test"
                    splits.append({"image_id": identity, "split": split})
    images = pl.DataFrame(rows).with_columns(
        pl.lit(None, dtype=kind).alias(name) for name, kind in IMAGES.items() if name not in rows[0]
    )
    labels = pl.DataFrame(
        {
            "label": range(landmarks),
            "landmark_id": [100 + landmark for landmark in range(landmarks)],
            "name": [f"landmark {landmark}" for landmark in range(landmarks)],
            "category": [None] * landmarks,
            "images": [train + val + test] * landmarks,
        },
        schema=LABELS,
    )
    write_dataset(
        folder,
        verb="fetch",
        images=images,
        labels=labels,
        rejected=pl.DataFrame(schema=REJECTED),
        record={"origin": "stripes", "set": "train"},
    )
    write_table(folder / "splits.parquet", pl.DataFrame(splits, schema=SPLIT).sort("image_id"), rule="made up", seed=0)
    return open_dataset(folder)
