"""What `audit` finds of inserted images: unknown images, copies under another label, and copies in a test set.

    python benchmarks/audit_inserted.py RUN DATA TEST

RUN stopped after head training; DATA is its dataset, TEST a dataset with unknown images that RUN was evaluated on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import results
from copies import CHANGES

from landmarks.dataset.copies import find_copies
from landmarks.dataset.images import decode
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.dataset.sketches import Sketches, kept_sketches, make_sketch
from landmarks.evaluation.audit import open_training_machine, split_features
from landmarks.evaluation.doubts import find_strangers, nearest_cosines
from landmarks.evaluation.label_estimates import disagreements, estimated, nearest_others
from landmarks.recognition.vectors import directions
from landmarks.training.features import cached_features
from landmarks.training.run import Run, open_run

INSERTED = 20
SEEDS = (0, 1, 2)


def main(run: str, data: str, test: str) -> None:
    opened, dataset, other = open_run(run), open_dataset(data), open_dataset(test)
    results.save("audit-strangers", strangers_found(opened, dataset, other), inserted=INSERTED)
    sketches, landmark = sketches_and_landmarks(dataset)
    results.save("audit-copies", copies_found(dataset, sketches, landmark), inserted=INSERTED)
    results.save("audit-test-set", test_set(Path(run), dataset, sketches, landmark, other))


def strangers_found(run: Run, dataset: Dataset, other: Dataset) -> list[dict[str, Any]]:
    images, features = split_features(run, dataset, "all")
    unknown = other.split("all").filter(pl.col("landmark_id").is_null())
    values = cached_features(run.network(), other, unknown, machine=open_training_machine(run, other, "auto")).values
    known, classes = images["label"].cast(pl.Int64).to_numpy(), len(dataset.labels)
    groups = images["group"].cast(pl.Int64).to_numpy()
    rows = []
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        chosen = np.sort(random.choice(len(unknown), INSERTED, replace=False))
        points = directions(np.concatenate([features, values[chosen]]))
        labels = np.concatenate([known, random.integers(0, classes, INSERTED)])
        all_groups = np.concatenate([groups, np.full(INSERTED, -1)])
        nearest = nearest_others(points, all_groups)
        estimates = estimated(points, labels, all_groups, classes, nearest)
        label_errors, _ = disagreements(estimates, labels)
        found, strangeness = find_strangers(nearest_cosines(nearest.cosines), estimates.own, labels)
        inserted = np.arange(len(labels)) >= len(known)
        first = np.argsort(-strangeness, kind="stable")[: 2 * INSERTED]
        rows.append(
            {
                "seed": seed,
                "images": len(labels),
                "listed": int(found.sum()),
                "found": int((found & inserted).sum()),
                "found_or_a_label_error": int(((found | label_errors) & inserted).sum()),
                "in_the_first_40": int(inserted[first].sum()),
            }
        )
    return rows


def sketches_and_landmarks(dataset: Dataset) -> tuple[Sketches, np.ndarray]:
    sketches = kept_sketches(dataset, dataset.images)
    assert sketches is not None
    return sketches, dataset.images["landmark_id"].fill_null(-1).to_numpy()


def joined(first: Sketches, second: Sketches) -> Sketches:
    names = ("pixels", "whole", "parts", "corners", "counts")
    return Sketches(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in names))


def copies_found(dataset: Dataset, sketches: Sketches, landmark: np.ndarray) -> list[dict[str, Any]]:
    """Insert changed copies with other labels, and count how many are found, and other copies with two labels."""
    reader, rows = ImageReader(dataset), []
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        chosen = random.choice(len(landmark), INSERTED, replace=False)
        changes = random.choice(np.array(list(CHANGES)), INSERTED)
        made = []
        for place, change in zip(chosen, changes, strict=True):
            row = dataset.images.row(int(place), named=True)
            image = decode(reader.read(row["shard"], row["offset"], row["length"]))
            made.append(make_sketch(np.ascontiguousarray(CHANGES[change](image))))
        added = Sketches(
            np.stack([each.pixels for each in made]),
            np.array([each.whole for each in made], np.uint64),
            np.concatenate([each.parts for each in made]),
            np.concatenate([each.corners for each in made]),
            np.array([len(each.parts) for each in made]),
        )
        others = random.choice(np.unique(landmark), INSERTED)
        labels = np.concatenate([landmark, np.where(others == landmark[chosen], -1, others)])
        pairs = find_copies(joined(sketches, added), labels).pairs
        across = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
        right = {(int(place), len(landmark) + number) for number, place in enumerate(chosen)}
        found = {(int(i), int(j)) for i, j in across}
        inside = sum(j < len(landmark) for _, j in found)
        rows.append({"seed": seed, "inserted": INSERTED, "found": len(found & right), "others_with_two_labels": inside})
    return rows


def test_set(
    run: Path, dataset: Dataset, sketches: Sketches, landmark: np.ndarray, other: Dataset
) -> list[dict[str, Any]]:
    """Count the test images that are copies of training images, and the accuracy with and without them."""
    test_sketches, test_landmark = sketches_and_landmarks(other)
    pairs = find_copies(joined(sketches, test_sketches), np.concatenate([landmark, test_landmark])).pairs
    across = (pairs[:, 0] < len(landmark)) & (pairs[:, 1] >= len(landmark))
    between = pairs[across] - [0, len(landmark)]
    splits = dataset.splits
    assert splits is not None
    training = set(splits.filter(pl.col("split") == "train")["image_id"])
    ids, test_ids = dataset.images["image_id"], other.images["image_id"]
    id_pairs = [(ids[int(i)], test_ids[int(j)]) for i, j in between]
    copies = {copy for original, copy in id_pairs if original in training}
    predictions = pl.read_parquet(next((run / "predictions").glob(f"{Path(other.folder).name}*.parquet")))
    known = predictions.filter(pl.col("truth").list.len() > 0).select(
        "image_id", right=pl.col("label").list.first().is_in(pl.col("truth"))
    )
    rows = []
    for what, table in (
        ("all", known),
        ("without copies", known.filter(~pl.col("image_id").is_in(list(copies)))),
        ("copies alone", known.filter(pl.col("image_id").is_in(list(copies)))),
    ):
        right = table["right"].mean() if len(table) else None
        rows.append({"what": what, "images_of_a_landmark": len(table), "accuracy": right, "pairs": len(id_pairs)})
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
