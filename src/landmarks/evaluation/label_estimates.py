"""What a labelled image shows, estimated without its group, and which labels that speaks against.

Five-fold cross-validation over whole groups gives each image the mean of two estimates, a ridge regression and
the votes of its ten nearest images, none of its own group; a label is likely wrong when another landmark is likelier
than the given one by at least `MARGIN` of how likely that other landmark is, on average, for its own images (after
confident learning, Northcutt et al., JAIR 2021, with a margin in place of a probability).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landmarks.evaluation.intervals import group_places
from landmarks.evaluation.metrics import Flags, Floats, Integers
from landmarks.recognition.gallery import NEIGHBOURS, WARMTH
from landmarks.support.seeds import generator
from landmarks.training.features import Rows
from landmarks.training.ridge import Ridge, fitted_ridge, rows_at_once

FOLDS = 5

COMPARED = 8192
"""Images that others are compared with at a time."""

SHARPNESS = 8.0
"""Factor on the ridge regression's values before the softmax: makes its probabilities about as sure as it is right."""

MARGIN = 0.8
"""Of a landmark's usual probability: how far it must be ahead of the given one. Of 3 % falsified labels among 3,582
images the list held 83 %, and 73 of 100 on it were falsified (`benchmarks/label_errors.py`, mean of three draws); with
less, more are found and more are listed in vain."""


@dataclass(frozen=True)
class Estimates:
    """What each of N images shows, estimated without its group."""

    own: Floats  # (N,) probability of the label it has
    highest: Floats  # (N,) of the likeliest label
    likeliest: Integers  # (N,)


@dataclass(frozen=True)
class _Votes:
    """The labels of each image's nearest ones, its own last, and their shares of all votes; the rest have `rest`.

    A label that stands there twice has the same share both times.
    """

    labels: Integers  # (N, M)
    shares: Floats  # (N, M)
    rest: Floats  # (N,)


def cross_validated(
    images: NDArray[np.float32], labels: Integers, groups: Integers, classes: int, seed: int = 0
) -> Estimates:
    """Return what `images` `(N, C)` show, each estimated without the images of its group.

    A label's probability is the mean of a ridge regression's softmax, fitted on the other folds, and of its share of
    the votes of the nearest images of other groups. Of all `classes` only the likeliest is kept, and a label that
    nobody votes for can only be that if it is the regression's: nothing is held for images × landmarks.
    """
    places = group_places(groups, len(labels))
    fold = generator(seed, "audit").permutation(int(places.max(initial=-1)) + 1)[places] % FOLDS
    votes = _votes(images, labels, places, classes)
    estimates = Estimates(np.empty(len(labels)), np.empty(len(labels)), np.empty(len(labels), np.int64))
    for number in range(FOLDS):
        inside, others = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        ridge = fitted_ridge(Rows(images, others), labels[others], classes)
        softmax = _softmax(ridge, images, inside, votes.labels)
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
    """Return which labels are likely wrong, and by what margin another landmark is likelier, each `(N,)`."""
    classes = 1 + int(max(labels.max(initial=-1), estimates.likeliest.max(initial=-1)))
    counts = np.bincount(labels, minlength=classes)
    usual = np.bincount(labels, weights=estimates.own, minlength=classes) / np.maximum(counts, 1)
    margin = estimates.highest - estimates.own
    wrong = (estimates.likeliest != labels) & (margin >= MARGIN * usual[estimates.likeliest])
    return wrong, margin


@dataclass(frozen=True)
class _Softmax:
    """A regression's probabilities of some labels of each of R images, and of the label that has the largest."""

    shares: Floats  # (R, M)
    top: Integers  # (R,)
    top_share: Floats  # (R,)


def _softmax(ridge: Ridge, images: NDArray[np.float32], rows: Integers, asked: Integers) -> _Softmax:
    """Return the softmax over all labels for `rows` of `images`, at the labels `asked` `(N, M)`; a block at a time."""
    largest, total = np.full(len(rows), -np.inf), np.zeros(len(rows))
    top, found = np.zeros(len(rows), np.int64), np.zeros((len(rows), asked.shape[1]))
    step = rows_at_once(images.shape[1])
    for first, last in ridge.blocks():
        weights = ridge.weights(first, last)
        for start in range(0, len(rows), step):
            split = slice(start, start + step)
            values = SHARPNESS * ridge.values(images[rows[split]], weights, first)
            highest = values.max(axis=1)
            top[split] = np.where(highest > largest[split], first + values.argmax(axis=1), top[split])
            raised = np.maximum(highest, largest[split])
            total[split] = total[split] * np.exp(largest[split] - raised)
            total[split] += np.exp(values - raised[:, None]).sum(axis=1)
            largest[split] = raised
            labels = asked[rows[split]]
            row, column = np.nonzero((labels >= first) & (labels < last))
            found[start + row, column] = values[row, labels[row, column] - first]
    return _Softmax(np.exp(found - largest[:, None]) / total[:, None], top, 1 / total)


def _votes(images: NDArray[np.float32], labels: Integers, places: Integers, classes: int) -> _Votes:
    """Return the votes of the `NEIGHBOURS` images that are nearest to each and not of its group."""
    cosines, nearest = nearest_others(images, places)
    weights = np.exp((cosines - 1) / WARMTH).astype(np.float64)
    shown = np.hstack([labels[nearest], labels[:, None]])
    votes = np.full(shown.shape, 1e-6)
    for column in range(nearest.shape[1]):
        votes += (shown == shown[:, column, None]) * weights[:, column, None]
    total = classes * 1e-6 + weights.sum(axis=1)
    return _Votes(shown, votes / total[:, None], 1e-6 / total)


def nearest_others(images: NDArray[np.float32], places: Integers) -> tuple[Floats, Integers]:
    """Return the cosines `(N, k)` and positions of the nearest images of other groups; -inf where there are less.

    Blocks of images are compared with blocks of images, and the best are kept.
    """
    k = min(NEIGHBOURS, len(images))
    cosines, nearest = np.empty((len(images), k), np.float32), np.empty((len(images), k), np.int64)
    for start in range(0, len(images), 512):
        rows = slice(start, min(start + 512, len(images)))
        best = np.empty((rows.stop - start, 0), np.float32)
        where = np.empty((rows.stop - start, 0), np.int64)
        for first in range(0, len(images), COMPARED):
            others = slice(first, min(first + COMPARED, len(images)))
            block = images[rows] @ images[others].T
            block[places[rows, None] == places[None, others]] = -np.inf
            best = np.hstack([best, block])
            where = np.hstack([where, np.broadcast_to(np.arange(first, others.stop), block.shape)])
            if best.shape[1] > k:
                kept = np.argpartition(-best, k - 1, axis=1)[:, :k]
                best, where = np.take_along_axis(best, kept, axis=1), np.take_along_axis(where, kept, axis=1)
        cosines[rows], nearest[rows] = best, where
    return cosines, nearest
