"""Scores for known against unknown images of the mirror: each one alone, combined, and with remembered unknown images.

    python benchmarks/unknown.py DATA TESTDATA ../shared/weights [--cache FOLDER]

DATA and TESTDATA are datasets (`fetch`, `split`) of the mirror's train and test images. Features of frozen backbones
are computed once and kept in --cache, below a head in closed form. Rules and thresholds are chosen on Public and
reported on Private images: `before` without the unknown images of Public in the gallery, `after` with them.
`of_other_images` is the share of unknown Private images that pass the threshold that keeps 95 % of the known Public
ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from learn import features_of
from results import save
from scipy.special import log_softmax, softmax

from landmarks.dataset.manifest import NO_LABEL, Dataset, open_dataset
from landmarks.evaluation.measure import candidate_rules, compare_rules, threshold_parts
from landmarks.evaluation.metrics import Truth, global_average_precision
from landmarks.models.network import build_network
from landmarks.models.rewriting import fold_batch_norm
from landmarks.recognition.closed_form import memory_of
from landmarks.recognition.gallery import (
    NEIGHBOURS,
    WARMTH,
    Gallery,
    UnknownImages,
    make_gallery,
    rejection_scores,
    with_unknown_images,
)
from landmarks.recognition.learned import Learned
from landmarks.recognition.vectors import directions
from landmarks.training.discriminant import Validation, class_moments, discriminant_of, fitted_scale

NETWORKS = (
    ("tf_efficientnet_lite0", 192, False),
    ("tf_efficientnet_lite2", 224, False),
    ("mobilenetv2_100", 160, False),
    ("tf_efficientnet_lite2+tf_efficientnet_lite0", 224, False),
    ("tf_efficientnet_lite2+tf_efficientnet_lite0+mobilenetv2_100", 224, False),
    ("tf_efficientnet_lite2", 224, True),
    ("tf_efficientnet_lite2+tf_efficientnet_lite0", 224, True),
    ("tf_efficientnet_lite2+tf_efficientnet_lite0+mobilenetv2_100", 224, True),
)
"""Backbone, side of its images in pixels, and whether features are averaged over an image and its flip."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--cache", type=Path, default=Path())
    chosen = parser.parse_args()
    data, test = open_dataset(chosen.data), open_dataset(chosen.test)
    rows, answer_rows = [], []
    for name, size, flip in NETWORKS:
        path = chosen.cache / f"{name}-{size}{'-flip' if flip else ''}.npz"
        if not path.exists():
            network = build_network(name, classes=25, weights=chosen.weights, image_size=size, average_flip=flip)
            network = fold_batch_norm(network)
            np.savez(path, gap=np.concatenate([features_of(network, dataset) for dataset in (data, test)]))
        features = np.load(path)["gap"].astype(np.float32)
        for found, measure in ((rows, measured), (answer_rows, answers)):
            own = measure(name, data, test, features[: len(data.images)], features[len(data.images) :])
            found += [{"backbone": name, "average_flip": flip, **row} for row in own]
    save("unknown", rows, answers=answer_rows)
    for row in answer_rows:
        print(row)


def measured(
    name: str, data: Dataset, test: Dataset, features: np.ndarray, test_features: np.ndarray
) -> list[dict[str, object]]:
    images = data.split("all").join(data.splits, on="image_id", maintain_order="left")
    label = images["label"].cast(pl.Int64).fill_null(NO_LABEL).to_numpy()
    train, val = (np.flatnonzero((images["split"] == name).to_numpy() & (label >= 0)) for name in ("train", "val"))
    names, table = dict(data.labels.select("landmark_id", "label").rows()), test.split("all")
    known = np.array([names.get(landmark, NO_LABEL) >= 0 for landmark in table["landmark_id"].to_list()])
    x, queries = directions(features), directions(test_features)
    solved = discriminant_of(class_moments(x[train], label[train], len(names)))
    logits = solved.scores(queries) / fitted_scale(solved.scores(x[val]), label[val])
    parts = threshold_parts(table["usage"].to_numpy(), np.full(len(table), -1))
    gallery = make_gallery(x[train].astype(np.float16), label[train], "")
    strangers = np.flatnonzero(parts.chosen & ~known)
    unknown = UnknownImages(queries[strangers].astype(np.float16), tuple(map(str, strangers)))
    itself = unknown.places_of(list(map(str, range(len(test_features)))))
    rows: list[dict[str, object]] = []
    for when, remembering in (("before", gallery), ("after", with_unknown_images(gallery, unknown))):
        scores = {"msp": softmax(logits, axis=1).max(axis=1).astype(np.float32)}
        scores |= rejection_scores(test_features, logits.astype(np.float32), remembering, itself)
        for row in compare_rules(candidate_rules(scores, known, parts), scores, known, parts):
            if when == "before" or row["score"] in ("knn_unknown", "contrast", "combined"):
                common = {"backbone": name, "unknown_images": when, "score": row["score"], "auroc": row["auroc"]}
                rows.append(common | {"kept": 1 - row["lost"], "of_other_images": 1 - row["rejected"]})
    return rows


def answers(
    name: str, data: Dataset, test: Dataset, features: np.ndarray, test_features: np.ndarray
) -> list[dict[str, object]]:
    """Return accuracy on the test set by classifier, neighbours and both, and their GAP on Private images.

    GAP is computed with the answers' own scores, and with the best rule on Public with unknown images remembered.
    """
    images = data.split("all").join(data.splits, on="image_id", maintain_order="left")
    label = images["label"].cast(pl.Int64).fill_null(NO_LABEL).to_numpy()
    train, val = (np.flatnonzero((images["split"] == name).to_numpy() & (label >= 0)) for name in ("train", "val"))
    names, table = dict(data.labels.select("landmark_id", "label").rows()), test.split("all")
    truth = np.array([names.get(landmark, NO_LABEL) for landmark in table["landmark_id"].to_list()])
    known, public = truth >= 0, (table["usage"] == "Public").to_numpy()
    x, queries = directions(features), directions(test_features)
    moments = class_moments(x[train], label[train], len(names))
    logs = np.zeros((len(val), len(names)), dtype=np.float16)
    closed = memory_of(moments, Validation(x[val], label[val], logs), x[train], label[train]).with_learned(Learned())
    gallery = make_gallery(x[train].astype(np.float16), label[train], "")
    strangers = np.flatnonzero(public & ~known)
    unknown = UnknownImages(queries[strangers].astype(np.float16), tuple(map(str, strangers)))
    itself = unknown.places_of(list(map(str, range(len(test_features)))))
    logits = closed.discriminant.scores(queries) * closed.weights.discriminant
    compared = rejection_scores(test_features, logits.astype(np.float32), with_unknown_images(gallery, unknown), itself)
    parts = threshold_parts(table["usage"].to_numpy(), np.full(len(table), -1))
    rule = candidate_rules(compared, known, parts)[0][0].apply(compared)
    ids, rows = table["image_id"].to_numpy(), np.flatnonzero(known)
    shows = Truth(rows, truth[rows], len(truth)).subset(~public)
    result = []
    for by, score in (
        ("classifier", lambda images: closed.discriminant.scores(images) * closed.weights.discriminant),
        ("neighbours", lambda images: votes(images, gallery, len(names))),
        ("both", closed.scores),
    ):
        scores = score(queries)
        best, right = scores.argmax(1), score(x[val]).argmax(1) == label[val]
        own = log_softmax(scores, axis=1).max(axis=1) if by != "neighbours" else scores.max(axis=1)
        row = {"backbone": name, "by": by, "validation": float(right.mean())}
        row |= {"test": float((best == truth)[known].mean())}
        for ranked, values in (("own score", own), ("rule", rule)):
            gap = global_average_precision(ids[~public], best[~public], values[~public].astype(np.float64), shows)
            row[f"gap by {ranked}"] = float(gap)
        result.append(row)
    return result


def votes(queries: np.ndarray, gallery: Gallery, classes: int) -> np.ndarray:
    """Return the logarithms (N, classes) of the votes of the ten nearest training images, as `knn` weighs them."""
    cosines, places = gallery.index.search(queries, NEIGHBOURS)
    found = np.zeros((len(queries), classes))
    for column in range(NEIGHBOURS):
        weights = np.exp((cosines[:, column] - 1) / WARMTH)
        np.add.at(found, (np.arange(len(queries)), gallery.labels[places[:, column]]), weights)
    return np.log(np.maximum(found, 1e-30))


if __name__ == "__main__":
    main()
