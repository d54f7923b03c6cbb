"""Precision and recall of `audit`'s likely label errors, with 3 % of a dataset's labels falsified at random.

    python benchmarks/label_errors.py RUN DATA [SPLIT] [NAME]

RUN stopped after head training, so that its backbone has seen no labels. The results are `label-errors-NAME.json`, by
default with the split's name.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import results

from landmarks.dataset.manifest import open_dataset
from landmarks.evaluation.audit import audit, split_features
from landmarks.evaluation.label_estimates import disagreements, estimated, nearest_others
from landmarks.recognition.vectors import directions
from landmarks.training.run import open_run

SHARE = 0.03
SEEDS = (0, 1, 2)


def main(run: str, data: str, split: str = "all", name: str = "") -> None:
    dataset = open_dataset(data)
    images, features = split_features(open_run(run), dataset, split)
    points, classes = directions(features), len(dataset.labels)
    true = images["label"].cast(pl.Int64).to_numpy()
    groups = images["group"].cast(pl.Int64).to_numpy()
    rows = []
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        wrong = random.choice(len(true), round(SHARE * len(true)), replace=False)
        labels = true.copy()
        labels[wrong] = (true[wrong] + random.integers(1, classes, len(wrong))) % classes
        started = time.monotonic()
        estimates = estimated(points, labels, groups, classes, nearest_others(points, groups))
        likely_wrong, margin = disagreements(estimates, labels)
        seconds = time.monotonic() - started
        falsified = np.isin(np.arange(len(true)), wrong)
        first = np.argsort(-np.where(likely_wrong, margin, -1), kind="stable")[: len(wrong)]
        rows.append(
            {
                "seed": seed,
                "images": len(true),
                "falsified": len(wrong),
                "listed": int(likely_wrong.sum()),
                "found": int((likely_wrong & falsified).sum()),
                "precision": float(falsified[likely_wrong].mean()),
                "recall": float(likely_wrong[wrong].mean()),
                "precision_of_first": float(falsified[first].mean()),  # as many as were falsified
                "true_label_suggested": float((estimates.likeliest == true)[likely_wrong & falsified].mean()),
                "seconds": seconds,
            }
        )
    with TemporaryDirectory() as folder:
        errors = audit(run, Path(folder) / "wrong.csv", data=data, split=split)
    columns = ["image_id", "name", "suggested_name", "probability", "margin", "why"]
    first_errors = errors.select(columns).head(10).to_dicts()
    about = {"split": split, "landmarks": classes, "listed_of_the_true_labels": len(errors), "first": first_errors}
    results.save(f"label-errors-{name or split}", rows, **about)


if __name__ == "__main__":
    main(*sys.argv[1:])
