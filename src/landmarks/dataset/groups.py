"""Groups: images that must land in the same split, because one gives the other away.

Two images are joined when they are near-duplicates: they show the same landmark and their perceptual hashes differ
in at most `RADIUS` of 64 bits, or they do not and the hashes differ in at most `RADIUS_ACROSS`. They are also joined
when one known author took both of one landmark. Whatever is joined directly or through others is a group.

The radii were chosen on 4,779 real images of 25 landmarks and of other things (`benchmarks/grouping.py` measures
again). 8 bits find 99 % or more of an image's copies that were made smaller, darker or recompressed (quality 10), 93
to 99 % of those that got a border, 99 % where 2.5 % were cropped from each side and 77 % where it was 5 %; larger
crops are mostly missed. Of the pairs of one landmark that are exactly 8 bits apart about two thirds were seen to be
one image, of those 10 bits apart less than half. No pair of different landmarks was within 4 bits; 58 were 6 or 8
bits apart, and none of them was one image: five in a million pairs come so near by chance, enough to join the whole
archive into one group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from landmarks.dataset.hamming import near_pairs

RADIUS = 8
"""Bits in which the hashes of near-duplicates that show one landmark differ at most."""

RADIUS_ACROSS = 2
"""The same where landmarks differ, or nothing known is shown."""

NO_HASH = 0
"""The hash of an image without structure; it is near nothing."""

NOBODY = ("", "unknown", "unknown author", "author unknown", "anonymous", "n/a", "none", "various")
"""Authors (lower case) that say nothing about who took an image."""

SIDE = 32
"""Pixels along each side of the small luminance image that is hashed."""

HASH_FORM = 1
"""Raised whenever `perceptual_hash` would give the same image another hash."""

FLATTEST = 3.0
"""Standard deviation in grey levels below which an image shows nothing that could be recognised again."""

_PLACES = sorted(
    ((i, j) for i in range(12) for j in range(12) if i + j > 0), key=lambda at: (at[0] ** 2 + at[1] ** 2, at)
)
LOWEST = tuple(np.array(_PLACES[:64]).T)
"""Rows and columns of the 64 lowest frequencies, without the mean, the lowest first."""

FADING = np.sqrt(np.hanning(SIDE + 2)[1:-1])
"""Weights (SIDE,) that fade an image out at its edges, where a crop changes most."""


@dataclass(frozen=True)
class Grouping:
    """Which group each of N images is in, and the near-duplicates behind it."""

    group: np.ndarray[Any, Any]  # (N,) uint32, numbered in the order of first appearance
    like: np.ndarray[Any, Any]  # (N,) the first image with the same hash and landmark; itself where it has no hash
    pairs: np.ndarray[Any, Any]  # (P, 2) near-duplicates i < j among those first images

    @property
    def column(self) -> pl.Series:
        """The column `group` of a dataset's images."""
        return pl.Series(self.group, dtype=pl.UInt32)

    @property
    def count(self) -> int:
        """How many groups there are, groups of one image included."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    @property
    def near_duplicates(self) -> int:
        """How many pairs of images are near-duplicates of one another."""
        copies = np.bincount(self.like, minlength=len(self.like)).astype(np.int64)
        return int((copies * (copies - 1) // 2).sum() + (copies[self.pairs[:, 0]] * copies[self.pairs[:, 1]]).sum())

    def straddling(self, split: np.ndarray[Any, Any]) -> int:
        """Return how many near-duplicate pairs lie in two different splits, given the split `(N,)` of each image.

        Pairs among many copies of one image are counted, never listed.
        """
        splits = int(split.max()) + 1 if len(split) else 1
        copies = (
            np.bincount(self.like * splits + split, minlength=len(split) * splits).reshape(-1, splits).astype(np.int64)
        )
        of_like = copies[self.pairs[:, 0]], copies[self.pairs[:, 1]]
        among_copies = (copies.sum(axis=1) ** 2 - (copies**2).sum(axis=1)).sum() // 2
        among_near = (of_like[0].sum(axis=1) * of_like[1].sum(axis=1) - (of_like[0] * of_like[1]).sum(axis=1)).sum()
        return int(among_copies + among_near)


def groups(
    images: pl.DataFrame,
    *,
    radius: int = RADIUS,
    radius_across: int = RADIUS_ACROSS,
    copies: np.ndarray[Any, Any] | None = None,
    searched: np.ndarray[Any, Any] | None = None,
) -> Grouping:
    """Group images (columns `landmark_id`, `phash`, `author`) by near-duplicates and by author at one landmark.

    `copies` `(P, 2)` are pairs i < j found by looking at the images (see `copies.py`), among those that were
    `searched` `(N,)`: of these no pair is taken for near-duplicates by its hashes alone.
    """
    like, pairs = _near_duplicates(images, radius, radius_across)
    if copies is not None and searched is not None:
        alike = np.stack([like, np.arange(len(images))], axis=1)
        by_hash = np.concatenate([pairs, alike[alike[:, 0] != alike[:, 1]]])
        kept = by_hash[~(searched[by_hash[:, 0]] & searched[by_hash[:, 1]])]
        like, pairs = np.arange(len(images)), np.unique(np.concatenate([copies, kept]), axis=0)
    alike = np.stack([like, np.arange(len(images))], axis=1)
    joined = np.concatenate([pairs, alike, _joined_by_author(images)])
    edges = coo_array((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=(len(images), len(images)))
    _, component = connected_components(edges, directed=False)
    _, first, where = np.unique(component, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.uint32)
    number[np.argsort(first)] = np.arange(len(first))
    return Grouping(number[where], like, pairs)


def perceptual_hash(image: np.ndarray[Any, Any]) -> int:
    """Return 64 bits that hardly change when uint8 `(H, W, 3)` is resized, recompressed, framed or cropped a little.

    Signs of the 64 lowest frequencies of the luminance at 32 × 32 pixels against their median (a DCT; Zauner,
    "Implementation and benchmarking of perceptual image hash functions", 2010), after plain borders are cut off and
    with the edges faded out, because a crop changes these most. Images without structure get `NO_HASH`.
    """
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX, box=_inside(grey)), dtype=np.float64)
    if small.std() < FLATTEST:
        return NO_HASH
    window = np.outer(FADING, FADING)
    waves = dctn((small - np.average(small, weights=window)) * window, norm="ortho")[LOWEST].round(3)
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")


def _inside(grey: Image.Image) -> tuple[float, float, float, float]:
    """Return the box inside of plain borders: lines of one shade that end abruptly, as sky and walls do not."""
    side = 128
    shades = np.asarray(grey.resize((side, side), Image.Resampling.BOX), dtype=np.int16)
    left, top, right, bottom = (_border(lines) for lines in (shades.T, shades, shades.T[::-1], shades[::-1]))
    across, down = grey.width / side, grey.height / side
    return left * across, top * down, grey.width - right * across, grey.height - bottom * down


def _border(lines: np.ndarray[Any, Any]) -> int:
    """Return how many of the first lines are a border, the blurred line at its end included."""
    widest = len(lines) // 4
    unlike = np.abs(lines[: widest + 2] - np.median(lines[0]))
    plain = (unlike <= 10).mean(axis=1) >= 0.96
    width = int(np.argmin(plain))  # of the first line that is not plain; 0 also where all are
    ends_abruptly = (unlike[min(width + 1, widest + 1)] > 12).mean() >= 0.5
    return width + 1 if 0 < width <= widest and ends_abruptly else 0


def _near_duplicates(
    images: pl.DataFrame, radius: int, radius_across: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return `like` and `pairs` of a `Grouping`."""
    table = images.select(
        hash=pl.col("phash").fill_null(NO_HASH), landmark=pl.col("landmark_id"), position=pl.int_range(pl.len())
    )
    first = pl.col("position").min().over("hash", "landmark")
    like = table.select(pl.when(pl.col("hash") == NO_HASH).then("position").otherwise(first))["position"].to_numpy()
    table = table.filter(pl.col("hash") != NO_HASH, pl.col("position") == first)
    pairs = [_near(table["hash"], table["position"], radius_across)]
    of_landmarks = table.drop_nulls("landmark").group_by("landmark", maintain_order=True).agg("hash", "position")
    for hashes, positions in of_landmarks.filter(pl.col("hash").list.len() > 1).select("hash", "position").iter_rows():
        pairs.append(_near(hashes, positions, radius))
    return like, np.unique(np.concatenate(pairs), axis=0)


def _near(hashes: pl.Series | list[int], positions: pl.Series | list[int], radius: int) -> np.ndarray[Any, Any]:
    pairs = near_pairs(np.asarray(hashes, np.uint64), radius)
    return np.take(np.asarray(positions, np.int64), pairs)


def _joined_by_author(images: pl.DataFrame) -> np.ndarray[Any, Any]:
    author = pl.col("author").str.strip_chars().str.to_lowercase()
    known = images.select("landmark_id", author).with_row_index("position").drop_nulls()
    known = known.filter(~pl.col("author").is_in(NOBODY))
    known = known.with_columns(before=pl.col("position").shift().over("landmark_id", "author")).drop_nulls("before")
    return known.select("before", "position").to_numpy().astype(np.int64)
