"""Confidence intervals: Wilson's for the accuracy of one landmark, the bootstrap over groups for a whole split."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from landmarks.evaluation.metrics import Flags, Floats, Integers, require_row_per_image
from landmarks.support.seeds import generator

Z_95 = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution."""

DRAWS = 1000
"""Resamples of a bootstrap interval: its ends then vary between seeds by a few hundredths of its width."""

INTERVAL_DEFINITIONS = {
    "interval": "Percentile bootstrap: the central 95 % of the number over 1000 resamples, with replacement, of whole "
    "groups (near-duplicates and series count as one draw); images without a group are groups of one. Where all groups "
    "are alike (all right, say) resampling shows no variation, and the interval is Wilson's: n groups without an "
    "exception allow for a share of exceptions up to its upper bound for 0 of n.",
}


class Bounds(NamedTuple):
    """A 95 % interval and how it was computed."""

    low: float
    high: float
    method: str


def wilson(correct: Integers, images: Integers) -> tuple[Floats, Floats]:
    """Return `(low, high)` of Wilson's 95 % score interval, elementwise; (0, 1) where there are no images.

    Wilson, E. B. (1927), Probable inference, the law of succession, and statistical inference, JASA 22.
    """
    n = np.asarray(images, dtype=np.float64)
    safe = np.maximum(n, 1)
    share = np.asarray(correct) / safe
    centre = (share + Z_95**2 / (2 * safe)) / (1 + Z_95**2 / safe)
    half = Z_95 / (1 + Z_95**2 / safe) * np.sqrt(share * (1 - share) / safe + Z_95**2 / (4 * safe**2))
    low = np.where(share <= 0, 0.0, centre - half)
    high = np.where(share >= 1, 1.0, centre + half)
    return np.where(n == 0, 0.0, low), np.where(n == 0, 1.0, high)


def group_places(groups: Integers | None, images: int) -> Integers:
    """Return `(N,)` the position 0..G-1 of each image's group; an image without one (negative) is a group of its own.

    Without `groups` every image is.
    """
    if groups is None:
        return np.arange(images)
    require_row_per_image(groups, images)
    unique = np.where(groups < 0, groups.max(initial=0) + 1 + np.arange(images), groups)
    return np.asarray(np.unique(unique, return_inverse=True)[1])


def mean_interval(
    values: Floats | Flags, groups: Integers | None, seed: int = 0, draws: int = DRAWS, *, least: float = 0.0
) -> Bounds:
    """Return the bootstrap 95 % interval of the mean of `values` `(N,)`, resampling whole `groups` `(N,)`.

    A resample's mean is the sum over its images divided by their number, which varies with the groups drawn. Values
    lie between `least` and 1, which bounds the interval where all groups have the same mean.
    """
    if not len(values):
        return Bounds(math.nan, math.nan, "no images")
    places = group_places(groups, len(values))
    sums, sizes = np.bincount(places, weights=values), np.bincount(places)
    random = generator(seed, "bootstrap")
    means = np.empty(draws)
    for draw in range(draws):
        chosen = random.integers(len(sizes), size=len(sizes))
        means[draw] = sums[chosen].sum() / sizes[chosen].sum()
    return _bounds(means, float(np.mean(values)), groups, len(sizes), least)


def macro_interval(
    first: Integers, correct: Flags, groups: Integers | None, seed: int = 0, draws: int = DRAWS
) -> Bounds:
    """Return the bootstrap 95 % interval of the macro accuracy.

    `first` `(N,)` is the landmark each image counts for, `correct` `(N,)` whether it is answered right. Landmarks
    without images in a resample are left out of its mean.
    """
    if not len(first):
        return Bounds(math.nan, math.nan, "no images")
    places = group_places(groups, len(first))
    landmarks = np.unique(first, return_inverse=True)[1]
    group_count = int(places.max()) + 1
    random = generator(seed, "bootstrap")
    means = np.empty(draws)
    for draw in range(draws):
        times = np.bincount(random.integers(group_count, size=group_count), minlength=group_count)[places]
        images = np.bincount(landmarks, weights=times)
        hits = np.bincount(landmarks, weights=times * correct)
        means[draw] = np.mean(hits[images > 0] / images[images > 0])
    return _bounds(means, float(means.mean()), groups, group_count, 0.0)


def _bounds(means: NDArray[np.float64], mean: float, groups: Integers | None, group_count: int, least: float) -> Bounds:
    """Return the central 95 % of resampled `means`, or Wilson's bounds where all means are equal."""
    unit = "groups" if groups is not None and (groups >= 0).any() else "images"
    low, high = (float(end) for end in np.quantile(means, [0.025, 0.975]))
    if high - low > _ROUNDING:
        return Bounds(low, high, f"95 % by bootstrap over {unit}")
    unseen = float(wilson(np.array([0]), np.array([group_count]))[1][0])  # upper bound for groups of any other kind
    low, high = (1 - unseen) * mean + unseen * least, (1 - unseen) * mean + unseen
    count = f"{group_count} {unit if group_count != 1 else unit.removesuffix('s')}"
    return Bounds(min(low, mean), max(high, mean), f"95 % by Wilson over {count}, all alike")


_ROUNDING = 1e-9
"""Resampled means within this are equal: they differ only by the order of summation."""
