"""Finding pairs of 64-bit hashes that are near one another, without comparing all pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from landmarks.support.errors import UsageError

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
