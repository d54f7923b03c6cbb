"""Landmarks held out of training and learned afterwards from a few images: accuracy on new, old and all landmarks.

    python benchmarks/learn.py DATA TESTDATA WEIGHTS ../shared/features/gldv1_872x90_pca128.npz [--backbone NAME]

DATA and TESTDATA are datasets (`fetch`, `split`) of the mirror's train and test images. Features of the frozen backbone
are computed once and kept in --cache. Five draws hold out 5 of 25 landmarks; a linear head (logistic regression,
trained to convergence) is fitted on the rest. The held-out landmarks are then learned from 1, 2, 5 and 10 images of the
train split, and the test set is answered; nothing is fitted to it but thresholds on its Public half. Compared with:
`anew few`, a head trained again on the old images and the same few new ones; `anew all`, on all images of the new
landmarks, hundreds of some; `anew all, both`, that head and a closed form of the same images together; `nearest`, the
nearest image's landmark. Thresholds let 5 % of the unknown Public images pass and are reported on Private.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from results import save
from scipy.special import log_softmax, logsumexp

from landmarks.dataset.manifest import NO_LABEL, Dataset, open_dataset
from landmarks.evaluation.metrics import auroc, calibration_error, threshold_for_false_acceptance
from landmarks.models.network import build_network
from landmarks.models.rewriting import fold_batch_norm
from landmarks.recognition.answering import learned_head
from landmarks.recognition.closed_form import Memory, memory_of, with_learned
from landmarks.recognition.gallery import make_gallery, rejection_scores
from landmarks.recognition.learned import Learned
from landmarks.recognition.vectors import directions
from landmarks.training.discriminant import Validation, class_moments, fitted_scale, mean_log_probabilities
from landmarks.training.loader import batches, normalised

IMAGES = (1, 2, 5, 10)
HELD_OUT, DRAWS = 5, 5


class Trained(torch.nn.Module):
    """A linear head on centred directions, from features to logits, as `LearnedHead` extends one."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
        super().__init__()
        self.classes, self.mean = classes, images.mean(0)
        self.weight = torch.zeros(classes, images.shape[1], requires_grad=True)
        self.bias = torch.zeros(classes, requires_grad=True)
        x, y = torch.from_numpy(self.scaled(images)), torch.from_numpy(labels)
        optimizer = torch.optim.LBFGS([self.weight, self.bias], max_iter=60, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(x @ self.weight.T + self.bias, y)
            value = value + 1e-4 * self.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)

    def scaled(self, images: np.ndarray) -> np.ndarray:
        """Return directions minus their mean, scaled to about unit variance."""
        return ((images - self.mean) * np.sqrt(images.shape[1])).astype(np.float32)

    @torch.no_grad()
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K) of features (N, C)."""
        x = torch.from_numpy(self.scaled(directions(features.numpy())))
        return x @ self.weight.T + self.bias


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("many", type=Path)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--average-flip", action="store_true", help="average features over an image and its flip")
    parser.add_argument("--cache", type=Path, default=Path("features.npz"))
    chosen = parser.parse_args()
    data, test = open_dataset(chosen.data), open_dataset(chosen.test)
    if not chosen.cache.exists():
        network = build_network(
            chosen.backbone,
            classes=25,
            weights=chosen.weights,
            image_size=chosen.image_size,
            average_flip=chosen.average_flip,
        )
        both = np.concatenate([features_of(fold_batch_norm(network), dataset) for dataset in (data, test)])
        np.savez(chosen.cache, gap=both)
    gap = np.load(chosen.cache)["gap"].astype(np.float32)
    count = len(data.images)
    rows = mirror(data, test, gap[:count], gap[count:])
    many = many_landmarks(chosen.many)
    settings = {"backbone": chosen.backbone, "image_size": chosen.image_size, "average_flip": chosen.average_flip}
    save("learn", rows, **settings, many=many)
    print(many)


@torch.no_grad()
def features_of(network: Any, dataset: Dataset) -> np.ndarray:
    found = []
    for batch in batches(dataset, dataset.split("all"), network.preprocessing, batch_size=32):
        found.append(network.features(normalised(batch.pixels, network.preprocessing)).numpy().astype(np.float16))
    return np.concatenate(found)


def mirror(  # noqa: PLR0915  the protocol from top to bottom
    data: Dataset, test: Dataset, features: np.ndarray, test_features: np.ndarray
) -> list[dict[str, Any]]:
    images = data.split("all")
    split = images.join(data.splits, on="image_id", maintain_order="left")["split"].to_numpy()
    label = images["label"].cast(pl.Int64).fill_null(NO_LABEL).to_numpy()
    names = dict(data.labels.select("landmark_id", "label").rows())
    table = test.split("all")
    truth = np.array([names.get(landmark, NO_LABEL) for landmark in table["landmark_id"].to_list()])
    public = (table["usage"] == "Public").to_numpy()
    train, val = (np.flatnonzero((split == name) & (label >= 0)) for name in ("train", "val"))
    x, queries = directions(features), directions(test_features)
    classes, known = len(names), truth >= 0
    anew = Trained(x[train], label[train], classes)
    ceiling = anew(torch.from_numpy(test_features)).numpy()
    both_ceiling = answered_by_both(anew, features, test_features, (train, val), label)
    results: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for draw in range(DRAWS):
        new = np.sort(np.random.default_rng(draw).permutation(classes)[:HELD_OUT])
        order = np.concatenate([np.setdiff1d(np.arange(classes), new), new])
        place = np.argsort(order)
        old = classes - HELD_OUT
        y, z = np.where(label >= 0, place[label], NO_LABEL), np.where(known, place[truth], NO_LABEL)
        old_train, old_val = train[y[train] < old], val[y[val] < old]
        head = Trained(x[old_train], y[old_train], old)
        memory, temperature = remembered(head, features, old_train, old_val, y)
        gallery = make_gallery(x[old_train].astype(np.float16), y[old_train], "")
        before = head(torch.from_numpy(test_features)).numpy() / temperature
        old_before = accuracies(before, z, old)["old"]
        results["trained, old alone", 0].append(accuracies(before, z, old))
        results["anew all", 0].append(accuracies(ceiling[:, order], z, old))
        results["anew all, both", 0].append(accuracies(both_ceiling[:, order], z, old))
        for images_each in IMAGES:
            random = np.random.default_rng((draw, images_each))
            picks = [
                random.choice(own, min(images_each, len(own)), replace=False)
                for own in (train[label[train] == landmark] for landmark in new)
            ]
            started, learned = time.perf_counter(), Learned()
            for number, pick in enumerate(picks):
                learned = learned.plus(x[pick], f"new {number}")
            made = learned_head(head, features.shape[1], memory, learned, temperature)
            seconds = time.perf_counter() - started
            with torch.no_grad():
                logits = made(torch.from_numpy(test_features)).numpy() / temperature
            row = accuracies(logits, z, old) | {"seconds": seconds}
            scores = rejection_scores(test_features, logits * temperature, with_learned(gallery, learned, old))
            row |= unknown({f: scores[f] for f in ("knn", "mahalanobis")}, known, public)
            row["old_change"] = row["old"] - old_before
            results["learned", images_each].append(row)
            few = np.concatenate([old_train, *picks])
            cosines = queries @ x[few].T
            nearest = np.stack([cosines[:, y[few] == landmark].max(1) for landmark in range(classes)], axis=1)
            results["nearest", images_each].append(accuracies(nearest, z, old))
            if images_each == 5:
                again = Trained(x[few], y[few], classes)(torch.from_numpy(test_features)).numpy()
                results["anew few", images_each].append(accuracies(again, z, old))
                one_by_one = Learned()
                for number, pick in sorted(
                    ((n, image) for n, own in enumerate(picks) for image in own), key=lambda p: p[1]
                ):
                    one_by_one = one_by_one.plus(x[pick][None], f"new {number}")
                other_order = learned_head(head, features.shape[1], memory, one_by_one, temperature)
                places = [*range(old), *(old + one_by_one.names.index(name) for name in learned.names)]
                row["weights_differ_by"] = float((other_order.weights[:, places] - made.weights).abs().max())
        print(f"draw {draw}", flush=True)
    columns = [
        "old",
        "new",
        "all",
        "old_change",
        "auroc_msp",
        "auroc_knn",
        "auroc_mahalanobis",
        "accepted",
        "lost",
        "ece",
    ]
    rows = []
    for (method, each), found in results.items():
        row: dict[str, Any] = {"method": method, "images": each}
        for name in [*columns, "seconds", "weights_differ_by"]:
            values = [draw[name] for draw in found if name in draw]
            row[name] = float(np.mean(values)) if values else None
        row["old_change_worst"] = min((draw["old_change"] for draw in found if "old_change" in draw), default=None)
        rows.append(row)
    return rows


def remembered(
    head: Trained, features: np.ndarray, train: np.ndarray, val: np.ndarray, labels: np.ndarray
) -> tuple[Memory, float]:
    """Return the memory of the images at `train`, weighted on those at `val`, and the temperature of `head` on them."""
    x = directions(features)
    logits = head(torch.from_numpy(features[val])).numpy().astype(np.float64)
    temperature = fitted_scale(logits, labels[val])
    logs = log_softmax(logits / temperature, axis=1).astype(np.float16)
    validation = Validation(x[val].astype(np.float16), labels[val], logs)
    return memory_of(
        class_moments(x[train], labels[train], head.classes), validation, x[train], labels[train]
    ), temperature


def answered_by_both(
    head: Trained, features: np.ndarray, test_features: np.ndarray, splits: tuple[np.ndarray, ...], labels: np.ndarray
) -> np.ndarray:
    """Return log probabilities (N, K) of the test images by `head` and a closed form of the same training images."""
    memory, temperature = remembered(head, features, *splits, labels)
    logs = log_softmax(head(torch.from_numpy(test_features)).numpy() / temperature, axis=1)
    scores = memory.with_learned(Learned()).scores(directions(test_features))
    return np.asarray(mean_log_probabilities(logs, scores))


def accuracies(logits: np.ndarray, truth: np.ndarray, old: int) -> dict[str, float]:
    answer, known = logits.argmax(1), truth >= 0
    right = answer == truth
    probability = np.exp(logits - logsumexp(logits, axis=1, keepdims=True)).max(1)
    kinds = {"old": known & (truth < old), "new": truth >= old, "all": known}
    found = {name: float(right[kind].mean()) for name, kind in kinds.items()}
    found["ece"] = calibration_error(probability[known], right[known])
    return found | {"auroc_msp": auroc(probability[known], probability[~known])}


def unknown(scores: dict[str, np.ndarray], known: np.ndarray, public: np.ndarray) -> dict[str, float]:
    found = {f"auroc_{name}": auroc(score[known & ~public], score[~known & ~public]) for name, score in scores.items()}
    best = scores["knn"]
    threshold = threshold_for_false_acceptance(best[public & ~known], 0.05)
    found["accepted"] = float((best[~public & ~known] >= threshold).mean())
    return found | {"lost": float((best[~public & known] < threshold).mean())}


def many_landmarks(path: Path) -> dict[str, float]:
    """Return accuracies with 772 of 872 landmarks trained (70 images each) and 100 learned from 5 images each."""
    arrays = np.load(path)
    x, y = directions(arrays["x"].astype(np.float32)), arrays["y"].astype(np.int64)
    random = np.random.default_rng(0)
    rank = np.empty(len(y), dtype=np.int64)
    for label in range(872):
        own = np.flatnonzero(y == label)
        rank[own] = random.permutation(len(own))
    y = np.argsort(random.permutation(872))[y]
    train, val, test, old = rank < 70, (rank >= 70) & (rank < 80), rank >= 80, y < 772
    found = {}
    for name, trained, few in (("learned", train & old, (rank < 5) & ~old), ("all trained", train, rank < 0)):
        started, classes = time.perf_counter(), int(y[trained].max()) + 1
        own = val & (y < classes)
        validation = Validation(x[own].astype(np.float16), y[own], np.zeros((own.sum(), classes), dtype=np.float16))
        memory = memory_of(class_moments(x[trained], y[trained], classes), validation, x[trained], y[trained])
        between, learned = time.perf_counter(), Learned()
        for label in np.unique(y[few]):
            learned = learned.plus(x[few & (y == label)], f"new {label}")
        closed = memory.with_learned(learned)
        ended = time.perf_counter()
        for kind, classifier in (("", closed), (" by the discriminant alone", closed.discriminant)):
            right = classifier.scores(x[test]).argmax(1) == y[test]
            found |= {f"{name}{kind}, old": float(right[old[test]].mean())}
            found |= {f"{name}{kind}, new": float(right[~old[test]].mean())}
            found |= {f"{name}{kind}, over all": float(right.mean())}
        found |= {f"{name}, seconds of training": between - started, f"{name}, seconds of learning": ended - between}
    return found


if __name__ == "__main__":
    main()
