"""Peak memory of training and evaluation with 20 and with 100 landmarks on the same images, which should not grow.

    python benchmarks/classes.py DATA WEIGHTS [--backbone mobilenetv2_100] [--image-size 160] [--images 1200]

The same images of DATA are dealt out to 20 and to 100 made-up landmarks, so that only the number of landmarks differs.
`train` (features, head training, one epoch of fine-tuning, batches of 32) and `evaluate` run as a user runs them, each
in a process of its own. Reported are their peak resident memory and the ratio of 100 to 20 landmarks.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from results import landmarks, measured, save, share_shards

from landmarks.dataset.manifest import REJECTED, open_dataset, write_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--images", type=int, default=1200)
    chosen = parser.parse_args()
    options = ["--backbone", chosen.backbone, "--weights", chosen.weights, "--image-size", chosen.image_size]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for classes in (20, 100):
            data, run = Path(place) / f"data-{classes}", Path(place) / f"run-{classes}"
            relabel(chosen.data, data, classes, chosen.images)
            train = measured(landmarks("train", data, "-o", run, "--epochs", 1, *options))[2]
            evaluate = measured(landmarks("evaluate", run))[2]
            rows.append({"landmarks": classes, "train_mb": train, "evaluate_mb": evaluate})
    ratios = {name: rows[1][name] / rows[0][name] for name in ("train_mb", "evaluate_mb")}
    save("classes", [*rows, {"landmarks": "100 to 20", **ratios}], images=chosen.images)


def relabel(data: Path, copy: Path, classes: int, count: int) -> None:
    """Make a dataset of the first `count` images of another, dealt out to `classes` landmarks and to splits."""
    dataset = open_dataset(data)
    images = dataset.images.sort("image_id").head(count)
    rows = np.arange(len(images))
    images = images.with_columns(landmark_id=pl.Series(rows % classes, dtype=pl.Int64))
    names, counts = [f"landmark {label}" for label in range(classes)], np.bincount(rows % classes)
    columns = {"label": range(classes), "landmark_id": range(classes), "name": names, "images": counts}
    splits = np.array(["train", "val", "test", "train", "train"])[rows // classes % 5]
    share_shards(data, copy)
    write_dataset(
        copy,
        verb="import",
        images=images,
        labels=pl.DataFrame(columns).with_columns(category=pl.lit(None, dtype=pl.String)),
        rejected=pl.DataFrame(schema=REJECTED),
        record=dataset.record,
        split=(pl.DataFrame({"image_id": images["image_id"], "split": splits}), {"rule": "made up", "seed": 0}),
    )


if __name__ == "__main__":
    main()
