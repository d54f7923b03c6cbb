"""How lucky is a draw of 20 landmarks? Accuracy over many draws, from features, in seconds.

A study that draws its landmarks once reports one number of this distribution. The classifier is a ridge regression in
closed form on the same features for every draw, so that what varies is the draw alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.evaluation.closed_form import ridge_scores
from landmarks.evaluation.intervals import group_places
from landmarks.support.errors import UsageError
from landmarks.support.seeds import generator

TEST_SHARE = 1 / 3
"""Share of each landmark's photographs that answers are judged on."""

DEFINITIONS = {
    "lottery": "Of the landmarks, sets are drawn at random; on each a ridge regression is fitted to two thirds of "
    "every landmark's photographs and judged on the others, whole groups of near-duplicates on one side; the "
    "accuracies of all draws make the distribution.",
    "accuracies": "The accuracy of each draw.",
    "draws": "Sets of landmarks drawn.",
    "landmarks": "Landmarks in each of them.",
    "of": "Landmarks they are drawn from: those with two groups of photographs or more.",
    "mean": "Mean of the accuracies.",
    "deviation": "Standard deviation of the accuracies.",
    "smallest": "The smallest of the accuracies.",
    "largest": "The largest of the accuracies.",
    **{f"q{share:02d}": f"The {share}th percentile of the accuracies." for share in (5, 25, 50, 75, 95)},
    "own": "Accuracy of the run itself as it was judged, and how many landmarks it tells apart.",
    "place": "Share of draws whose accuracy is below the run's own; ties count half.",
}


def lottery(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.integer] | None = None,
    *,
    landmarks: int = 20,
    draws: int = 200,
    photographs: int | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the accuracy `(draws,)` on as many random sets of `landmarks`, from `features` `(N, C)`, `labels` `(N,)`.

    Whole `groups` `(N,)` (negative: none; without the array each photograph by itself) are for training or for judging,
    the same in every draw; `photographs` caps the training photographs of a landmark. Only landmarks that have both are
    drawn. Raises `UsageError` when there are fewer than are to be drawn.
    """
    out = held_out(labels, groups, seed)
    names = drawable(labels, out)
    if not 2 <= landmarks <= len(names):
        raise UsageError("that many landmarks cannot be drawn", received=landmarks, expected=f"2 to {len(names)}")
    order = _shuffled_by_landmark(labels, seed)
    rows_of = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    sides = {int(labels[rows[0]]): (rows[~out[rows]][:photographs], rows[out[rows]]) for rows in rows_of}
    accuracies = np.empty(draws)
    for draw in range(draws):
        chosen = generator(seed, "draw", draw).choice(len(names), size=landmarks, replace=False)
        drawn = [sides[int(label)] for label in names[chosen]]
        accuracies[draw] = _accuracy(features, [train for train, _ in drawn], [test for _, test in drawn])
    return accuracies


def held_out(
    labels: NDArray[np.integer], groups: NDArray[np.integer] | None = None, seed: int = 0
) -> NDArray[np.bool_]:
    """Return `(N,)` which photographs answers are judged on: `TEST_SHARE` of each landmark's, in whole groups.

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
    """Return the labels, sorted, that have photographs on both sides of `held_out`."""
    return np.intersect1d(labels[out], labels[~out])


def learning_curves(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.integer] | None = None,
    *,
    photographs: Sequence[int] = (1, 2, 5, 10, 20, 50),
    landmarks: Sequence[int] = (5, 10, 20, 50, 100, 200),
    at: int = 20,
    draws: int = 20,
    seed: int = 0,
) -> pl.DataFrame:
    """Return how accuracy grows with photographs per landmark and falls with the number of landmarks.

    Columns `varied` (`photographs`, at `at` landmarks, or `landmarks`, with all photographs), `value`, and over `draws`
    sets `mean`, `low`, `high` (the central 90 %). Numbers beyond what there is are left out.
    """
    out = held_out(labels, groups, seed)
    known, most = drawable(labels, out), int(np.unique(labels[~out], return_counts=True)[1].max(initial=0))
    rows = []
    for value in (value for value in photographs if value <= most and at <= len(known)):
        found = lottery(features, labels, groups, landmarks=at, draws=draws, photographs=value, seed=seed)
        rows.append({"varied": "photographs", "value": value, **_summary(found)})
    for value in (value for value in landmarks if value <= len(known)):
        found = lottery(features, labels, groups, landmarks=value, draws=draws, seed=seed)
        rows.append({"varied": "landmarks", "value": value, **_summary(found)})
    return pl.DataFrame(rows)


def place_of(accuracy: float, accuracies: NDArray[np.float64]) -> float:
    """Return where one accuracy lies among those of all draws, 0 (the unluckiest) to 1."""
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
    shuffled = generator(seed, "lottery").permutation(len(labels))
    return np.asarray(shuffled[np.argsort(labels[shuffled], kind="stable")])


def _accuracy(
    features: NDArray[np.floating], train: list[NDArray[np.integer]], test: list[NDArray[np.integer]]
) -> float:
    def labels_of(parts: list[NDArray[np.integer]]) -> NDArray[np.integer]:
        return np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    x, asked = features[np.concatenate(train)], features[np.concatenate(test)]
    values = ridge_scores(x.astype(np.float32), labels_of(train), asked.astype(np.float32), len(train))
    return float(np.mean(values.argmax(axis=1) == labels_of(test)))
