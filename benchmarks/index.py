"""Neighbours among 0.1 to 10 million references: index size, build time, query time and recall.

    python benchmarks/index.py ../shared/features/gldv1_872x90_pca128.npz [--counts 100000 1000000 4132914 10000000]

Real features of the archive are whitened as an index whitens them. A tenth of them serves as queries; `real` searches
the other nine tenths. Synthetic references are made from these: two images of one landmark are mixed, and half of
another image's difference from its landmark's mean is added. `likeness` says how realistic they are, for equal numbers
of real and synthetic references: the cosine of the nearest one, and how many of 512 lists must be searched to find it.
For comparison, on the same vectors: exact search in half precision, and faiss's defaults (`IVF…,PQ32`, with its nprobe
of 1 and with as many probes as ours). Up to a million references, codes that were not chosen are measured too. One
thread; times are medians over single queries; codes are memory-mapped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from results import FOLDER, save

from landmarks.recognition.vectors import (
    CANDIDATES,
    LEAST_PROBES,
    PROBED,
    StoredVectors,
    inverted_file,
    neighbours,
    open_codes,
    whitening_of,
)

QUERIES = 200
DIMENSIONS = 128
BLOCK = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--counts", nargs="*", default=["real", "100000", "1000000", "4132914", "10000000"])
    parser.add_argument("--defaults", type=int, default=4_132_914, help="largest count for faiss's defaults")
    parser.add_argument("--add", action="store_true", help="add to the stored results, replacing equal counts")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder with room for 256 bytes per reference")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    faiss.omp_set_num_threads(1)
    arrays = np.load(chosen.features)
    features, labels = unit(arrays["x"].astype(np.float32)), arrays["y"]
    order = np.random.default_rng(chosen.seed).permutation(len(features))
    query_rows, left = order[:QUERIES], order[len(features) // 10 :]
    whitening = whitening_of(features[left], DIMENSIONS)
    queries, others = whitening.apply(features[query_rows]), whitening.apply(features[left])
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as folder:
        place = Path(folder) / "made.npy"
        made = references(others, labels[left], len(left), place, chosen.seed)
        likeness = {"true": likeness_of(others, queries), "made": likeness_of(made.astype(np.float32), queries)}
        print(likeness, flush=True)
        del made
        rows: list[dict[str, Any]] = []
        if chosen.add:
            rows = json.loads((FOLDER / "index.json").read_text())["rows"]
        for count in chosen.counts:
            if count == "real":
                kind, vectors = "real", StoredVectors((others.astype(np.float16),))
            else:
                kind = "made"
                vectors = StoredVectors((references(others, labels[left], int(count), place, chosen.seed),))
            rows = [row for row in rows if (row["references"], row["count"]) != (kind, len(vectors))]
            for row in measured(kind, vectors, queries, Path(folder), defaults=chosen.defaults):
                print(row, flush=True)
                rows.append(row)
                about = {"seed": chosen.seed, "queries": QUERIES, "dimensions": DIMENSIONS, "likeness": likeness}
                save("index", rows, **about)
            del vectors


def likeness_of(references: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    """Return the median cosine to the nearest reference, and the shares of 512 lists to search for 97 and 99 %."""
    cosines, nearest = faiss.knn(queries, np.ascontiguousarray(references), 1, faiss.METRIC_INNER_PRODUCT)
    lists = faiss.Kmeans(DIMENSIONS, 512, niter=8, max_points_per_centroid=50, seed=1)
    lists.train(references)
    own = lists.index.search(np.ascontiguousarray(references[nearest[:, 0]]), 1)[1]
    ranks = (lists.index.search(queries, 512)[1] == own).argmax(axis=1)
    found = {f"lists for {share:g}": float(np.quantile(ranks + 1, share)) / 512 for share in (0.97, 0.99)}
    return {"cosine": float(np.median(cosines)), **found}


def references(real: np.ndarray, labels: np.ndarray, count: int, path: Path, seed: int) -> np.ndarray:
    """Write `count` synthetic unit vectors to `path` and return them as a memory map."""
    random = np.random.default_rng((seed, count))
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(labels.max() + 2))
    within = np.concatenate([real[order[a:b]] - real[order[a:b]].mean(0) for a, b in itertools.pairwise(ends)])
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, real.shape[1]))
    for start in range(0, count, 65_536):
        size = min(65_536, count - start)
        landmark = random.integers(len(ends) - 1, size=size)
        first, second = (
            order[ends[landmark] + (random.random(size) * (ends[landmark + 1] - ends[landmark])).astype(int)]
            for _ in range(2)
        )
        share = random.random((size, 1)).astype(np.float32)
        noise = within[random.integers(len(within), size=size)] * random.choice([-0.5, 0.5], size=(size, 1))
        mixed = share * real[first] + (1 - share) * real[second] + noise.astype(np.float32)
        made[start : start + size] = unit(mixed)
    made.flush()
    return np.load(path, mmap_mode="r")


def measured(
    kind: str, vectors: StoredVectors, queries: np.ndarray, folder: Path, *, defaults: int
) -> Iterator[dict[str, Any]]:
    count = len(vectors)
    blocks = [np.arange(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    shape = {"references": kind, "count": count}
    row, truth = exact_search(shape, vectors, queries, blocks)
    yield row

    started, worked = time.monotonic(), time.process_time()
    index = inverted_file(vectors)
    seconds = (time.monotonic() - started, time.process_time() - worked)
    common: dict[str, Any] = {"path": folder / "codes", "vectors": vectors, "queries": queries, "truth": truth}
    lists, centres = index.nlist, index.quantizer.reconstruct_n(0, index.nlist)
    most = max(LEAST_PROBES, lists // PROBED)
    name = f"ours: IVF{lists},PQ{DIMENSIONS // 2}x4fs"
    settings = ((most // 4, 128), (most // 2, CANDIDATES), (most, CANDIDATES), (most, 512))
    yield from with_settings(shape, name, index, settings=settings, **common, seconds=seconds)
    del index
    if count <= defaults:
        started, worked = time.monotonic(), time.process_time()
        theirs = faiss.index_factory(DIMENSIONS, f"IVF{lists},PQ32", faiss.METRIC_INNER_PRODUCT)
        theirs.train(vectors.rows(np.arange(0, count, max(1, count // 200_000))))
        for rows in blocks:
            theirs.add(vectors.rows(rows))
        seconds = (time.monotonic() - started, time.process_time() - worked)
        for probes in (1, most):
            theirs.nprobe = probes
            result = timed(lambda query: theirs.search(query, 10)[1], queries, truth)
            size = {"megabytes": count * 40 / 1e6, "build_seconds": seconds[0], "build_processor_seconds": seconds[1]}
            yield {**shape, "index": f"faiss: IVF{lists},PQ32, {probes} probes", **result, **size}
        del theirs
    if count <= 1_000_000:
        for name, other in other_codes(centres):
            started, worked = time.monotonic(), time.process_time()
            other.train(vectors.rows(blocks[0]))
            for rows in blocks:
                other.add(vectors.rows(rows))
            seconds = (time.monotonic() - started, time.process_time() - worked)
            yield from with_settings(shape, name, other, settings=((most, CANDIDATES),), **common, seconds=seconds)


def exact_search(
    shape: dict[str, Any], vectors: StoredVectors, queries: np.ndarray, blocks: list[np.ndarray]
) -> tuple[dict[str, Any], np.ndarray]:
    exact = faiss.IndexScalarQuantizer(DIMENSIONS, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for rows in blocks:
        exact.add(vectors.rows(rows))
    truth = exact.search(queries, 10)[1]
    result = timed(lambda query: exact.search(query, 10)[1], queries[:50], truth)
    size = {"megabytes": len(vectors) * DIMENSIONS * 2 / 1e6, "build_seconds": None, "build_processor_seconds": None}
    return {**shape, "index": "exact", **result, **size}, truth


def other_codes(centres: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield indexes with the same lists and other codes."""
    lists, width = centres.shape
    for name in ("PQ64x8", "RaBitQ 1 bit fs"):
        quantizer = faiss.IndexFlatL2(width)
        quantizer.add(centres)
        if name == "PQ64x8":
            yield name, faiss.IndexIVFPQ(quantizer, width, lists, width // 2, 8)
        else:
            yield name, faiss.IndexIVFRaBitQFastScan(quantizer, width, lists, faiss.METRIC_L2, 32, True, 1)


def with_settings(
    shape: dict[str, Any],
    name: str,
    index: Any,
    *,
    seconds: tuple[float, float],
    path: Path,
    vectors: StoredVectors,
    queries: np.ndarray,
    truth: np.ndarray,
    settings: tuple[tuple[int, int], ...],
) -> list[dict[str, Any]]:
    faiss.write_index(index, str(path))
    mapped, rows = open_codes(path), []
    for probes, candidates in settings:

        def ours(query: np.ndarray, probes: int = probes, candidates: int = candidates) -> np.ndarray:
            return neighbours(query, vectors, 10, index=mapped, probes=probes, candidates=candidates)[1]

        description = f"{name}, {probes} probes, {candidates} compared again"
        rows.append({**shape, "index": description, **timed(ours, queries, truth)})
        rows[-1] |= {
            "megabytes": path.stat().st_size / 1e6,
            "build_seconds": seconds[0],
            "build_processor_seconds": seconds[1],
        }
    return rows


def timed(search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Return the milliseconds of a query, and the recall of the nearest and of the ten nearest."""
    milliseconds, processor, first, ten = [], [], 0, 0
    for number in range(len(queries)):
        started, before = time.perf_counter(), time.process_time()
        found = search(queries[number : number + 1])[0]
        milliseconds.append(1000 * (time.perf_counter() - started))
        processor.append(1000 * (time.process_time() - before))
        first += int(found[0] == truth[number, 0])
        ten += len(np.intersect1d(found, truth[number]))
    return {
        "ms": float(np.median(milliseconds)),
        "processor_ms": float(np.median(processor)),
        "ms_p95": float(np.percentile(milliseconds, 95)),
        "recall_at_1": first / len(queries),
        "recall_at_10": ten / (10 * len(queries)),
    }


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


if __name__ == "__main__":
    main()
