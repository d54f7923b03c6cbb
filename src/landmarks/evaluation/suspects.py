"""Which labels are likely wrong? Photographs whose features speak for another landmark, and twins with two labels.

Five-fold cross-validation over whole groups gives each photograph the mean of two estimates, a ridge regression and
the votes of its ten nearest photographs, none of its own group; it is suspect when another landmark is likelier than
the given one by at least `MARGIN` of how likely that other landmark is, on average, for its own photographs (after
confident learning, Northcutt et al., JAIR 2021, with a margin in place of a probability). Twins are two photographs of
different landmarks whose perceptual hashes differ in at most `TWIN_BITS` of 64 bits.

A check never changes or deletes anything: it writes a sheet to look at, and a CSV with an empty column for a person's
decision, which `split` takes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.groups import NO_HASH
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.neighbours import near_pairs
from landmarks.evaluation.closed_form import fitted_ridge
from landmarks.evaluation.intervals import group_places
from landmarks.evaluation.metrics import Flags, Floats, Integers
from landmarks.evaluation.rejection import NEIGHBOURS, WARMTH, directions
from landmarks.evaluation.sheet import write_sheet
from landmarks.evaluation.trunk import features_of
from landmarks.support.console import note
from landmarks.support.errors import UsageError
from landmarks.support.files import written_whole
from landmarks.support.seeds import generator
from landmarks.training.features import Rows
from landmarks.training.own_data import find_own
from landmarks.training.ridge import Ridge, rows_at_once
from landmarks.training.run import Run, open_run
from landmarks.training.seen import sightings

FOLDS = 5

COMPARED = 8192
"""Photographs that others are compared with at a time."""

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
    are not listed again. What the run was trained on is checked like anything else, with a note. The features are those
    of the run's trunk, from the cache where they are there. A trunk that was fine-tuned on wrong labels has learned
    some of them: a run that stopped after the warm-up sees more.
    """
    out = Path(out)
    sheet = out.with_suffix(".jpg")
    if sheet == out:
        raise UsageError(f"{out} is to hold a table", expected="a name that ends in .csv")
    opened = open_run(run)
    dataset = find_own(opened) if data is None else open_dataset(data)
    photos, features = features_of(opened, dataset, part, device)
    _tell_seen(opened, photos)
    labels = photos["label"].cast(pl.Int64).to_numpy()
    groups = photos["group"].cast(pl.Int64).fill_null(-1).to_numpy()
    estimates = cross_validated(directions(features), labels, groups, len(dataset.labels))
    suspect, suspicion = disagreements(estimates, labels)
    rows = pl.DataFrame(
        {
            "id": photos["id"],
            "label": labels,
            "suggested": estimates.likeliest,
            "probability": estimates.highest,
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


def _tell_seen(run: Run, photos: pl.DataFrame) -> None:
    """Say how many of `photos` a fine-tuned run has seen: to check labels that is no harm, but it hides some."""
    seen = run.seen
    found = 0 if seen is None else len(sightings(photos, seen))
    if found and (run.record.get("best") or {}).get("phase") == "finetune":
        note(
            f"{found} of the {len(photos)} photographs checked are ones that {run.name} was fine-tuned on or validated "
            "with: their labels can be checked all the same, but it has learned some of the wrong ones"
        )


def _named(rows: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Return `rows` in the columns of `SUSPECTS`."""
    names = dataset.labels.select("label", "landmark_id", "name").cast({"label": pl.Int64})
    suggested = names.rename(lambda name: "suggested_" + name)
    joined = rows.join(names, on="label", how="left", maintain_order="left").join(
        suggested, left_on="suggested", right_on="suggested_label", how="left", maintain_order="left"
    )
    joined = joined.with_columns(correct_landmark_id=pl.lit(""))
    return joined.select(pl.col(name).cast(kind) for name, kind in SUSPECTS.items())


@dataclass(frozen=True)
class Estimates:
    """What each of N photographs shows, estimated without its group."""

    own: Floats  # (N,) probability of the label it has
    highest: Floats  # (N,) of the likeliest label
    likeliest: Integers  # (N,)


@dataclass(frozen=True)
class _Votes:
    """The labels of each photograph's nearest ones, its own last, and their shares of all votes; the rest have `rest`.

    A label that stands there twice has the same share both times.
    """

    labels: Integers  # (N, M)
    shares: Floats  # (N, M)
    rest: Floats  # (N,)


def cross_validated(
    photos: NDArray[np.float32], labels: Integers, groups: Integers, classes: int, seed: int = 0
) -> Estimates:
    """Return what `photos` `(N, C)` show, each estimated without the photographs of its group.

    A label's probability is the mean of a ridge regression's softmax, fitted on the other folds, and of its share of
    the votes of the nearest photographs of other groups. Of all `classes` only the likeliest is kept, and a label that
    nobody votes for can only be that if it is the regression's: nothing is held for photographs × landmarks.
    """
    places = group_places(groups, len(labels))
    fold = generator(seed, "suspects").permutation(int(places.max(initial=-1)) + 1)[places] % FOLDS
    votes = _votes(photos, labels, places, classes)
    estimates = Estimates(np.empty(len(labels)), np.empty(len(labels)), np.empty(len(labels), np.int64))
    for number in range(FOLDS):
        inside, others = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        ridge = fitted_ridge(Rows(photos, others), labels[others], classes)
        softmax = _softmax(ridge, photos, inside, votes.labels)
        shown = np.hstack([votes.labels[inside], softmax.top[:, None]])
        voted = np.hstack([votes.shares[inside], votes.rest[inside, None]])
        same = shown[:, :-1] == shown[:, -1:]  # the regression's label may have votes, too
        voted[:, -1] = np.where(same.any(axis=1), (same * votes.shares[inside]).max(axis=1), voted[:, -1])
        probabilities = (np.hstack([softmax.shares, softmax.top_share[:, None]]) + voted) / 2
        highest = probabilities.max(axis=1)
        likeliest = np.where(probabilities == highest[:, None], shown, classes).min(axis=1)
        estimates.own[inside], estimates.highest[inside] = probabilities[:, -2], highest
        estimates.likeliest[inside] = likeliest
    return estimates


def disagreements(estimates: Estimates, labels: Integers) -> tuple[Flags, Floats]:
    """Return which labels are suspect, and how much, each `(N,)`."""
    classes = 1 + int(max(labels.max(initial=-1), estimates.likeliest.max(initial=-1)))
    counts = np.bincount(labels, minlength=classes)
    usual = np.bincount(labels, weights=estimates.own, minlength=classes) / np.maximum(counts, 1)
    suspicion = estimates.highest - estimates.own
    suspect = (estimates.likeliest != labels) & (suspicion >= MARGIN * usual[estimates.likeliest])
    return suspect, suspicion


@dataclass(frozen=True)
class _Softmax:
    """A regression's probabilities of some labels of each of R photographs, and of the label that has the largest."""

    shares: Floats  # (R, M)
    top: Integers  # (R,)
    top_share: Floats  # (R,)


def _softmax(ridge: Ridge, photos: NDArray[np.float32], rows: Integers, asked: Integers) -> _Softmax:
    """Return the softmax over all labels for `rows` of `photos`, at the labels `asked` `(N, M)`; a block at a time."""
    largest, total = np.full(len(rows), -np.inf), np.zeros(len(rows))
    top, found = np.zeros(len(rows), np.int64), np.zeros((len(rows), asked.shape[1]))
    step = rows_at_once(photos.shape[1])
    for first, last in ridge.blocks():
        weights = ridge.weights(first, last)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            values = SHARPNESS * ridge.values(photos[rows[part]], weights, first)
            highest = values.max(axis=1)
            top[part] = np.where(highest > largest[part], first + values.argmax(axis=1), top[part])
            raised = np.maximum(highest, largest[part])
            total[part] = total[part] * np.exp(largest[part] - raised)
            total[part] += np.exp(values - raised[:, None]).sum(axis=1)
            largest[part] = raised
            labels = asked[rows[part]]
            row, column = np.nonzero((labels >= first) & (labels < last))
            found[start + row, column] = values[row, labels[row, column] - first]
    return _Softmax(np.exp(found - largest[:, None]) / total[:, None], top, 1 / total)


def _votes(photos: NDArray[np.float32], labels: Integers, places: Integers, classes: int) -> _Votes:
    """Return the votes of the `NEIGHBOURS` photographs that are nearest to each and not of its group."""
    cosines, nearest = _nearest_others(photos, places)
    weights = np.exp((cosines - 1) / WARMTH).astype(np.float64)
    shown = np.hstack([labels[nearest], labels[:, None]])
    votes = np.full(shown.shape, 1e-6)
    for column in range(nearest.shape[1]):
        votes += (shown == shown[:, column, None]) * weights[:, column, None]
    total = classes * 1e-6 + weights.sum(axis=1)
    return _Votes(shown, votes / total[:, None], 1e-6 / total)


def _nearest_others(photos: NDArray[np.float32], places: Integers) -> tuple[Floats, Integers]:
    """Return the cosines `(N, k)` and positions of the nearest photographs of other groups; -inf where there are less.

    Blocks of photographs are compared with blocks of photographs, and the best are kept.
    """
    k = min(NEIGHBOURS, len(photos))
    cosines, nearest = np.empty((len(photos), k), np.float32), np.empty((len(photos), k), np.int64)
    for start in range(0, len(photos), 512):
        rows = slice(start, min(start + 512, len(photos)))
        best = np.empty((rows.stop - start, 0), np.float32)
        where = np.empty((rows.stop - start, 0), np.int64)
        for first in range(0, len(photos), COMPARED):
            others = slice(first, min(first + COMPARED, len(photos)))
            block = photos[rows] @ photos[others].T
            block[places[rows, None] == places[None, others]] = -np.inf
            best = np.hstack([best, block])
            where = np.hstack([where, np.broadcast_to(np.arange(first, others.stop), block.shape)])
            if best.shape[1] > k:
                kept = np.argpartition(-best, k - 1, axis=1)[:, :k]
                best, where = np.take_along_axis(best, kept, axis=1), np.take_along_axis(where, kept, axis=1)
        cosines[rows], nearest[rows] = best, where
    return cosines, nearest


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
