"""Are falsified labels found? 3 % of a dataset's labels are replaced at random, and the list is judged by them.

Usage: python benchmarks/suspects.py RUN DATA [PART]
(a run that stopped after the head training, since its backbone has seen no label)
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
from landmarks.evaluation.audit import cross_validated, disagreements, features_of, suspects
from landmarks.recognition.gallery import directions
from landmarks.training.run import open_run

SHARE = 0.03
SEEDS = (0, 1, 2)


def main(run: str, data: str, part: str = "all") -> None:
    dataset = open_dataset(data)
    images, features = features_of(open_run(run), dataset, part)
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
        estimates = cross_validated(points, labels, groups, classes)
        suspect, suspicion = disagreements(estimates, labels)
        seconds = time.monotonic() - started
        falsified = np.isin(np.arange(len(true)), wrong)
        first = np.argsort(-np.where(suspect, suspicion, -1), kind="stable")[: len(wrong)]
        rows.append(
            {
                "seed": seed,
                "images": len(true),
                "falsified": len(wrong),
                "listed": int(suspect.sum()),
                "found": int((suspect & falsified).sum()),
                "precision": float(falsified[suspect].mean()),
                "recall": float(suspect[wrong].mean()),
                "precision_of_first": float(falsified[first].mean()),  # as many as were falsified
                "true_label_suggested": float((estimates.likeliest == true)[suspect & falsified].mean()),
                "seconds": seconds,
            }
        )
    with TemporaryDirectory() as folder:
        listed = suspects(run, Path(folder) / "suspects.csv", data=data, part=part)
    columns = ["id", "name", "suggested_name", "probability", "suspicion", "why"]
    most = listed.select(columns).head(10).to_dicts()
    told = {"part": part, "landmarks": classes, "suspects_of_the_true_labels": len(listed), "most_suspicious": most}
    results.keep(f"suspects-{part}", rows, **told)


if __name__ == "__main__":
    main(*sys.argv[1:])
