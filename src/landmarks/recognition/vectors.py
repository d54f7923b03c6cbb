"""Neighbours among any number of vectors: exact up to about a million, by compressed codes and a second look beyond.

Vectors have length 1 and lie on disk in half precision, in parts that are only ever added. Up to `MOST_EXACT` a query
is compared with each of them. Beyond, faiss finds candidates in an inverted file (Jégou et al., PAMI 2011) of product
quantised codes of four bits, compared in registers (André et al., PAMI 2021) and mapped into memory, and the
candidates' own vectors decide: what is answered are true cosines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from landmarks.support.seeds import generator

MOST_EXACT = 1_000_000
"""Vectors that are compared one by one."""

BLOCK = 65_536
"""Vectors at a time."""

CANDIDATES = 256
"""Found by their codes, for each query, and then compared exactly."""

PROBED = 8
"""A query looks into one in so many lists of the inverted file, but into `LEAST_PROBES` at least."""

LEAST_PROBES = 64

TRAINED_PER_LIST = 50
"""Vectors that a list's centre is found from."""


@dataclass(frozen=True)
class StoredVectors:
    """The stored vectors: N rows in several arrays, memory maps most often, read a few at a time."""

    arrays: tuple[NDArray[np.float16], ...]  # each (n, D)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each array begins among all rows, and where the last ends."""
        return np.cumsum([0, *(len(one) for one in self.arrays)]).astype(np.int64)

    def __len__(self) -> int:
        return sum(map(len, self.arrays))

    def rows(self, places: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the vectors at `places` `(n,)` as `(n, D)`."""
        found = np.empty((len(places), self.arrays[0].shape[1]), dtype=np.float32)
        part = np.searchsorted(self.starts, places, side="right") - 1
        for number in np.unique(part):
            mine = part == number
            found[mine] = self.arrays[number][places[mine] - self.starts[number]]
        return found


@dataclass(frozen=True)
class Whitening:
    """Directions become vectors: less `mean`, times `matrix`, of length 1."""

    mean: NDArray[np.float32]  # (C,)
    matrix: NDArray[np.float32]  # (C, D)

    def apply(self, images: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return directions `(N, C)` as vectors `(N, D)` of length 1."""
        values = (images.astype(np.float32) - self.mean) @ self.matrix
        length = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        return np.asarray(values / length, dtype=np.float32)


def whitening_of(images: NDArray[np.floating], dimensions: int, power: float = 0.5) -> Whitening:
    """Return the whitening learned on `images` `(N, C)`: their principal axes, each divided by its spread to a power.

    Half of the whole (power 0.5) keeps what noise there is in the last axes small (Jégou & Chum, ECCV 2012).
    """
    mean = images.mean(axis=0, dtype=np.float64)
    centred = images.astype(np.float64) - mean
    values, axes = np.linalg.eigh(centred.T @ centred / len(images))
    order = np.argsort(-values)[: min(dimensions, len(images) - 1, images.shape[1])]
    spread = np.sqrt(np.maximum(values[order], 1e-9 * values.max()))
    return Whitening(mean.astype(np.float32), (axes[:, order] / spread**power).astype(np.float32))


def lists_for(count: int) -> int:
    """Return how many lists an inverted file of `count` vectors has: about twice the root of it, a power of two."""
    return int(2 ** round(math.log2(2 * math.sqrt(max(count, 1)))))


def inverted_file(vectors: StoredVectors, code_bytes: int | None = None, seed: int = 0) -> Any:
    """Return a faiss index of the codes of `vectors`, trained on some of them, drawn from `seed`.

    `code_bytes` for each vector, a quarter of its length without; ids are rows. Time grows with N times the root of N.
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
    """Open a faiss index that `faiss.write_index` wrote, mapped into memory: what a query touches is read."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)


def add_to(index: Any, vectors: StoredVectors, first: int) -> None:
    """Add the rows of `vectors` from `first` on to the codes of `index`, a block at a time."""
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
    """Return cosines and rows `(Q, k)` of the nearest `vectors` to `queries` `(Q, D)`, best first, equal ones by row.

    Without an `index` every vector is compared. Rows that are `removed` are never answered; where fewer than `k` are
    found the rest has row -1 and cosine -inf.
    """
    asked = np.ascontiguousarray(queries, dtype=np.float32)
    gone = np.zeros(0, dtype=np.int64) if removed is None else np.asarray(removed, dtype=np.int64)
    if index is None:
        return _exact(asked, vectors, k, gone)
    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = min(probes or max(LEAST_PROBES, index.nlist // PROBED), index.nlist)
    _, found = index.search(asked, max(k, candidates), params=parameters)
    cosines = np.full((len(asked), k), -np.inf, dtype=np.float32)
    places = np.full((len(asked), k), -1, dtype=np.int64)
    for row, mine in enumerate(found):
        kept = np.sort(mine[(mine >= 0) & ~np.isin(mine, gone)])  # in the order in which they lie on the disk
        near = vectors.rows(kept) @ asked[row]
        best = np.lexsort((kept, -near))[:k]
        cosines[row, : len(best)], places[row, : len(best)] = near[best], kept[best]
    return cosines, places


def _exact(
    asked: NDArray[np.float32], vectors: StoredVectors, k: int, gone: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    cosines = np.full((len(asked), k), -np.inf, dtype=np.float32)
    places = np.full((len(asked), k), -1, dtype=np.int64)
    for array, start in zip(vectors.arrays, vectors.starts, strict=False):
        for first in range(0, len(array), BLOCK):
            some = array[first : first + BLOCK]
            near = asked @ some.astype(np.float32).T
            rows = start + first + np.arange(len(some))
            near[:, np.isin(rows, gone)] = -np.inf
            top = min(k, len(some))
            chosen = np.argpartition(-near, top - 1, axis=1)[:, :top]
            cosines = np.concatenate([cosines, np.take_along_axis(near, chosen, axis=1)], axis=1)
            places = np.concatenate([places, rows[chosen]], axis=1)
            order = np.lexsort((places, -cosines), axis=1)[:, :k]
            cosines, places = np.take_along_axis(cosines, order, axis=1), np.take_along_axis(places, order, axis=1)
    return cosines, np.where(np.isfinite(cosines), places, -1)
