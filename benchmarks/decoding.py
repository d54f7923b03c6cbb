"""The scale at which JPEGs are decoded, and its effect on time, answers and accuracy.

    python benchmarks/decoding.py RUN DATA TESTDATA

JPEGs are decoded in full size, at the smallest scale whose shorter side the network's square can still be cut from (as
every verb does), and at the smallest scale for twice that side. Features of RUN's backbone are compared, and the
accuracy of a ridge classifier, trained on DATA decoded at each scale, on the known landmarks of TESTDATA decoded at
each scale.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from results import save
from sklearn.linear_model import RidgeClassifier

from landmarks.dataset.images import decode
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.recognition.recogniser import Recogniser, load
from landmarks.recognition.vectors import directions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "data", "testdata"):
        parser.add_argument(name, type=Path)
    chosen = parser.parse_args()
    recogniser = load(chosen.run, device="cpu")
    shorter = recogniser.network.preprocessing.shorter
    scales = {"reduced": shorter, "reduced to twice": 2 * shorter, "whole": None}
    data, testdata = open_dataset(chosen.data), open_dataset(chosen.testdata)
    train, test = data.split("train"), testdata.images
    labels = train["landmark_id"].to_numpy()
    known = test["landmark_id"].is_in(labels.tolist()).fill_null(False).to_numpy()
    truth = test["landmark_id"].to_numpy()[known]
    fitted, seen, answers, rows = {}, {}, {}, []
    for name, side in scales.items():
        fitted[name] = RidgeClassifier(alpha=1.0).fit(directions(features(recogniser, data, train, side)), labels)
        seen[name] = features(recogniser, testdata, test, side)
        answers[name] = fitted["reduced"].predict(directions(seen[name]))
    for name, side in scales.items():
        lengths = np.linalg.norm(seen["reduced"], axis=1)
        distances = np.linalg.norm(seen[name] - seen["reduced"], axis=1) / lengths
        accuracies = {
            f"accuracy, trained {other}": accuracy(classifier, seen[name][known], truth)
            for other, classifier in fitted.items()
        }
        row = {
            "decoded": name,
            "milliseconds": milliseconds(testdata, test[:300], side),
            "features_apart": float(distances.mean()),
            "same_answer": float((answers[name] == answers["reduced"]).mean()),
            "same_answer_known": float((answers[name] == answers["reduced"])[known].mean()),
        }
        rows.append(row | accuracies)
    save("decoding", rows, run=chosen.run.name, images=len(test), known=int(known.sum()), shorter=shorter)


def decoded(dataset: Dataset, images: pl.DataFrame, side: int | None) -> Iterator[NDArray[np.uint8]]:
    reader = ImageReader(dataset)
    for shard, offset, length in images.select("shard", "offset", "length").iter_rows():
        yield decode(reader.read(shard, offset, length), min_side=side)


def features(recogniser: Recogniser, dataset: Dataset, images: pl.DataFrame, side: int | None) -> NDArray[np.float32]:
    return recogniser.embed(decoded(dataset, images, side))


def accuracy(classifier: RidgeClassifier, features: NDArray[np.float32], truth: NDArray[Any]) -> float:
    return float((classifier.predict(directions(features)) == truth).mean())


def milliseconds(dataset: Dataset, images: pl.DataFrame, side: int | None) -> float:
    began = time.process_time()
    for _ in decoded(dataset, images, side):
        pass
    return 1000 * (time.process_time() - began) / len(images)


if __name__ == "__main__":
    main()
