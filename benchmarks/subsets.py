"""Variation of accuracy with the 20 landmarks drawn: 200 draws from features of 872, and learning curves.

    python benchmarks/subsets.py FEATURES.npz

FEATURES.npz holds the arrays `x` (N, C), `y` (N,) and optionally `groups` (N,).
"""

from __future__ import annotations

import sys
import time

import numpy as np

from landmarks.evaluation.subsets import distribution, learning_curves, subset_accuracies


def main(path: str) -> None:
    arrays = np.load(path, allow_pickle=False)
    features, labels, groups = arrays["x"], arrays["y"], arrays.get("groups")
    print(f"{len(labels)} images of {len(np.unique(labels))} landmarks, features of {features.shape[1]} numbers")
    started = time.monotonic()
    accuracies = subset_accuracies(features, labels, groups, landmarks=20, draws=200)
    seconds = time.monotonic() - started
    print(f"200 draws of 20 landmarks in {seconds:.1f} s")
    for name, value in distribution(accuracies).items():
        print(f"  {name:10s} {value:.4g}")
    counts, edges = np.histogram(accuracies, bins=12)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        print(f"  {100 * low:5.1f} to {100 * high:5.1f} %  {'#' * int(count)}")
    started = time.monotonic()
    curves = learning_curves(features, labels, groups)
    print(f"learning curves in {time.monotonic() - started:.1f} s")
    for row in curves.iter_rows(named=True):
        shares = " ".join(f"{100 * row[key]:5.1f}" for key in ("mean", "low", "high"))
        print(f"  {row['varied']:12s} {row['value']:4d}  {shares}")


if __name__ == "__main__":
    main(sys.argv[1])
