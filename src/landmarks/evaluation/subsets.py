"""The verb `subsets`: how accuracy varies with the landmarks that are drawn, computed from features in seconds.

A study that draws its landmarks once reports one number of this distribution. Every draw uses the same classifier, a
ridge regression in closed form, on the same features, so that nothing varies but the landmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.evaluation.audit import split_features
from landmarks.evaluation.intervals import group_places
from landmarks.evaluation.predictions import SUBSETS_SUFFIX, evaluation_name
from landmarks.evaluation.results import Draws, draws_of
from landmarks.recognition.vectors import directions
from landmarks.support.console import note
from landmarks.support.errors import UsageError
from landmarks.support.files import held, read_record, write_record
from landmarks.support.places import Place
from landmarks.support.seeds import generator
from landmarks.training.eligible_images import eligible_images
from landmarks.training.ridge import ridge_scores
from landmarks.training.run import open_run

TEST_SHARE = 1 / 3
"""Share of each landmark's images that are held out for testing."""

DEFINITIONS = {
    "subsets": "Of the landmarks, sets are drawn at random; on each a ridge regression is fitted to two thirds of "
    "every landmark's images and judged on the others, whole groups of near-duplicates on one side; the "
    "accuracies of all draws make the distribution.",
    "accuracies": "The accuracy of each draw.",
    "draws": "Sets of landmarks drawn.",
    "landmarks": "Landmarks in each of them.",
    "of": "Landmarks they are drawn from: those with two or more groups of images.",
    "mean": "Mean of the accuracies.",
    "deviation": "Standard deviation of the accuracies.",
    "smallest": "The smallest of the accuracies.",
    "largest": "The largest of the accuracies.",
    **{f"q{share:02d}": f"The {share}th percentile of the accuracies." for share in (5, 25, 50, 75, 95)},
    "own": "Accuracy of the run itself in its evaluation, and its number of landmarks.",
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
    """Return the accuracy `(draws,)` on random sets of `landmarks` landmarks each.

    `features` `(N, C)` and `labels` `(N,)` describe the images. Whole `groups` `(N,)` (negative: none) are either for
    training or for testing, the same in every draw; without the array every image is a group of its own. `images` caps
    the training images per landmark. Only landmarks that have both training and test images are drawn.
    Raises `UsageError` when there are fewer of these than `landmarks`.
    """
    out = held_out(labels, groups, seed)
    eligible = eligible_labels(labels, out)
    if len(eligible) < 2:
        raise UsageError(
            "too few landmarks to draw from; a landmark is drawn when two groups of near-duplicates or more show it",
            received=f"{len(eligible)} such of {len(np.unique(labels))}",
            expected="2 or more",
            way_out="name a dataset of more landmarks with --data",
        )
    if not 2 <= landmarks <= len(eligible):
        raise UsageError("that many landmarks cannot be drawn", received=landmarks, expected=f"2 to {len(eligible)}")
    order = _shuffled_by_landmark(labels, seed)
    rows_by_landmark = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    sides = {int(labels[rows[0]]): (rows[~out[rows]][:images], rows[out[rows]]) for rows in rows_by_landmark}
    accuracies = np.empty(draws)
    for draw in range(draws):
        chosen = generator(seed, "draw", draw).choice(len(eligible), size=landmarks, replace=False)
        drawn = [sides[int(label)] for label in eligible[chosen]]
        accuracies[draw] = _accuracy(features, [train for train, _ in drawn], [test for _, test in drawn])
    return accuracies


def held_out(
    labels: NDArray[np.integer], groups: NDArray[np.integer] | None = None, seed: int = 0
) -> NDArray[np.bool_]:
    """Return `(N,)` which images are held out for testing: about `TEST_SHARE` of each landmark's, in whole groups.

    Where all groups of a landmark are larger than that share, its smallest undecided group is held out.
    """
    order = _shuffled_by_landmark(labels, seed)
    group = group_places(groups, len(labels))
    out = np.zeros(int(group.max(initial=-1)) + 1, dtype=bool)
    decided = np.zeros_like(out)  # a group that shows several landmarks is decided by the first of them
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []:
        own, first, sizes = np.unique(group[rows], return_index=True, return_counts=True)
        own, sizes = own[np.argsort(first)], sizes[np.argsort(first)]
        free = ~decided[own]
        room = max(1, round(len(rows) * TEST_SHARE)) - int(sizes[out[own] & ~free].sum())
        for place, size in zip(own[free], sizes[free], strict=True):
            if size <= room:
                out[place], room = True, room - size
        if not out[own].any() and free.any():
            out[own[free][np.argmin(sizes[free])]] = True
        if out[own].all() and free.any():  # without training images a landmark cannot be drawn either
            out[own[free][np.argmax(sizes[free])]] = False
        decided[own] = True
    return out[group]


def eligible_labels(labels: NDArray[np.integer], out: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Return the labels, sorted, that have both training and test images, given what `held_out` returned."""
    return np.intersect1d(labels[out], labels[~out])


def learning_curves(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.integer] | None = None,
    *,
    images: Sequence[int] = (1, 2, 5, 10, 20, 50),
    landmarks: Sequence[int] = (5, 10, 20, 50, 100, 200),
    fixed_landmarks: int = 20,
    draws: int = 20,
    seed: int = 0,
) -> pl.DataFrame:
    """Return how accuracy grows with the images per landmark and falls with the number of landmarks.

    Columns: `varied` (`images`, with `fixed_landmarks` landmarks, or `landmarks`, with all their images), its `value`,
    and the `mean`, `low` and `high` (the central 90 %) over `draws` sets. Values larger than the data allow are left
    out.
    """
    out = held_out(labels, groups, seed)
    drawable = len(eligible_labels(labels, out))
    most_images = int(np.unique(labels[~out], return_counts=True)[1].max(initial=0))
    rows = []
    for value in (value for value in images if value <= most_images and fixed_landmarks <= drawable):
        accuracies = subset_accuracies(
            features, labels, groups, landmarks=fixed_landmarks, draws=draws, images=value, seed=seed
        )
        rows.append({"varied": "images", "value": value, **_summary(accuracies)})
    for value in (value for value in landmarks if value <= drawable):
        accuracies = subset_accuracies(features, labels, groups, landmarks=value, draws=draws, seed=seed)
        rows.append({"varied": "landmarks", "value": value, **_summary(accuracies)})
    return pl.DataFrame(rows)


def percentile_rank(accuracy: float, accuracies: NDArray[np.float64]) -> float:
    """Return the share of `accuracies` below `accuracy`, 0 to 1; equal ones count half."""
    return float(np.mean((accuracies < accuracy) + (accuracies == accuracy) / 2))


def distribution(accuracies: NDArray[np.float64]) -> dict[str, Any]:
    """Return the number, mean, standard deviation, extremes and quantiles of `accuracies`."""
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
    """Return the test accuracy of a ridge regression, given the rows of each landmark for training and testing."""

    def labels_of(rows_by_landmark: list[NDArray[np.integer]]) -> NDArray[np.integer]:
        return np.repeat(np.arange(len(rows_by_landmark)), [len(rows) for rows in rows_by_landmark])

    fitted, tested = features[np.concatenate(train)], features[np.concatenate(test)]
    values = ridge_scores(fitted.astype(np.float32), labels_of(train), tested.astype(np.float32), len(train))
    return float(np.mean(values.argmax(axis=1) == labels_of(test)))


# A run's accuracy among many draws from a dataset, all on the features of the run's backbone.


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
    """Return how accuracy varies over draws of `landmarks` landmarks, and write it to `metrics/<name>.subsets.json`.

    The draws come from the training images of the run's dataset, or of `data` (from all its images when it has no
    splits); a landmark can be drawn when two groups or more show it. A fine-tuned backbone has seen its training
    images, so draws from them are too good: those that are in `data` too are left out, and changed copies of them. For
    a backbone that was not fine-tuned they are kept.
    If the run has been evaluated, the record holds its own accuracy and its place among the draws; they are comparable
    only if the run has as many landmarks as a draw.
    Raises `UsageError` when fewer landmarks than `landmarks` can be drawn.
    """
    opened = open_run(run)
    phase = opened.record.get("best", {}).get("phase")
    reason_to_keep = "its backbone was not trained on them" if phase == "head" else ""
    eligible = eligible_images(opened, data, "train", any_landmarks=True, keep_seen=reason_to_keep)
    dataset, split = eligible.dataset, eligible.split
    if eligible.own and phase == "finetune":
        note(f"{opened.name} was fine-tuned on the very images that are drawn from: its draws are too good")
    images, features = split_features(opened, dataset, split, device)
    unseen = images["image_id"].is_in(eligible.images["image_id"].implode()).to_numpy()
    images, features = images.filter(pl.Series(unseen)), features[unseen]
    labels = images["label"].cast(pl.Int64).to_numpy()
    groups = images["group"].cast(pl.Int64).fill_null(-1).to_numpy()
    accuracies = subset_accuracies(directions(features), labels, groups, landmarks=landmarks, draws=draws, seed=seed)
    name = evaluation_name(opened, eligible, "all" if split == "all" else "test")
    numbers: dict[str, Any] = {
        "name": name,
        "data": str(dataset.folder.resolve()),
        "split": split,
        "own_data": eligible.own,
        "seen": eligible.record()["seen"],
        "landmarks": landmarks,
        "of": len(eligible_labels(labels, held_out(labels, groups, seed))),
        **distribution(accuracies),
        "own": _own_accuracy(opened.folder / "metrics" / f"{name}.json", len(opened.labels)),
        "seed": seed,
        "accuracies": accuracies.tolist(),
        "definitions": {},
    }
    if numbers["own"] is not None:
        numbers["own"]["place"] = percentile_rank(numbers["own"]["accuracy"], accuracies)
    present = {"subsets"} | {name for name, value in numbers.items() if value is not None}
    if numbers["own"] is not None:
        present.add("place")
    numbers["definitions"] = {name: text for name, text in DEFINITIONS.items() if name in present}
    path = opened.folder / "metrics" / f"{name}{SUBSETS_SUFFIX}"
    with held(opened.folder):
        write_record(path, numbers, verb="subsets", inputs=dataset.digest)
    return draws_of(numbers)


def _own_accuracy(metrics: Path, landmarks: int) -> dict[str, Any] | None:
    """Return the run's evaluated accuracy and its number of landmarks; None before it has been evaluated."""
    if not metrics.exists():
        return None
    accuracy = read_record(metrics)["top1"]["value"]
    return None if accuracy is None else {"accuracy": accuracy, "landmarks": landmarks}
