"""Which labels are likely wrong? Photographs whose features speak for another landmark, and twins with two labels.

A check never changes or deletes anything: it writes a sheet to look at, and a CSV with an empty column for a person's
decision, which `split` takes back.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.groups import NO_HASH
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.neighbours import near_pairs
from landmarks.evaluation.closed_form import ridge_scores
from landmarks.evaluation.intervals import group_places
from landmarks.evaluation.metrics import Flags, Floats, Integers
from landmarks.evaluation.rejection import NEIGHBOURS, WARMTH, directions
from landmarks.evaluation.sheet import write_sheet
from landmarks.evaluation.trunk import features_of
from landmarks.support.errors import UsageError
from landmarks.support.files import written_whole
from landmarks.support.seeds import generator
from landmarks.training.run import open_run

FOLDS = 5

SHARPNESS = 8.0
"""Factor on the ridge regression's values before the softmax: makes its probabilities about as sure as it is right."""

MARGIN = 0.8
"""Of a landmark's usual probability: how far it must be ahead of the given one. Of 3 % falsified labels among 3,582
photographs the list held 83 %, and 73 of 100 on it were falsified (`benchmarks/suspects.py`, mean of three draws); with
less, more are found and more are listed in vain."""

TWIN_BITS = 2
"""Perceptual hashes (64 bits) that differ in at most so many bits are of one picture, whatever their labels say."""

SUSPECTS = {
    "id": pl.String,
    "landmark_id": pl.Int64,  # the label it has
    "name": pl.String,
    "suggested_landmark_id": pl.Int64,
    "suggested_name": pl.String,
    "probability": pl.Float64,  # of the suggested landmark; empty for twins
    "suspicion": pl.Float64,  # probability of the suggested minus that of the given landmark; 1 for twins
    "why": pl.String,
    "correct_landmark_id": pl.String,  # empty: for a person to fill in (an id, "none", or the given one)
}
"""Columns of the CSV, the most suspicious first."""

DEFINITIONS = {
    "suspect": "Five-fold cross-validation over whole groups gives each photograph the mean of two estimates, a ridge "
    "regression and the votes of its ten nearest photographs, none of its own group; it is suspect when another "
    "landmark is likelier than the given one by at least 0.8 of how likely that other landmark is, on average, for its "
    "own photographs (after confident learning, Northcutt et al., JAIR 2021, with a margin in place of a probability).",
    "twin": "Two photographs of different landmarks whose perceptual hashes differ in at most 2 of 64 bits.",
}


def suspects(
    run: Path | str,
    out: Path | str,
    *,
    data: Path | str | None = None,
    part: str = "train",
    device: str = "auto",
) -> pl.DataFrame:
    """Return the likely label errors of a part of the run's dataset (or of `data`), and write them to the CSV `out`.

    Beside it the first of them are shown on a sheet, `out` with the ending `.jpg`. Photographs a person has decided on
    are not listed again. The features are those of the run's trunk, from the cache where they are there. A trunk that
    was fine-tuned on wrong labels has learned some of them: a run that stopped after the warm-up sees more.
    """
    out = Path(out)
    sheet = out.with_suffix(".jpg")
    if sheet == out:
        raise UsageError(f"{out} is to hold a table", expected="a name that ends in .csv")
    opened = open_run(run)
    dataset = open_dataset(opened.record["data"]["folder"] if data is None else data)
    photos, features = features_of(opened, dataset, part, device)
    labels = photos["label"].cast(pl.Int64).to_numpy()
    groups = photos["group"].cast(pl.Int64).fill_null(-1).to_numpy()
    probabilities = cross_validated(directions(features), labels, groups, len(dataset.labels))
    suspect, suggested, suspicion = disagreements(probabilities, labels)
    rows = pl.DataFrame(
        {
            "id": photos["id"],
            "label": labels,
            "suggested": suggested,
            "probability": probabilities.max(axis=1),
            "suspicion": suspicion,
            "why": "its features speak for the other landmark",
        }
    ).filter(pl.Series(suspect))
    table = _named(pl.concat([_twins(photos), rows]).unique(subset=["id"], keep="first", maintain_order=True), dataset)
    table = table.join(dataset.corrections, on="id", how="anti").sort("suspicion", "id", descending=[True, False])
    with written_whole(out) as aside:
        table.write_csv(aside)
    if len(table):
        write_sheet(dataset, table, sheet)
    return table


def _named(rows: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Return `rows` in the columns of `SUSPECTS`."""
    names = dataset.labels.select("label", "landmark_id", "name").cast({"label": pl.Int64})
    suggested = names.rename(lambda name: "suggested_" + name)
    joined = rows.join(names, on="label", how="left", maintain_order="left").join(
        suggested, left_on="suggested", right_on="suggested_label", how="left", maintain_order="left"
    )
    joined = joined.with_columns(correct_landmark_id=pl.lit(""))
    return joined.select(pl.col(name).cast(kind) for name, kind in SUSPECTS.items())


def cross_validated(
    photos: NDArray[np.float32], labels: Integers, groups: Integers, classes: int, seed: int = 0
) -> Floats:
    """Return probabilities `(N, classes)` of `photos` `(N, C)`, each estimated without the photographs of its group.

    The mean of a ridge regression's softmax, fitted on the other folds, and of the votes of the nearest photographs of
    other groups. Memory grows with N · classes.
    """
    places = group_places(groups, len(labels))
    fold = generator(seed, "suspects").permutation(int(places.max(initial=-1)) + 1)[places] % FOLDS
    probabilities = _votes(photos, labels, places, classes)
    for number in range(FOLDS):
        inside = fold == number
        values = SHARPNESS * ridge_scores(photos[~inside], labels[~inside], photos[inside], classes)
        values = np.exp(values - values.max(axis=1, keepdims=True))
        probabilities[inside] += values / values.sum(axis=1, keepdims=True)
    return probabilities / 2


def disagreements(probabilities: Floats, labels: Integers) -> tuple[Flags, Integers, Floats]:
    """Return `(suspect, suggested, suspicion)`, each `(N,)`, of cross-validated `probabilities` `(N, K)`."""
    own = probabilities[np.arange(len(labels)), labels]
    suggested = probabilities.argmax(axis=1)
    highest = probabilities.max(axis=1)
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    usual = np.bincount(labels, weights=own, minlength=len(counts)) / np.maximum(counts, 1)
    suspicion = highest - own
    return (suggested != labels) & (suspicion >= MARGIN * usual[suggested]), suggested, suspicion


def _votes(photos: NDArray[np.float32], labels: Integers, places: Integers, classes: int) -> Floats:
    votes = np.full((len(labels), classes), 1e-6)
    for start in range(0, len(labels), 512):
        rows = np.arange(start, min(start + 512, len(labels)))
        cosines = photos[rows] @ photos.T
        cosines[places[rows][:, None] == places[None, :]] = -np.inf
        nearest = np.argpartition(-cosines, min(NEIGHBOURS, len(labels) - 1), axis=1)[:, :NEIGHBOURS]
        weights = np.exp((np.take_along_axis(cosines, nearest, axis=1) - 1) / WARMTH)
        np.add.at(votes, (rows[:, None], labels[nearest]), weights)
    shares: Floats = votes / votes.sum(axis=1, keepdims=True)
    return shares


def _twins(photos: pl.DataFrame) -> pl.DataFrame:
    """Return both photographs of every pair of twins with two labels, each suggesting the other's."""
    photos = photos.filter(pl.col("phash").fill_null(NO_HASH) != NO_HASH)
    pairs = near_pairs(photos["phash"].to_numpy(), TWIN_BITS)
    first, second = np.concatenate([pairs, pairs[:, ::-1]]).T if len(pairs) else (np.array([], int), np.array([], int))
    both = pl.DataFrame(
        {
            "id": photos["id"].gather(first),
            "label": photos["label"].gather(first).cast(pl.Int64),
            "suggested": photos["label"].gather(second).cast(pl.Int64),
            "probability": pl.Series([None] * len(first), dtype=pl.Float64),
            "suspicion": pl.Series([1.0] * len(first), dtype=pl.Float64),
            "why": "the same picture as " + photos["id"].gather(second),
        }
    )
    return both.filter(pl.col("label") != pl.col("suggested")).unique(subset=["id"], keep="first", maintain_order=True)
