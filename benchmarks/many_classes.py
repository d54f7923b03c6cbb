"""Many landmarks: accuracy of the heads on frozen features, and memory and time with all 203,094 landmarks.

    python benchmarks/many_classes.py accuracy ../shared/features/gldv1_872x90_pca128.npz
    python benchmarks/many_classes.py training ../shared/features/gldv1_872x90_pca128.npz
    python benchmarks/many_classes.py memory

`accuracy` trains on 70 images of each of 872 landmarks and tests on the other 20, split with seed 0. It compares the
cosine head with multinomial logistic regression, ridge regression and the nearest neighbour on the same split.
`training` trains the cosine head as the head training of `landmarks train` does, with 7 of the 70 images for
validation.
`memory` makes four optimizer steps (Adam, batch 256, 512 dimensions) with 203,094 landmarks, with one and with three
centres per landmark, each in its own process, and reports peak resident memory and seconds per step.
Results go to `benchmarks/results/many-classes-*.json`, with the machine they were measured on.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from results import run_json, save
from torch import Tensor, nn

from landmarks.models.backbones import pretrained_record
from landmarks.models.heads import ArcFaceHead, LinearHead, build_head
from landmarks.models.network import Network
from landmarks.models.preprocessing import from_pretrained
from landmarks.support.seeds import generator
from landmarks.training.features import Rows
from landmarks.training.head_training import train_head
from landmarks.training.recipe import recipe_named

LANDMARKS, DIMENSIONS, BATCH, STEPS = 203_094, 512, 256, 4
TRAIN, SEED = 70, 0

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def split_features(path: Path) -> Data:
    """Return standardised features and labels for training, then those for testing."""
    content = np.load(path)
    features, labels = content["x"].astype(np.float32), content["y"].astype(np.int64)
    train, test = [], []
    for label in np.unique(labels):
        order = generator(SEED, int(label)).permutation(np.flatnonzero(labels == label))
        train.append(order[:TRAIN])
        test.append(order[TRAIN:])
    train, test = np.concatenate(train), np.concatenate(test)
    mean, deviation = features[train].mean(0), features[train].std(0)
    features = (features - mean) / deviation
    return tuple(torch.from_numpy(each) for each in (features[train], labels[train], features[test], labels[test]))


def shares(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in percent."""
    best = scores.topk(5).indices == labels[:, None]
    return {"top1": 100 * best[:, 0].float().mean().item(), "top5": 100 * best.any(1).float().mean().item()}


def trained(head: nn.Module, data: Data, *, epochs: int, learning_rate: float, batch: int = 512) -> Tensor:
    """Train `head` with Adam and a cosine schedule, and return its logits for the test images."""
    features, labels, test, _ = data
    optimizer = torch.optim.Adam(head.parameters(), learning_rate)
    total = epochs * -(-len(features) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * np.cos(np.pi * step / total))
    for epoch in range(epochs):
        order = torch.from_numpy(generator(SEED, epoch, "order").permutation(len(features)))
        for rows in order.split(batch):
            optimizer.zero_grad()
            head.loss(features[rows], labels[rows]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return torch.cat([head(block) for block in test.split(2048)])


def cosine(data: Data) -> Tensor:
    torch.manual_seed(SEED)
    head = ArcFaceHead(data[0].shape[1], int(data[1].max()) + 1, embedding=0, scale=16.0, margin=0.1)
    return trained(head, data, epochs=20, learning_rate=1e-2)


def three_centres(data: Data) -> Tensor:
    torch.manual_seed(SEED)
    head = ArcFaceHead(data[0].shape[1], int(data[1].max()) + 1, embedding=0, scale=16.0, margin=0.1, sub_centres=3)
    return trained(head, data, epochs=20, learning_rate=1e-2)


class Penalised(LinearHead):
    """Multinomial logistic regression with a penalty on its weights; 1e-4 was the best of 1e-5, 3e-5 and 1e-4."""

    def loss(self, features: Tensor, labels: Tensor, **settings: object) -> Tensor:
        """Return the mean cross-entropy and the penalty."""
        return F.cross_entropy(self(features), labels) + 1e-4 * self.output.weight.square().sum()


def logistic(data: Data) -> Tensor:
    torch.manual_seed(SEED)
    return trained(Penalised(data[0].shape[1], int(data[1].max()) + 1), data, epochs=12, learning_rate=1e-2)


def ridge(data: Data, penalty: float = 100.0) -> Tensor:
    features, labels, test, _ = data
    one_hot = F.one_hot(labels).float() - 1 / (int(labels.max()) + 1)
    gram = features.T @ features + penalty * torch.eye(features.shape[1])
    return test @ torch.linalg.solve(gram, features.T @ one_hot)


def nearest(data: Data) -> Tensor:
    """Return the cosine to the nearest training image of each landmark."""
    features, labels, test, _ = data
    order = labels.argsort(stable=True)
    units = F.normalize(features[order], dim=1)
    classes = int(labels.max()) + 1
    return torch.cat(
        [(F.normalize(block, dim=1) @ units.T).view(len(block), classes, -1).amax(2) for block in test.split(512)]
    )


def by_training(data: Data) -> dict[str, object]:
    """Train the head with `train_head`, its epoch chosen on images held out of the 70."""
    features, labels, test, truth = data
    held_out = np.concatenate(
        [generator(SEED, label, "val").permutation(np.flatnonzero(labels == label))[:7] for label in range(872)]
    )
    kept = np.setdiff1d(np.arange(len(labels)), held_out)
    settings = {"embedding": 0, "sub_centres": 3, "scale": 16.0, "margin": 0.1}
    recipe = recipe_named(
        "default",
        head_epochs=25,
        head_patience=5,
        head_learning_rate=5e-3,
        head_batch_size=512,
        label_smoothing=0.0,
    )
    torch.manual_seed(SEED)
    head = build_head("arcface", features.shape[1], 872, settings)
    head.adapt(np.bincount(labels[kept]))
    backbone = nn.Identity()
    backbone.num_features = features.shape[1]
    network = Network("none", backbone, "arcface", head, from_pretrained(pretrained_record("baseline")))
    train, val = (Rows(features.numpy().astype(np.float16), rows) for rows in (kept, held_out))
    started = time.perf_counter()
    trained = train_head(network, [train], labels[kept].numpy(), val, labels[held_out].numpy(), recipe=recipe)
    with torch.no_grad():
        accuracies = shares(torch.cat([head(block) for block in test.split(2048)]), truth)
    row = {"head": "cosine head, three centres, by the head training of `train`", **accuracies, "epoch": trained.epoch}
    return row | {"val": 100 * trained.val_accuracy, "seconds": time.perf_counter() - started}


METHODS: dict[str, Callable[[Data], Tensor]] = {
    "nearest image (cosine)": nearest,
    "ridge regression": ridge,
    "multinomial logistic regression": logistic,
    "cosine head, margin 0.1": cosine,
    "cosine head, three centres": three_centres,
}


def accuracy(path: Path) -> list[dict[str, object]]:
    data, rows = split_features(path), []
    for name, method in METHODS.items():
        started = time.perf_counter()
        rows.append({"head": name, **shares(method(data), data[3]), "seconds": time.perf_counter() - started})
        print(rows[-1], flush=True)
    return rows


def steps(centres: int) -> dict[str, float]:
    """Make a few optimizer steps in this process; return peak memory in GB and seconds per step."""
    torch.manual_seed(SEED)
    head = ArcFaceHead(DIMENSIONS, LANDMARKS, embedding=0, sub_centres=centres)
    optimizer = torch.optim.Adam(head.parameters(), 1e-3, fused=True)  # no temporary copies
    features = torch.randn(BATCH, DIMENSIONS)
    labels = torch.randint(0, LANDMARKS, (BATCH,))
    seconds, losses = [], []
    for _ in range(STEPS):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = head.loss(features, labels)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"centres": centres, "peak_gb": peak, "seconds_per_step": float(np.median(seconds)), "last_loss": losses[-1]}


def memory() -> list[dict[str, float]]:
    rows = []
    for centres in (1, 3):
        rows.append(run_json(sys.executable, __file__, "steps", centres))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "training", "memory", "steps"])
    parser.add_argument("argument", nargs="?")
    chosen = parser.parse_args()
    if chosen.what == "steps":
        print(json.dumps(steps(int(chosen.argument))))
        return
    if chosen.what == "training":
        rows = [by_training(split_features(Path(chosen.argument)))]
    else:
        rows = accuracy(Path(chosen.argument)) if chosen.what == "accuracy" else memory()
    save(f"many-classes-{chosen.what}", rows, seed=SEED, torch=torch.__version__, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
