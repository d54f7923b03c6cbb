"""Groups: photographs that must land in the same part, because one gives the other away.

Two photographs are joined when they are near-duplicates: their perceptual hashes differ in at most `RADIUS` of 64 bits
and they show the same landmark, or in at most `RADIUS_ACROSS` bits whatever they show (among millions of photographs of
different things some hashes are close by chance). They are also joined when one known author took both of one landmark.
Whatever is joined directly or through others is a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from landmarks.support.errors import UsageError

RADIUS = 6
"""Bits in which the hashes of near-duplicates of one landmark differ at most."""

RADIUS_ACROSS = 2
"""The same for photographs of different landmarks."""

NO_HASH = 0
"""The hash of a picture without structure; it is near nothing."""

NOBODY = ("", "unknown", "unknown author", "author unknown", "anonymous", "n/a", "none", "various")
"""Authors (lower case) that say nothing about who took a photograph."""

SIDE = 32
"""Pixels along each side of the small luminance picture that is hashed."""

FLATTEST = 3.0
"""Standard deviation in grey levels below which a picture shows nothing that could be recognised again."""

_CHUNKS = 4
_CANDIDATES_AT_ONCE = 1 << 22

_PLACES = sorted(
    ((i, j) for i in range(12) for j in range(12) if i + j > 0), key=lambda at: (at[0] ** 2 + at[1] ** 2, at)
)
_LOWEST = tuple(np.array(_PLACES[:64]).T)
_WINDOW = np.sqrt(np.hanning(SIDE + 2)[1:-1])


@dataclass(frozen=True)
class Grouping:
    """Which group each of N photographs is in, and the near-duplicates behind it."""

    group: np.ndarray[Any, Any]  # (N,) uint32, numbered in the order of first appearance
    like: np.ndarray[Any, Any]  # (N,) the first photograph with the same hash and landmark; itself where it has no hash
    pairs: np.ndarray[Any, Any]  # (P, 2) near-duplicates i < j among those first photographs

    @property
    def count(self) -> int:
        """How many groups there are, groups of one photograph included."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    @property
    def near_duplicates(self) -> int:
        """How many pairs of photographs are near-duplicates of one another."""
        copies = np.bincount(self.like, minlength=len(self.like)).astype(np.int64)
        return int((copies * (copies - 1) // 2).sum() + (copies[self.pairs[:, 0]] * copies[self.pairs[:, 1]]).sum())

    def straddling(self, part: np.ndarray[Any, Any]) -> int:
        """Return how many near-duplicate pairs lie in two different parts, given the part `(N,)` of each photograph.

        Pairs among many copies of one picture are counted, never listed.
        """
        parts = int(part.max()) + 1 if len(part) else 1
        copies = np.bincount(self.like * parts + part, minlength=len(part) * parts).reshape(-1, parts).astype(np.int64)
        of_like = copies[self.pairs[:, 0]], copies[self.pairs[:, 1]]
        among_copies = (copies.sum(axis=1) ** 2 - (copies**2).sum(axis=1)).sum() // 2
        among_near = (of_like[0].sum(axis=1) * of_like[1].sum(axis=1) - (of_like[0] * of_like[1]).sum(axis=1)).sum()
        return int(among_copies + among_near)


def groups(photos: pl.DataFrame, *, radius: int = RADIUS, radius_across: int = RADIUS_ACROSS) -> Grouping:
    """Group photographs (columns `landmark_id`, `phash`, `author`) by near-duplicates and by author at one landmark."""
    like, pairs = _near_duplicates(photos, radius, radius_across)
    copies = np.stack([like, np.arange(len(photos))], axis=1)
    joined = np.concatenate([pairs, copies, _joined_by_author(photos)])
    edges = coo_array((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=(len(photos), len(photos)))
    _, component = connected_components(edges, directed=False)
    _, first, where = np.unique(component, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.uint32)
    number[np.argsort(first)] = np.arange(len(first))
    return Grouping(number[where], like, pairs)


def near_pairs(hashes: np.ndarray[Any, Any], radius: int) -> np.ndarray[Any, Any]:
    """Return all pairs `(P, 2)` of positions i < j, sorted, whose hashes `(N,)` uint64 differ in at most `radius` bits.

    No pair is missed: of four chunks of 16 bits one differs in at most `radius // 4` bits, and all pairs that agree so
    far in some chunk are compared (pigeonhole; Norouzi et al., "Fast exact search in Hamming space with multi-index
    hashing", 2014). `NO_HASH` is near nothing.
    """
    if not 0 <= radius < 16:
        raise UsageError("an impossible radius", received=radius, expected="0 to 15 bits")
    places = np.flatnonzero(hashes != NO_HASH)
    hashes = hashes[places].astype(np.uint64)
    found = [np.empty(0, np.int64)]
    for chunk in range(_CHUNKS):
        keys = (hashes >> np.uint64(16 * chunk)).astype(np.uint16)
        for left, right in _candidates(keys, radius // _CHUNKS):
            near = np.bitwise_count(hashes[left] ^ hashes[right]) <= radius
            low, high = np.minimum(left[near], right[near]), np.maximum(left[near], right[near])
            found.append(low * len(hashes) + high)
    pairs = np.unique(np.concatenate(found))
    return places[np.stack([pairs // max(len(hashes), 1), pairs % max(len(hashes), 1)], axis=1)]


def perceptual_hash(image: np.ndarray[Any, Any]) -> int:
    """Return 64 bits that stay nearly the same when uint8 `(H, W, 3)` is resized, recompressed, cropped a little.

    Signs of the 64 lowest frequencies of the luminance at 32 × 32 pixels, fading out towards the borders, against their
    median (a DCT; Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010). Flat pictures
    get `NO_HASH`.
    """
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    if small.std() < FLATTEST:
        return NO_HASH
    window = np.outer(_WINDOW, _WINDOW)
    waves = dctn((small - np.average(small, weights=window)) * window, norm="ortho")[_LOWEST]
    bits = (waves > np.median(waves)).reshape(-1, _CHUNKS).T  # each chunk of 16 bits gets low and high frequencies
    return int.from_bytes(np.packbits(bits).tobytes(), "big") or 1


def _near_duplicates(
    photos: pl.DataFrame, radius: int, radius_across: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return `like` and `pairs` of a `Grouping`."""
    hashes = photos["phash"].fill_null(NO_HASH).to_numpy()
    landmark = photos["landmark_id"].rank("dense").fill_null(0).to_numpy()
    kinds = pl.DataFrame({"hash": hashes, "landmark": landmark, "position": np.arange(len(photos))})
    first = pl.col("position").min().over("hash", "landmark")
    like = kinds.select(pl.when(pl.col("hash") == NO_HASH).then("position").otherwise(first))["position"].to_numpy()
    standing = np.unique(like)
    pairs = standing[near_pairs(hashes[standing], max(radius, radius_across))]
    apart = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    same = landmark[pairs[:, 0]] == landmark[pairs[:, 1]]
    return like, pairs[np.where(same, apart <= radius, apart <= radius_across)]


def _joined_by_author(photos: pl.DataFrame) -> np.ndarray[Any, Any]:
    author = pl.col("author").str.strip_chars().str.to_lowercase()
    known = photos.select("landmark_id", author).with_row_index("position").drop_nulls()
    known = known.filter(~pl.col("author").is_in(NOBODY))
    known = known.with_columns(before=pl.col("position").shift().over("landmark_id", "author")).drop_nulls("before")
    return known.select("before", "position").to_numpy().astype(np.int64)


def _candidates(keys: np.ndarray[Any, Any], flips: int) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Yield blocks of pairs of positions whose 16-bit keys differ in at most `flips` bits, each pair once."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order].astype(np.int64)
    starts = np.searchsorted(ordered, np.arange((1 << 16) + 1))
    masks = np.arange(1 << 16, dtype=np.uint16)
    for mask in masks[np.bitwise_count(masks) <= flips].astype(np.int64):
        other = ordered ^ mask
        begin = starts[other] if mask else np.arange(1, len(ordered) + 1)
        length = np.where(ordered <= other, starts[other + 1] - begin, 0)
        for low, high in _blocks(length):
            of = np.repeat(np.arange(low, high), length[low:high])
            nth = np.arange(len(of)) - np.repeat(np.cumsum(length[low:high]) - length[low:high], length[low:high])
            yield order[of], order[begin[of] + nth]


def _blocks(length: np.ndarray[Any, Any]) -> Iterator[tuple[int, int]]:
    """Cut positions into runs whose `length` adds up to about `_CANDIDATES_AT_ONCE`."""
    total = np.cumsum(length)
    low = 0
    while low < len(length):
        done = total[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(total, done + _CANDIDATES_AT_ONCE, side="right")))
        yield low, high
        low = high
