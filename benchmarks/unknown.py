"""What tells the mirror's landmarks from anything else: each score alone, combined, and with remembered unknown images.

    python benchmarks/unknown.py DATA TESTDATA ../shared/weights [--cache FOLDER]

DATA and TESTDATA are datasets (`fetch`, `split`) of the mirror's train and test images. Features of frozen backbones
are computed once and kept in --cache; a head in closed form stands on them. Rules and thresholds are chosen on Public,
and reported on Private. `before`: without the unknown images of Public; `after`: remembering them. `of_other_images` is
what passes of Private's others at the threshold that keeps 95 % of Public's landmarks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from learn import features_of
from results import keep
from scipy.special import softmax

from landmarks.dataset.manifest import NO_LABEL, Dataset, open_dataset
from landmarks.evaluation.unknown import compare_rules, halves_of, rules_of
from landmarks.models.network import build_network
from landmarks.models.rewriting import folded
from landmarks.recognition.directions import directions
from landmarks.recognition.gallery import make_gallery, rejection_scores, with_unknown_images
from landmarks.recognition.unknown_images import UnknownImages
from landmarks.training.discriminant import discriminant_of, least_loss_scale, moments_of

NETWORKS = {"tf_efficientnet_lite0": 192, "tf_efficientnet_lite2": 224, "mobilenetv2_100": 160}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--cache", type=Path, default=Path())
    chosen = parser.parse_args()
    data, test = open_dataset(chosen.data), open_dataset(chosen.test)
    rows = []
    for name, size in NETWORKS.items():
        path = chosen.cache / f"{name}-{size}.npz"
        if not path.exists():
            weights = chosen.weights / f"{name}.safetensors"
            network = folded(build_network(name, classes=25, weights=weights, image_size=size))
            np.savez(path, gap=np.concatenate([features_of(network, one) for one in (data, test)]))
        features = np.load(path)["gap"].astype(np.float32)
        rows += measured(name, data, test, features[: len(data.images)], features[len(data.images) :])
    keep("unknown", rows)


def measured(
    name: str, data: Dataset, test: Dataset, features: np.ndarray, asked: np.ndarray
) -> list[dict[str, object]]:
    images = data.split("all").join(data.splits, on="image_id", maintain_order="left")
    label = images["label"].cast(pl.Int64).fill_null(NO_LABEL).to_numpy()
    train, val = (np.flatnonzero((images["split"] == part).to_numpy() & (label >= 0)) for part in ("train", "val"))
    names, table = dict(data.labels.select("landmark_id", "label").rows()), test.split("all")
    known = np.array([names.get(one, NO_LABEL) >= 0 for one in table["landmark_id"].to_list()])
    x, queries = directions(features), directions(asked)
    solved = discriminant_of(moments_of(x[train], label[train], len(names)))
    logits = solved.scores(queries) / least_loss_scale(solved.scores(x[val]), label[val])
    halves = halves_of(table["usage"].to_numpy(), np.full(len(table), -1))
    gallery = make_gallery(x[train].astype(np.float16), label[train], "")
    strangers = np.flatnonzero(halves.chosen & ~known)
    unknown = UnknownImages(queries[strangers].astype(np.float16), tuple(map(str, strangers)))
    itself = unknown.places_of(list(map(str, range(len(asked)))))
    rows: list[dict[str, object]] = []
    for when, remembering in (("before", gallery), ("after", with_unknown_images(gallery, unknown))):
        scores = {"msp": softmax(logits, axis=1).max(axis=1).astype(np.float32)}
        scores |= rejection_scores(asked, logits.astype(np.float32), remembering, itself)
        for row in compare_rules(rules_of(scores, known, halves), scores, known, halves):
            if when == "before" or row["score"] in ("knn_unknown", "contrast", "combined"):
                told = {"backbone": name, "unknown_images": when, "score": row["score"], "auroc": row["auroc"]}
                rows.append(told | {"kept": 1 - row["lost"], "of_other_images": 1 - row["rejected"]})
    return rows


if __name__ == "__main__":
    main()
