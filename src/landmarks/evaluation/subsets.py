"""The verb `subsets`: how accuracy varies with which landmarks are drawn, from features, in seconds.

A study that draws its landmarks once reports one number of this distribution. The classifier is a ridge regression in
closed form on the same features for every draw, so that what varies is the draw alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.evaluation.audit import features_of
from landmarks.evaluation.intervals import group_places
from landmarks.evaluation.predictions import SUFFIX, name_of
from landmarks.evaluation.results import Draws, draws_of
from landmarks.recognition.directions import directions
from landmarks.support.console import note
from landmarks.support.errors import UsageError
from landmarks.support.files import held, read_record, write_record
from landmarks.support.places import Place
from landmarks.support.seeds import generator
from landmarks.training.eligible_images import eligible_images
from landmarks.training.ridge import ridge_scores
from landmarks.training.run import open_run

TEST_SHARE = 1 / 3
"""Share of each landmark's images that answers are judged on."""

DEFINITIONS = {
    "subsets": "Of the landmarks, sets are drawn at random; on each a ridge regression is fitted to two thirds of "
    "every landmark's images and judged on the others, whole groups of near-duplicates on one side; the "
    "accuracies of all draws make the distribution.",
    "accuracies": "The accuracy of each draw.",
    "draws": "Sets of landmarks drawn.",
    "landmarks": "Landmarks in each of them.",
    "of": "Landmarks they are drawn from: those with two groups of images or more.",
    "mean": "Mean of the accuracies.",
    "deviation": "Standard deviation of the accuracies.",
    "smallest": "The smallest of the accuracies.",
    "largest": "The largest of the accuracies.",
    **{f"q{share:02d}": f"The {share}th percentile of the accuracies." for share in (5, 25, 50, 75, 95)},
    "own": "Accuracy of the run itself as it was judged, and how many landmarks it tells apart.",
    "place": "Share of draws whose accuracy is below the run's own; ties count half.",
}


def subset_accuracies(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.integer] | None = None,
    *,
    landmarks: int = 20,
    draws: int = 200,
    images: int | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the accuracy `(draws,)` on as many random sets of `landmarks`, from `features` `(N, C)`, `labels` `(N,)`.

    Whole `groups` `(N,)` (negative: none; without the array each image by itself) are for training or for judging,
    the same in every draw; `images` caps the training images of a landmark. Only landmarks that have both are
    drawn. Raises `UsageError` when there are fewer than are to be drawn.
    """
    out = held_out(labels, groups, seed)
    names = drawable(labels, out)
    if len(names) < 2:
        raise UsageError(
            "too few landmarks to draw from; a landmark is drawn when two groups of near-duplicates or more show it",
            received=f"{len(names)} such of {len(np.unique(labels))}",
            expected="2 or more",
            way_out="name a dataset of more landmarks with --data",
        )
    if not 2 <= landmarks <= len(names):
        raise UsageError("that many landmarks cannot be drawn", received=landmarks, expected=f"2 to {len(names)}")
    order = _shuffled_by_landmark(labels, seed)
    rows_of = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    sides = {int(labels[rows[0]]): (rows[~out[rows]][:images], rows[out[rows]]) for rows in rows_of}
    accuracies = np.empty(draws)
    for draw in range(draws):
        chosen = generator(seed, "draw", draw).choice(len(names), size=landmarks, replace=False)
        drawn = [sides[int(label)] for label in names[chosen]]
        accuracies[draw] = _accuracy(features, [train for train, _ in drawn], [test for _, test in drawn])
    return accuracies


def held_out(
    labels: NDArray[np.integer], groups: NDArray[np.integer] | None = None, seed: int = 0
) -> NDArray[np.bool_]:
    """Return `(N,)` which images answers are judged on: `TEST_SHARE` of each landmark's, in whole groups.

    Of a landmark whose groups are all larger than that, it is the smallest one that no other landmark needs.
    """
    order = _shuffled_by_landmark(labels, seed)
    group = group_places(groups, len(labels))
    out = np.zeros(int(group.max(initial=-1)) + 1, dtype=bool)
    decided = np.zeros_like(out)  # by a landmark before, where a group shows several
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []:
        mine, first, sizes = np.unique(group[rows], return_index=True, return_counts=True)
        mine, sizes = mine[np.argsort(first)], sizes[np.argsort(first)]
        free = ~decided[mine]
        room = max(1, round(len(rows) * TEST_SHARE)) - int(sizes[out[mine] & ~free].sum())
        for one, size in zip(mine[free], sizes[free], strict=True):
            if size <= room:
                out[one], room = True, room - size
        if not out[mine].any() and free.any():
            out[mine[free][np.argmin(sizes[free])]] = True
        if out[mine].all() and free.any():  # nothing to learn from: as good as nothing to be judged on
            out[mine[free][np.argmax(sizes[free])]] = False
        decided[mine] = True
    return out[group]


def drawable(labels: NDArray[np.integer], out: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Return the labels, sorted, that have images on both sides of `held_out`."""
    return np.intersect1d(labels[out], labels[~out])


def learning_curves(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.integer] | None = None,
    *,
    images: Sequence[int] = (1, 2, 5, 10, 20, 50),
    landmarks: Sequence[int] = (5, 10, 20, 50, 100, 200),
    at: int = 20,
    draws: int = 20,
    seed: int = 0,
) -> pl.DataFrame:
    """Return how accuracy grows with images per landmark and falls with the number of landmarks.

    Columns `varied` (`images`, at `at` landmarks, or `landmarks`, with all images), `value`, and over `draws`
    sets `mean`, `low`, `high` (the central 90 %). Numbers beyond what there is are left out.
    """
    out = held_out(labels, groups, seed)
    known, most = drawable(labels, out), int(np.unique(labels[~out], return_counts=True)[1].max(initial=0))
    rows = []
    for value in (value for value in images if value <= most and at <= len(known)):
        found = subset_accuracies(features, labels, groups, landmarks=at, draws=draws, images=value, seed=seed)
        rows.append({"varied": "images", "value": value, **_summary(found)})
    for value in (value for value in landmarks if value <= len(known)):
        found = subset_accuracies(features, labels, groups, landmarks=value, draws=draws, seed=seed)
        rows.append({"varied": "landmarks", "value": value, **_summary(found)})
    return pl.DataFrame(rows)


def place_of(accuracy: float, accuracies: NDArray[np.float64]) -> float:
    """Return where one accuracy lies among those of all draws, 0 (below all) to 1."""
    return float(np.mean((accuracies < accuracy) + (accuracies == accuracy) / 2))


def describe(accuracies: NDArray[np.float64]) -> dict[str, Any]:
    """Return a distribution of accuracies as numbers: mean, standard deviation, extremes and quantiles."""
    quantiles = np.quantile(accuracies, [0.05, 0.25, 0.5, 0.75, 0.95])
    return {
        "draws": len(accuracies),
        "mean": float(accuracies.mean()),
        "deviation": float(accuracies.std(ddof=1)) if len(accuracies) > 1 else 0.0,
        "smallest": float(accuracies.min()),
        "largest": float(accuracies.max()),
        **{f"q{share:02d}": float(value) for share, value in zip((5, 25, 50, 75, 95), quantiles, strict=True)},
    }


def _summary(accuracies: NDArray[np.float64]) -> dict[str, float]:
    low, high = np.quantile(accuracies, [0.05, 0.95])
    return {"mean": float(accuracies.mean()), "low": float(low), "high": float(high)}


def _shuffled_by_landmark(labels: NDArray[np.integer], seed: int) -> NDArray[np.integer]:
    """Return rows sorted by landmark, shuffled within each."""
    shuffled = generator(seed, "subsets").permutation(len(labels))
    return np.asarray(shuffled[np.argsort(labels[shuffled], kind="stable")])


def _accuracy(
    features: NDArray[np.floating], train: list[NDArray[np.integer]], test: list[NDArray[np.integer]]
) -> float:
    def labels_of(splits: list[NDArray[np.integer]]) -> NDArray[np.integer]:
        return np.repeat(np.arange(len(splits)), [len(split) for split in splits])

    x, asked = features[np.concatenate(train)], features[np.concatenate(test)]
    values = ridge_scores(x.astype(np.float32), labels_of(train), asked.astype(np.float32), len(train))
    return float(np.mean(values.argmax(axis=1) == labels_of(test)))


# Where a run's accuracy lies among many draws from a dataset, all of them on the features of the run's backbone.


DRAWS = 200


def subsets(
    run: Place,
    landmarks: int = 20,
    *,
    data: Place | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    device: str = "auto",
) -> Draws:
    """Return, and write to `metrics/<name>.subsets.json`, how accuracy varies over draws of so many `landmarks`.

    They are drawn from the landmarks with two groups of training images or more of the run's dataset, or of `data`
    (whole when it has no splits). A backbone that was fine-tuned knows its own training images: draws from them are
    too good, and among those of `data` they and their changed copies are left out; of one that was not they are kept.
    Where the run has been judged already, the record says where its own accuracy lies among the draws; that compares
    only if it tells as many landmarks apart. Raises `UsageError` when there are fewer than are to be drawn.
    """
    opened = open_run(run)
    phase = opened.record.get("best", {}).get("phase")
    untouched = "its backbone was not trained on them" if phase == "head" else ""
    eligible = eligible_images(opened, data, "train", any_landmarks=True, keep_seen=untouched)
    dataset, split = eligible.dataset, eligible.split
    if eligible.own and phase == "finetune":
        note(f"{opened.name} was fine-tuned on the very images that are drawn from: its draws are too good")
    images, features = features_of(opened, dataset, split, device)
    unseen = images["image_id"].is_in(eligible.images["image_id"].implode()).to_numpy()
    images, features = images.filter(pl.Series(unseen)), features[unseen]
    labels = images["label"].cast(pl.Int64).to_numpy()
    groups = images["group"].cast(pl.Int64).fill_null(-1).to_numpy()
    accuracies = subset_accuracies(directions(features), labels, groups, landmarks=landmarks, draws=draws, seed=seed)
    name = name_of(opened, eligible, "all" if split == "all" else "test")
    numbers: dict[str, Any] = {
        "name": name,
        "data": str(dataset.folder.resolve()),
        "split": split,
        "own_data": eligible.own,
        "seen": eligible.record()["seen"],
        "landmarks": landmarks,
        "of": len(drawable(labels, held_out(labels, groups, seed))),
        **describe(accuracies),
        "own": _own(opened.folder / "metrics" / f"{name}.json", len(opened.labels)),
        "seed": seed,
        "accuracies": accuracies.tolist(),
        "definitions": {},
    }
    if numbers["own"] is not None:
        numbers["own"]["place"] = place_of(numbers["own"]["accuracy"], accuracies)
    told = {"subsets", "place"} if numbers["own"] is not None else {"subsets"}
    there = told | {name for name, value in numbers.items() if value is not None}
    numbers["definitions"] = {name: text for name, text in DEFINITIONS.items() if name in there}
    with held(opened.folder):
        write_record(opened.folder / "metrics" / f"{name}{SUFFIX}", numbers, verb="subsets", inputs=dataset.digest)
    return draws_of(numbers)


def _own(metrics: Path, landmarks: int) -> dict[str, Any] | None:
    """Return the accuracy the run was judged to have, and how many landmarks it tells apart; None before that."""
    if not metrics.exists():
        return None
    accuracy = read_record(metrics)["top1"]["value"]
    return None if accuracy is None else {"accuracy": accuracy, "landmarks": landmarks}
