"""Estimate what labelled images show, each without its own group, and find the labels that this contradicts.

Five-fold cross-validation over whole groups gives each image the mean of two estimates: a ridge regression and the
votes of its nearest images of other groups. A label is likely wrong when another landmark is more probable by at least
`MARGIN` times that landmark's mean probability for its own images (after confident learning, Northcutt et al., JAIR
2021, with a margin in place of a probability). All is estimated twice: the second time without the images whose labels
the first found likely wrong, so that wrong labels do not vouch for one another.
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
from landmarks.training.ridge import Ridge, fit_ridge, rows_at_once

FOLDS = 5

BLOCK = 8192
"""Images that others are compared with at a time."""

SHARPNESS = 8.0
"""Factor on the ridge regression's values before the softmax, which calibrates its probabilities approximately."""

VOTERS = 3
"""Nearest images of other groups that vote, out of the `NEIGHBOURS` nearest."""

MARGIN = 0.8
"""Share of a landmark's mean probability by which it must exceed the labelled one. With 3 % of the labels of 3,582
images falsified, 84 % of these were listed, and 74 % of the list were falsified (`benchmarks/label_errors.py`, mean of
three draws; in one pass and with ten voters 81 and 71 %). A smaller margin finds more, with more false alarms."""


@dataclass(frozen=True)
class Estimates:
    """What each of N images shows, estimated without its group."""

    own: Floats  # (N,) probability of the image's own label
    highest: Floats  # (N,) probability of the likeliest label
    likeliest: Integers  # (N,) that label


@dataclass(frozen=True)
class _Votes:
    """The votes of each image's nearest images."""

    labels: Integers  # (N, M) of the nearest images, the image's own last
    shares: Floats  # (N, M) of all votes, per label; a label that occurs twice has the same share both times
    rest: Floats  # (N,) share of every other label


@dataclass(frozen=True)
class Nearest:
    """The k nearest images of other groups of each of N images, the nearest first."""

    cosines: Floats  # (N, k), -inf where there are fewer
    places: Integers  # (N, k)


def estimated(
    images: NDArray[np.float32], labels: Integers, groups: Integers, classes: int, nearest: Nearest
) -> Estimates:
    """Estimate what images with features `(N, C)` show, without those whose labels are likely wrong."""
    suspected, _ = disagreements(cross_validated(images, labels, groups, classes, nearest), labels)
    return cross_validated(images, labels, groups, classes, nearest, trusted=~suspected)


def cross_validated(
    images: NDArray[np.float32],
    labels: Integers,
    groups: Integers,
    classes: int,
    nearest: Nearest,
    *,
    trusted: Flags | None = None,
) -> Estimates:
    """Estimate what images with features `(N, C)` show, each without the images of its group.

    A label's probability is the mean of two numbers: the softmax of a ridge regression fitted on the other folds, and
    the label's share of the votes of the nearest images of other groups. Both are of `trusted` images `(N,)` only, by
    default of all. Only the likeliest of all `classes` is kept, so memory does not grow with images × landmarks:
    candidates are the labels with votes and the regression's best.
    """
    trusted = np.ones(len(labels), bool) if trusted is None else trusted
    places = group_places(groups, len(labels))
    fold = generator(0, "audit").permutation(int(places.max(initial=-1)) + 1)[places] % FOLDS
    votes = _votes(labels, classes, nearest, trusted)
    estimates = Estimates(np.empty(len(labels)), np.empty(len(labels)), np.empty(len(labels), np.int64))
    for number in range(FOLDS):
        inside, others = np.flatnonzero(fold == number), np.flatnonzero((fold != number) & trusted)
        if not len(others):  # nothing speaks against these labels
            estimates.own[inside] = estimates.highest[inside] = 1 / classes
            estimates.likeliest[inside] = labels[inside]
            continue
        ridge = fit_ridge(Rows(images, others), labels[others], classes)
        softmax = _softmax(ridge, images, inside, votes.labels)
        shown = np.hstack([votes.labels[inside], softmax.top[:, None]])
        voted = np.hstack([votes.shares[inside], votes.rest[inside, None]])
        same = shown[:, :-1] == shown[:, -1:]  # the regression's best label may have votes, too
        voted[:, -1] = np.where(same.any(axis=1), (same * votes.shares[inside]).max(axis=1), voted[:, -1])
        probabilities = (np.hstack([softmax.shares, softmax.top_share[:, None]]) + voted) / 2
        highest = probabilities.max(axis=1)
        likeliest = np.where(probabilities == highest[:, None], shown, classes).min(axis=1)
        estimates.own[inside], estimates.highest[inside] = probabilities[:, -2], highest
        estimates.likeliest[inside] = likeliest
    return estimates


def disagreements(estimates: Estimates, labels: Integers) -> tuple[Flags, Floats]:
    """Return which labels are likely wrong, and the margin by which another landmark is more probable, both `(N,)`."""
    classes = 1 + int(max(labels.max(initial=-1), estimates.likeliest.max(initial=-1)))
    counts = np.bincount(labels, minlength=classes)
    usual = np.bincount(labels, weights=estimates.own, minlength=classes) / np.maximum(counts, 1)
    margin = estimates.highest - estimates.own
    wrong = (estimates.likeliest != labels) & (margin >= MARGIN * usual[estimates.likeliest])
    return wrong, margin


@dataclass(frozen=True)
class _Softmax:
    """A regression's probabilities of M labels for each of R images, and its likeliest label."""

    shares: Floats  # (R, M)
    top: Integers  # (R,)
    top_share: Floats  # (R,)


def _softmax(ridge: Ridge, images: NDArray[np.float32], rows: Integers, labels: Integers) -> _Softmax:
    """Return the softmax over all classes for `rows` of `images`, at the given `labels` `(N, M)`.

    Computed over blocks of classes and of rows, with a running maximum, so that memory stays small.
    """
    largest, total = np.full(len(rows), -np.inf), np.zeros(len(rows))
    top, logits = np.zeros(len(rows), np.int64), np.zeros((len(rows), labels.shape[1]))
    step = rows_at_once(images.shape[1])
    for first, last in ridge.blocks():
        weights = ridge.weights(first, last)
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            values = SHARPNESS * ridge.values(images[rows[block]], weights, first)
            highest = values.max(axis=1)
            top[block] = np.where(highest > largest[block], first + values.argmax(axis=1), top[block])
            raised = np.maximum(highest, largest[block])
            total[block] = total[block] * np.exp(largest[block] - raised)
            total[block] += np.exp(values - raised[:, None]).sum(axis=1)
            largest[block] = raised
            wanted = labels[rows[block]]
            row, column = np.nonzero((wanted >= first) & (wanted < last))
            logits[start + row, column] = values[row, wanted[row, column] - first]
    return _Softmax(np.exp(logits - largest[:, None]) / total[:, None], top, 1 / total)


def _votes(labels: Integers, classes: int, nearest: Nearest, trusted: Flags) -> _Votes:
    """Return the votes of each image's `VOTERS` nearest trusted images, weighted by their cosines."""
    voting = trusted[nearest.places]
    voting &= np.cumsum(voting, axis=1) <= VOTERS
    weights = voting * np.exp((nearest.cosines - 1) / WARMTH).astype(np.float64)
    shown = np.hstack([labels[nearest.places], labels[:, None]])
    votes = np.full(shown.shape, 1e-6)
    for column in range(weights.shape[1]):
        votes += (shown == shown[:, column, None]) * weights[:, column, None]
    total = classes * 1e-6 + weights.sum(axis=1)
    return _Votes(shown, votes / total[:, None], 1e-6 / total)


def nearest_others(images: NDArray[np.float32], groups: Integers) -> Nearest:
    """Return the `NEIGHBOURS` nearest images of other groups of images with directions `(N, C)`.

    Images are compared block by block.
    """
    places = group_places(groups, len(images))
    k = min(NEIGHBOURS, len(images))
    cosines, nearest = np.empty((len(images), k), np.float32), np.empty((len(images), k), np.int64)
    for start in range(0, len(images), 512):
        rows = slice(start, min(start + 512, len(images)))
        best = np.empty((rows.stop - start, 0), np.float32)
        found = np.empty((rows.stop - start, 0), np.int64)
        for first in range(0, len(images), BLOCK):
            others = slice(first, min(first + BLOCK, len(images)))
            block = images[rows] @ images[others].T
            block[places[rows, None] == places[None, others]] = -np.inf
            best = np.hstack([best, block])
            found = np.hstack([found, np.broadcast_to(np.arange(first, others.stop), block.shape)])
            if best.shape[1] > k:
                kept = np.argpartition(-best, k - 1, axis=1)[:, :k]
                best, found = np.take_along_axis(best, kept, axis=1), np.take_along_axis(found, kept, axis=1)
        order = np.argsort(-best, axis=1, kind="stable")
        cosines[rows], nearest[rows] = (np.take_along_axis(each, order, axis=1) for each in (best, found))
    return Nearest(cosines, nearest)
