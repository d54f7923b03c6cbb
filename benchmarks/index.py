"""Neighbours among 0.1 to 4 million references: size, building time, one query's milliseconds, recall of the nearest.

    python benchmarks/index.py ../shared/features/gldv1_872x90_pca128.npz [--counts 100000 1000000 4132914]

References are made from true features of the archive: for each, two images of one landmark are drawn, mixed, and noise
of the size of the differences within landmarks is added, so that mean, covariance and clusters are theirs. Queries are
true images, each near to others of its landmark. `real` asks the 78,480 true features alone: a tenth as queries,
the rest as references. Beside ours, in the same run on the same vectors: exact search in half precision, and
faiss's own defaults (`IVF4096,PQ32` with its nprobe of 1). One thread; times are medians over single queries.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from results import keep

from landmarks.recognition.vectors import Parts, inverted_file, lists_for, neighbours

QUERIES = 200
DIMENSIONS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--counts", type=int, nargs="*", default=[100_000, 1_000_000, 4_132_914])
    parser.add_argument(
        "--scratch", type=Path, default=None, help="a folder for the made references, 1 GB for 4 million"
    )
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    faiss.omp_set_num_threads(1)
    kept = np.load(chosen.features)
    true, labels = unit(kept["x"].astype(np.float32)), kept["y"]
    rows = []
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as folder:
        split = np.random.default_rng(chosen.seed).permutation(len(true))
        queries, others = true[split[:QUERIES]], true[split[len(true) // 10 :]].astype(np.float16)
        rows += measured("real", Parts((others,)), queries, Path(folder))
        for count in chosen.counts:
            made = references(true, labels, count, Path(folder) / f"{count}.npy", chosen.seed)
            rows += measured("made", Parts((made,)), queries, Path(folder))
            keep("index", rows, seed=chosen.seed, queries=QUERIES, dimensions=DIMENSIONS)


def references(true: np.ndarray, labels: np.ndarray, count: int, path: Path, seed: int) -> np.ndarray:
    """Write `count` made vectors of length 1 to `path` and return them as a memory map."""
    random = np.random.default_rng((seed, count))
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(labels.max() + 2))
    within = np.concatenate([true[order[a:b]] - true[order[a:b]].mean(0) for a, b in itertools.pairwise(ends)])
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, true.shape[1]))
    for start in range(0, count, 65_536):
        size = min(65_536, count - start)
        landmark = random.integers(len(ends) - 1, size=size)
        first, second = (
            order[ends[landmark] + (random.random(size) * (ends[landmark + 1] - ends[landmark])).astype(int)]
            for _ in range(2)
        )
        share = random.random((size, 1)).astype(np.float32)
        noise = within[random.integers(len(within), size=size)] * random.choice([-0.5, 0.5], size=(size, 1))
        mixed = share * true[first] + (1 - share) * true[second] + noise.astype(np.float32)
        made[start : start + size] = unit(mixed)
    made.flush()
    return np.load(path, mmap_mode="r")


def measured(kind: str, vectors: Parts, queries: np.ndarray, folder: Path) -> list[dict[str, Any]]:
    count = len(vectors)
    exact = faiss.IndexScalarQuantizer(DIMENSIONS, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, count, 65_536):
        exact.add(vectors.rows(np.arange(start, min(start + 65_536, count))))
    truth = exact.search(queries, 10)[1]
    shape = {"references": kind, "count": count}
    found = [{**shape, "index": "exact", **timed(lambda query: exact.search(query, 10)[1], queries, truth)}]
    found[-1] |= {"megabytes": count * DIMENSIONS * 2 / 1e6, "build_seconds": None}

    started = time.monotonic()
    index = inverted_file(vectors)
    seconds = time.monotonic() - started
    path = folder / f"{kind}-{count}.faiss"
    faiss.write_index(index, str(path))
    del index
    mapped = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    for probes, candidates in ((16, 128), (32, 256), (64, 256), (64, 1024)):

        def ours(query: np.ndarray, probes: int = probes, candidates: int = candidates) -> np.ndarray:
            return neighbours(query, vectors, 10, index=mapped, probes=probes, candidates=candidates)[1]

        name = f"IVF{lists_for(count)},PQ{DIMENSIONS // 2}, {probes} probes, {candidates} compared again"
        found.append({**shape, "index": name, **timed(ours, queries, truth)})
        found[-1] |= {"megabytes": path.stat().st_size / 1e6, "build_seconds": seconds}
    path.unlink()
    if count <= 1_000_000:
        started = time.monotonic()
        theirs = faiss.index_factory(DIMENSIONS, f"IVF{min(4096, lists_for(count))},PQ32", faiss.METRIC_INNER_PRODUCT)
        theirs.cp.niter = 8
        theirs.train(vectors.rows(np.arange(0, count, max(1, count // 200_000))))
        for start in range(0, count, 65_536):
            theirs.add(vectors.rows(np.arange(start, min(start + 65_536, count))))
        seconds = time.monotonic() - started
        found.append(
            {
                **shape,
                "index": "faiss: IVF,PQ32, its nprobe",
                **timed(lambda q: theirs.search(q, 10)[1], queries, truth),
            }
        )
        found[-1] |= {"megabytes": count * 40 / 1e6, "build_seconds": seconds}
    return found


def timed(search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Return milliseconds of one query, and how often the true nearest, and the true ten, are found."""
    milliseconds, first, ten = [], 0, 0
    for number in range(len(queries)):
        started = time.perf_counter()
        found = search(queries[number : number + 1])[0]
        milliseconds.append(1000 * (time.perf_counter() - started))
        first += int(found[0] == truth[number, 0])
        ten += len(np.intersect1d(found, truth[number]))
    return {
        "ms": float(np.median(milliseconds)),
        "ms_p95": float(np.percentile(milliseconds, 95)),
        "recall_at_1": first / len(queries),
        "recall_at_10": ten / truth.size,
    }


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


if __name__ == "__main__":
    main()
