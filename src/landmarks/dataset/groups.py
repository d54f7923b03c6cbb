"""Groups: images that must land in the same split, because one gives the other away.

Two images are joined if they are near-duplicates: their perceptual hashes differ in at most `RADIUS` of 64 bits if
they show the same landmark, or in at most `RADIUS_ACROSS` if they do not. Two images of one landmark are also joined
if the same known author took them. A group is all images that are joined directly or through others.

The radii were chosen on 4,779 real images of 25 landmarks and of other things (`benchmarks/grouping.py` repeats the
measurement). Within 8 bits are 99 % or more of an image's copies that were made smaller, darker or recompressed
(quality 10), 93 to 99 % of those that got a border, and of those cropped at each side 99 % at 2.5 % and 77 % at 5 %;
larger crops are mostly missed. Of the pairs of one landmark that are exactly 8 bits apart about two thirds were seen
to be one image, of those 10 bits apart less than half. No pair of different landmarks was within 4 bits. 58 were 6 or
8 bits apart, and none of them was one image: five in a million pairs come so near by chance, enough to join the whole
archive into one group.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from landmarks.support.console import note, plural
from landmarks.support.errors import UsageError

RADIUS = 8
"""Most bits in which the hashes of near-duplicates of one landmark differ."""

RADIUS_ACROSS = 2
"""The same for images of different landmarks, or of nothing known."""

NO_HASH = 0
"""The hash of an image without structure, which has no near-duplicates."""

NOBODY = ("", "unknown", "unknown author", "author unknown", "anonymous", "n/a", "none", "various")
"""Names of authors (lower case) that say nothing about who took an image."""

SIDE = 32
"""Pixels along each side of the small luminance image that is hashed."""

HASH_FORM = 1
"""To be raised whenever `perceptual_hash` returns another hash for the same image."""

FLATTEST = 3.0
"""Standard deviation in grey levels below which an image has no structure to hash."""

_PLACES = sorted(
    ((i, j) for i in range(12) for j in range(12) if i + j > 0), key=lambda at: (at[0] ** 2 + at[1] ** 2, at)
)
LOWEST = tuple(np.array(_PLACES[:64]).T)
"""Rows and columns of the 64 lowest frequencies without the mean, in ascending order."""

FADING = np.sqrt(np.hanning(SIDE + 2)[1:-1])
"""Weights (SIDE,) that fade an image out at its edges, where a crop changes most."""


@dataclass(frozen=True)
class Grouping:
    """The group of each of N images, and the near-duplicates among them."""

    group: np.ndarray[Any, Any]  # (N,) uint32, numbered in the order of first appearance
    first: np.ndarray[Any, Any]  # (N,) first image with the same hash and landmark; itself if it has no hash
    pairs: np.ndarray[Any, Any]  # (P, 2) near-duplicates i < j among those first images

    @property
    def column(self) -> pl.Series:
        """The column `group` of `images.parquet`."""
        return pl.Series(self.group, dtype=pl.UInt32)

    @property
    def count(self) -> int:
        """The number of groups, including groups of one image."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    @property
    def near_duplicates(self) -> int:
        """The number of pairs of near-duplicates."""
        copies = np.bincount(self.first, minlength=len(self.first)).astype(np.int64)
        return int((copies * (copies - 1) // 2).sum() + (copies[self.pairs[:, 0]] * copies[self.pairs[:, 1]]).sum())

    def straddling(self, split: np.ndarray[Any, Any]) -> int:
        """Return the number of pairs of near-duplicates in different splits, given the split `(N,)` of each image.

        Pairs among the copies of one image are counted without being listed: there may be very many.
        """
        splits = int(split.max()) + 1 if len(split) else 1
        copies = (
            np.bincount(self.first * splits + split, minlength=len(split) * splits).reshape(-1, splits).astype(np.int64)
        )
        left, right = copies[self.pairs[:, 0]], copies[self.pairs[:, 1]]
        among_copies = (copies.sum(axis=1) ** 2 - (copies**2).sum(axis=1)).sum() // 2
        among_near = (left.sum(axis=1) * right.sum(axis=1) - (left * right).sum(axis=1)).sum()
        return int(among_copies + among_near)


def group_images(
    images: pl.DataFrame,
    *,
    radius: int = RADIUS,
    radius_across: int = RADIUS_ACROSS,
    copies: np.ndarray[Any, Any] | None = None,
    searched: np.ndarray[Any, Any] | None = None,
) -> Grouping:
    """Group images (columns `landmark_id`, `phash`, `author`) by near-duplicates and by author of one landmark.

    `copies` `(P, 2)` are pairs i < j that were found by comparing pixels (see `copies.py`), among the images that were
    `searched` `(N,)`. Hashes alone do not make near-duplicates of two searched images.
    """
    first, pairs = _near_duplicates(images, radius, radius_across)
    if copies is not None and searched is not None:
        same_hash = np.stack([first, np.arange(len(images))], axis=1)
        by_hash = np.concatenate([pairs, same_hash[same_hash[:, 0] != same_hash[:, 1]]])
        kept = by_hash[~(searched[by_hash[:, 0]] & searched[by_hash[:, 1]])]
        first, pairs = np.arange(len(images)), np.unique(np.concatenate([copies, kept]), axis=0)
    same_hash = np.stack([first, np.arange(len(images))], axis=1)
    joined = np.concatenate([pairs, same_hash, _joined_by_author(images)])
    edges = coo_array((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=(len(images), len(images)))
    _, component = connected_components(edges, directed=False)
    _, appearance, inverse = np.unique(component, return_index=True, return_inverse=True)
    number = np.empty(len(appearance), np.uint32)
    number[np.argsort(appearance)] = np.arange(len(appearance))
    return Grouping(number[inverse], first, pairs)


def perceptual_hash(image: np.ndarray[Any, Any]) -> int:
    """Return 64 bits that hardly change when uint8 `(H, W, 3)` is resized, recompressed, framed or cropped a little.

    Each bit says whether one of the 64 lowest frequencies of the luminance at 32 × 32 pixels is above their median (a
    DCT; Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010). Plain borders are cut off
    first, and the edges are faded out, because a crop changes these most. Images without structure get `NO_HASH`.
    """
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX, box=_inside(grey)), dtype=np.float64)
    if small.std() < FLATTEST:
        return NO_HASH
    window = np.outer(FADING, FADING)
    waves = dctn((small - np.average(small, weights=window)) * window, norm="ortho")[LOWEST].round(3)
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")


def _inside(grey: Image.Image) -> tuple[float, float, float, float]:
    """Return the box inside plain borders: lines of one shade that end abruptly, unlike sky and walls."""
    side = 128
    shades = np.asarray(grey.resize((side, side), Image.Resampling.BOX), dtype=np.int16)
    left, top, right, bottom = (_border(lines) for lines in (shades.T, shades, shades.T[::-1], shades[::-1]))
    across, down = grey.width / side, grey.height / side
    return left * across, top * down, grey.width - right * across, grey.height - bottom * down


def _border(lines: np.ndarray[Any, Any]) -> int:
    """Return how many of the first lines are a border, including the blurred line at its end."""
    widest = len(lines) // 4
    difference = np.abs(lines[: widest + 2] - np.median(lines[0]))
    plain = (difference <= 10).mean(axis=1) >= 0.96
    width = int(np.argmin(plain))  # the first line that is not plain; 0 also if all are plain
    ends_abruptly = (difference[min(width + 1, widest + 1)] > 12).mean() >= 0.5
    return width + 1 if 0 < width <= widest and ends_abruptly else 0


def _near_duplicates(
    images: pl.DataFrame, radius: int, radius_across: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return `first` and `pairs` of a `Grouping`."""
    table = images.select(
        hash=pl.col("phash").fill_null(NO_HASH), landmark=pl.col("landmark_id"), position=pl.int_range(pl.len())
    )
    same_hash = pl.col("position").min().over("hash", "landmark")
    first = pl.when(pl.col("hash") == NO_HASH).then("position").otherwise(same_hash)
    first_of_all = table.select(first)["position"].to_numpy()
    table = table.filter(pl.col("hash") != NO_HASH, pl.col("position") == same_hash)
    pairs = [_near(table["hash"], table["position"], radius_across)]
    of_landmarks = table.drop_nulls("landmark").group_by("landmark", maintain_order=True).agg("hash", "position")
    for hashes, positions in of_landmarks.filter(pl.col("hash").list.len() > 1).select("hash", "position").iter_rows():
        pairs.append(_near(hashes, positions, radius))
    return first_of_all, np.unique(np.concatenate(pairs), axis=0)


def _near(hashes: pl.Series | list[int], positions: pl.Series | list[int], radius: int) -> np.ndarray[Any, Any]:
    pairs = near_pairs(np.asarray(hashes, np.uint64), radius)
    return np.take(np.asarray(positions, np.int64), pairs)


def _joined_by_author(images: pl.DataFrame) -> np.ndarray[Any, Any]:
    """Return pairs `(P, 2)` of images of one landmark by one author, each image with the author's previous one."""
    author = pl.col("author").str.strip_chars().str.to_lowercase()
    by_author = images.select("landmark_id", author).with_row_index("position").drop_nulls()
    by_author = by_author.filter(~pl.col("author").is_in(NOBODY))
    previous = pl.col("position").shift().over("landmark_id", "author")
    pairs = by_author.with_columns(previous=previous).drop_nulls("previous").select("previous", "position")
    return pairs.to_numpy().astype(np.int64)


def note_contradictions(images: pl.DataFrame) -> None:
    """Note which images (columns of `IMAGES`) are the same file, and have the labels of several landmarks."""
    same = images.filter(pl.col("phash") != NO_HASH, pl.col("landmark_id").is_not_null())
    same = same.group_by("phash", "length", "width", "height").agg("image_id", pl.col("landmark_id").n_unique())
    same = same.filter(pl.col("landmark_id") > 1)
    found = same.select(pl.col("image_id").list.sort().list.join(" = ")).to_series().sort().to_list()
    if found:
        some = ", ".join(found[:5]) + (" …" if len(found) > 5 else "")
        has = "has" if len(found) == 1 else "have"
        note(f"{plural(len(found), 'image')} {has} the label of several landmarks: {some}")


# ── Near hashes, found without comparing all pairs ──────────────────────────────────────────────────────────────────


BITS = 64

_CANDIDATES_AT_ONCE = 1 << 21
_MOST_COMPARED = 1 << 32  # up to about here, comparing all pairs is faster than chunks
_FEW = 8192  # up to this number, comparing all pairs is faster than chunks
_LARGEST_RADIUS = 15


def near_pairs(hashes: np.ndarray[Any, Any], radius: int) -> np.ndarray[Any, Any]:
    """Return all pairs `(P, 2)` of positions i < j, sorted, whose hashes `(N,)` uint64 differ in at most `radius` bits.

    No pair is missed. The bits are dealt out to m chunks. Hashes that differ in at most `radius` bits differ in at most
    `radius // m` bits of some chunk, and all pairs that do are compared (pigeonhole; Norouzi et al., "Fast exact search
    in Hamming space with multi-index hashing", 2014). The bits are dealt out in turn, so that informative bits are
    spread over all chunks.
    """
    if not 0 <= radius <= _LARGEST_RADIUS:
        raise UsageError("an impossible radius", received=radius, expected=f"0 to {_LARGEST_RADIUS} bits")
    hashes = np.ascontiguousarray(hashes, np.uint64)
    if len(hashes) <= _FEW:
        return _compare_all(hashes, radius)
    chunks = min(range(1, 9), key=lambda chunks: _cost(len(hashes), radius, chunks))
    found = [np.empty(0, np.int64)]
    for chunk in range(chunks):
        bits = range(chunk, BITS, chunks)
        for left, right in _candidates(_keys(hashes, bits), len(bits), radius // chunks):
            near = np.bitwise_count(hashes[left] ^ hashes[right]) <= radius
            i, j = left[near].astype(np.int64), right[near].astype(np.int64)
            found.append(np.minimum(i, j) * len(hashes) + np.maximum(i, j))
    pairs = np.unique(np.concatenate(found))
    return np.stack(np.divmod(pairs, len(hashes)), axis=1)


def _compare_all(hashes: np.ndarray[Any, Any], radius: int) -> np.ndarray[Any, Any]:
    count = len(hashes)
    rows = max(1, _CANDIDATES_AT_ONCE // max(count, 1))
    found = [np.empty((0, 2), np.int64)]
    for low in range(0, count, rows):
        near = np.bitwise_count(hashes[low : low + rows, None] ^ hashes[None, low:]) <= radius
        pairs = np.argwhere(near) + low
        found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return np.concatenate(found)


def _cost(count: int, radius: int, chunks: int) -> float:
    """Return an estimate in nanoseconds of the cost of `chunks` chunks for random bits, measured on one core."""
    bits = math.ceil(BITS / chunks)
    if bits > 24:  # the table of a chunk's buckets would not stay small
        return math.inf
    keys: int = sum(math.comb(bits, ones) for ones in range(radius // chunks + 1))
    return float(chunks) * (10.0 * (1 << bits) + keys * (20.0 * count + 5.0 * count * count / (1 << bits)))


def _keys(hashes: np.ndarray[Any, Any], bits: range) -> np.ndarray[Any, Any]:
    """Return the given bits of each hash as a small integer."""
    keys = np.zeros(len(hashes), np.uint32)
    for place, bit in enumerate(bits):
        keys |= ((hashes >> np.uint64(bit)) & np.uint64(1)).astype(np.uint32) << np.uint32(place)
    return keys


def _candidates(
    keys: np.ndarray[Any, Any], bits: int, flips: int
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Yield blocks of pairs of positions whose keys of `bits` bits differ in at most `flips` bits, each pair once."""
    order = np.argsort(keys, kind="stable").astype(np.int32)
    ordered = keys[order]
    ends = np.cumsum(np.bincount(ordered, minlength=1 << bits), dtype=np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), ends])
    after = np.arange(1, len(ordered) + 1, dtype=np.int32)
    for ones in range(flips + 1):
        for flipped in itertools.combinations(range(bits), ones):
            mask = np.uint32(sum(1 << place for place in flipped))
            other = ordered ^ mask
            # Each pair of buckets is visited from its smaller key; within a bucket, each member meets those after it.
            from_here = np.flatnonzero(ordered < other) if ones else np.arange(len(ordered))
            begin = starts[other[from_here]] if ones else after
            length = starts[other[from_here] + np.uint32(1)] - begin
            meets = length > 0
            yield from _blocks(order, from_here[meets], begin[meets], length[meets])


def _blocks(
    order: np.ndarray[Any, Any],
    here: np.ndarray[Any, Any],
    begin: np.ndarray[Any, Any],
    length: np.ndarray[Any, Any],
    left: np.ndarray[Any, Any] | None = None,
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Yield the pairs of `left[here]`, by default `order[here]`, and `order[begin : begin + length]`.

    About two million pairs are yielded at once.
    """
    left = order if left is None else left
    total = np.cumsum(length, dtype=np.int64)
    low = 0
    while low < len(here):
        done = int(total[low - 1]) if low else 0
        high = max(low + 1, int(np.searchsorted(total, done + _CANDIDATES_AT_ONCE, side="right")))
        lengths = length[low:high]
        first = np.cumsum(lengths) - lengths
        nth = np.arange(int(total[high - 1]) - done) - np.repeat(first, lengths)
        yield left[np.repeat(here[low:high], lengths)], order[np.repeat(begin[low:high], lengths) + nth]
        low = high


# ── Near pairs between two sets ─────────────────────────────────────────────────────────────────────────────────────


def near_between(
    queries: np.ndarray[Any, Any], hashes: np.ndarray[Any, Any], radius: int
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Yield blocks of positions in `queries` (Q,) and `hashes` (N,) uint64 that differ in at most `radius` bits.

    No pair is missed, as in `near_pairs`. With many hashes a pair may be yielded several times.
    """
    queries, hashes = (np.ascontiguousarray(each, np.uint64) for each in (queries, hashes))
    if len(queries) * len(hashes) <= _MOST_COMPARED:
        rows = max(1, _CANDIDATES_AT_ONCE // max(len(hashes), 1))
        for low in range(0, len(queries), rows):
            query, match = np.nonzero(np.bitwise_count(queries[low : low + rows, None] ^ hashes[None]) <= radius)
            yield query + low, match
        return
    chunks = min(range(1, 9), key=lambda chunks: _cost(len(hashes), radius, chunks))
    for chunk in range(chunks):
        bits = range(chunk, BITS, chunks)
        keys, query_keys = _keys(hashes, bits), _keys(queries, bits)
        order = np.argsort(keys, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << len(bits)))])
        for ones in range(radius // chunks + 1):
            for flipped in itertools.combinations(range(len(bits)), ones):
                other = query_keys ^ np.uint32(sum(1 << place for place in flipped))
                length = starts[other + np.uint32(1)] - starts[other]
                meets = np.flatnonzero(length)
                every = np.arange(len(queries))
                for query, match in _blocks(order, meets, starts[other[meets]], length[meets], left=every):
                    near = np.bitwise_count(queries[query] ^ hashes[match]) <= radius
                    yield query[near], match[near]
