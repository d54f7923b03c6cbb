"""Vectors of images: the directions of features, by which images are compared, and nearest neighbours among any number.

Vectors have length 1 and lie on disk in half precision, in parts; parts are only ever added. Up to `MOST_EXACT` a query
is compared with every vector. Beyond that faiss finds candidates in an inverted file (Jégou et al., PAMI 2011) of
product-quantised 4-bit codes, which are compared in registers (André et al., PAMI 2021) and mapped into memory. The
candidates are then ranked by their exact cosines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from landmarks.support.seeds import generator

MAX_WIDTH = 2048
"""Longest directions; wider features are sketched down to it, since covariances grow with its square."""

BLOCK_BYTES = 1 << 25
"""Approximate size of the features that are turned into directions at a time."""

TINY = 1e-12
"""Keeps square roots and lengths away from 0, where they have no gradient."""


def compared_width(width: int) -> int:
    """Return the length of the `directions` of features of length `width`."""
    return min(width, MAX_WIDTH)


def directions(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return signed square roots of features `(N, W)`, normalised to length 1, as `(N, compared_width(W))`.

    The square roots keep a few large channels from dominating the cosine (Arandjelović & Zisserman, CVPR 2012,
    RootSIFT; Perronnin et al., ECCV 2010). Features wider than `MAX_WIDTH` are added with random signs into `MAX_WIDTH`
    sums, which preserves their cosines in expectation (Charikar et al., ICALP 2002, count sketch).
    """
    width = features.shape[1]
    values = np.empty((len(features), compared_width(width)), dtype=np.float32)
    step = max(1, BLOCK_BYTES // (4 * width))
    for start in range(0, len(features), step):
        values[start : start + step] = _directions(features[start : start + step])
    return values


def _directions(features: NDArray[np.floating]) -> NDArray[np.float32]:
    roots = np.sign(features) * np.sqrt(np.abs(features.astype(np.float32)))
    width = features.shape[1]
    if width > MAX_WIDTH:
        signs, places = sketch(width)
        sums = np.zeros((MAX_WIDTH, len(roots)), dtype=np.float32)
        np.add.at(sums, places, (roots * signs).T)
        roots = sums.T
    length = np.linalg.norm(roots, axis=1, keepdims=True)
    return np.asarray(roots / np.maximum(length, 1e-12), dtype=np.float32)


def sketch(width: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the sign of each of `width` features and the index of the sum it is added to, `(width,)` each."""
    random = generator("sketch", width)
    signs = random.choice(np.array([-1, 1], dtype=np.float32), size=width)
    return signs, random.integers(MAX_WIDTH, size=width)


class Directions(nn.Module):
    """`directions` as a layer, for autograd and for exports with any number of images."""

    signs: Tensor
    members: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = width > MAX_WIDTH
        if self.wide:
            signs, places = sketch(width)
            self.register_buffer("signs", torch.from_numpy(signs))
            self.register_buffer("members", torch.from_numpy(members_of(places, MAX_WIDTH)))

    def forward(self, features: Tensor) -> Tensor:
        """Return directions (N, C) of features (N, W)."""
        roots = features / features.abs().clamp(min=TINY).sqrt()
        if self.wide:
            padded = functional.pad(roots * self.signs, (0, 1))
            roots = padded[:, self.members.flatten()].reshape(-1, *self.members.shape).sum(2)
        return functional.normalize(roots, dim=1, eps=TINY)


def members_of(places: NDArray[np.int64], sums: int) -> NDArray[np.int64]:
    """Return the inverse of `places` `(W,)`: the indices that are mapped to each sum, `(sums, m)`, padded with W.

    In ONNX, gathering by these leaves the batch size open; scatter-adding by `places` does not.
    """
    order = np.argsort(places, kind="stable")
    counts = np.bincount(places, minlength=sums)
    rank = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    members = np.full((sums, counts.max()), len(places), dtype=np.int64)
    members[places[order], rank] = order
    return members


# ── Nearest neighbours: exact up to about a million vectors, by compressed codes beyond ─────────────────────────────


MOST_EXACT = 1_000_000
"""Most vectors that are searched exhaustively."""

BLOCK = 65_536
"""Vectors processed at a time."""

CANDIDATES = 256
"""Candidates per query that are found by their codes, then compared exactly."""

PROBED = 8
"""A query probes one in this many lists of the inverted file, and at least `LEAST_PROBES`."""

LEAST_PROBES = 64

TRAINED_PER_LIST = 50
"""Vectors per list that the centres are trained on."""


@dataclass(frozen=True)
class StoredVectors:
    """N vectors as the rows of several arrays, usually memory-mapped and read a few at a time."""

    arrays: tuple[NDArray[np.float16], ...]  # each (n, D)

    @property
    def starts(self) -> NDArray[np.int64]:
        """The first row of each array, and the total number of rows."""
        return np.cumsum([0, *map(len, self.arrays)]).astype(np.int64)

    def __len__(self) -> int:
        return sum(map(len, self.arrays))

    def rows(self, places: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the vectors `(n, D)` at rows `places` `(n,)`."""
        vectors = np.empty((len(places), self.arrays[0].shape[1]), dtype=np.float32)
        numbers = np.searchsorted(self.starts, places, side="right") - 1
        for number in np.unique(numbers):
            inside = numbers == number
            vectors[inside] = self.arrays[number][places[inside] - self.starts[number]]
        return vectors


@dataclass(frozen=True)
class Whitening:
    """Turns directions into vectors: subtracts `mean`, multiplies by `matrix`, and normalises to length 1."""

    mean: NDArray[np.float32]  # (C,)
    matrix: NDArray[np.float32]  # (C, D)

    def apply(self, images: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the vectors `(N, D)`, of length 1, of directions `(N, C)`."""
        values = (images.astype(np.float32) - self.mean) @ self.matrix
        length = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        return np.asarray(values / length, dtype=np.float32)


def whitening_of(images: NDArray[np.floating], dimensions: int, power: float = 0.5) -> Whitening:
    """Return the whitening learned on `images` `(N, C)`: principal axes, each divided by its spread to the `power`.

    Power 0.5, rather than full whitening with 1, limits the noise in the last axes (Jégou & Chum, ECCV 2012). N images
    span N - 1 axes at most. If these are fewer than `dimensions`, random axes are added, which keep what the images
    added later differ in, and none is divided.
    """
    count, width = images.shape
    kept = min(dimensions, width)
    mean = images.mean(axis=0, dtype=np.float64)
    centred = images.astype(np.float64) - mean
    values, axes = np.linalg.eigh(centred.T @ centred / count)
    order = np.argsort(-values)[: min(kept, count - 1)]
    if len(order) < kept:
        random = np.random.default_rng(0).standard_normal((width, kept - len(order)))
        matrix, _ = np.linalg.qr(np.hstack([axes[:, order], random]))
        mean *= count / (count + 1)  # of a single image something has to be left
    else:
        spread = np.sqrt(np.maximum(values[order], 1e-9 * values.max()))
        matrix = axes[:, order] / spread**power
    return Whitening(mean.astype(np.float32), matrix.astype(np.float32))


def lists_for(count: int) -> int:
    """Return the number of lists for `count` vectors: about twice its square root, rounded to a power of two."""
    return int(2 ** round(math.log2(2 * math.sqrt(max(count, 1)))))


def inverted_file(vectors: StoredVectors, code_bytes: int | None = None, seed: int = 0) -> Any:
    """Return a faiss index of the codes of `vectors`, trained on a sample of them that is drawn from `seed`.

    `code_bytes` is the size of a code, by default a quarter of the vectors' length. Ids are rows. The time grows with N
    times the square root of N.
    """
    width = vectors.arrays[0].shape[1]
    count, lists = len(vectors), lists_for(len(vectors))
    pieces = next(
        number for number in range(min(width, 2 * (code_bytes or max(1, width // 4))), 0, -1) if width % number == 0
    )
    index = faiss.IndexIVFPQFastScan(faiss.IndexFlatL2(width), width, lists, pieces, 4)
    index.cp.niter = 8
    index.cp.seed = 1 + seed
    chosen = np.sort(generator(seed, "lists").choice(count, min(count, TRAINED_PER_LIST * lists), replace=False))
    index.train(vectors.rows(chosen))
    add_to(index, vectors, 0)
    return index


def open_codes(path: Path | str) -> Any:
    """Open a file of `faiss.write_index`, mapped into memory; only what queries touch is read."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)


def add_to(index: Any, vectors: StoredVectors, first: int) -> None:
    """Add the codes of all `vectors` from row `first` on to `index`, a block at a time."""
    for start in range(first, len(vectors), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(vectors)))
        index.add_with_ids(vectors.rows(rows), rows)


def neighbours(
    queries: NDArray[np.floating],
    vectors: StoredVectors,
    k: int,
    *,
    index: Any = None,
    removed: NDArray[np.integer] | None = None,
    probes: int | None = None,
    candidates: int = CANDIDATES,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return cosines and rows `(Q, k)` of the `vectors` nearest to `queries` `(Q, D)`, best first, ties by row.

    Without an `index` every vector is compared. Rows in `removed` are never returned. Where fewer than `k` are found,
    the rest has row -1 and cosine -inf.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    excluded = np.zeros(0, dtype=np.int64) if removed is None else np.asarray(removed, dtype=np.int64)
    if index is None:
        return _exact(queries, vectors, k, excluded)
    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = min(probes or max(LEAST_PROBES, index.nlist // PROBED), index.nlist)
    _, found = index.search(queries, max(k, candidates), params=parameters)
    cosines = np.full((len(queries), k), -np.inf, dtype=np.float32)
    places = np.full((len(queries), k), -1, dtype=np.int64)
    for number, candidate_rows in enumerate(found):
        is_kept = (candidate_rows >= 0) & ~np.isin(candidate_rows, excluded)
        rows = np.sort(candidate_rows[is_kept])  # sorted to read the disk in order
        near = vectors.rows(rows) @ queries[number]
        best = np.lexsort((rows, -near))[:k]
        cosines[number, : len(best)], places[number, : len(best)] = near[best], rows[best]
    return cosines, places


def _exact(
    queries: NDArray[np.float32], vectors: StoredVectors, k: int, removed: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    cosines = np.full((len(queries), k), -np.inf, dtype=np.float32)
    places = np.full((len(queries), k), -1, dtype=np.int64)
    for array, start in zip(vectors.arrays, vectors.starts, strict=False):
        for first in range(0, len(array), BLOCK):
            block = array[first : first + BLOCK]
            near = queries @ block.astype(np.float32).T
            rows = start + first + np.arange(len(block))
            near[:, np.isin(rows, removed)] = -np.inf
            top = min(k, len(block))
            chosen = np.argpartition(-near, top - 1, axis=1)[:, :top]
            cosines = np.concatenate([cosines, np.take_along_axis(near, chosen, axis=1)], axis=1)
            places = np.concatenate([places, rows[chosen]], axis=1)
            order = np.lexsort((places, -cosines), axis=1)[:, :k]
            cosines, places = np.take_along_axis(cosines, order, axis=1), np.take_along_axis(places, order, axis=1)
    return cosines, np.where(np.isfinite(cosines), places, -1)
