"""Many landmarks: accuracy of the heads on frozen features, and memory and time with all 203,094 landmarks.

    python benchmarks/many_classes.py accuracy ../shared/features/gldv1_872x90_pca128.npz
    python benchmarks/many_classes.py training ../shared/features/gldv1_872x90_pca128.npz
    python benchmarks/many_classes.py memory
    python benchmarks/many_classes.py processes

`accuracy` trains on 70 images of each of 872 landmarks and tests on the other 20, split with seed 0. It compares the
cosine head with multinomial logistic regression, ridge regression and the nearest neighbour on the same split.
`training` trains the cosine head as the head training of `landmarks train` does, with 7 of the 70 images for
validation.
`memory` makes four optimizer steps (Adam, batch 256, 512 dimensions) with 203,094 landmarks, with one and with three
centres per landmark, each in its own process, and reports peak resident memory and seconds per step.
`processes` fine-tunes the smallest ResNet that timm has in two processes (AdamW, batch 64, 512 dimensions), with a
whole head and with one that is divided among them, in turns. It reports the median seconds of a step, the peak of
resident memory in steps, and seconds and peak of joining the tensors of a checkpoint, of the process that has more.
Results go to `benchmarks/results/many-classes-*.json`, with the machine they were measured on.
"""

from __future__ import annotations

import argparse
import json
import os
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
from landmarks.models.network import Network, build_network
from landmarks.models.preprocessing import from_pretrained
from landmarks.support.seeds import generator
from landmarks.training.checkpoint import copy_of_weights, tensors_of
from landmarks.training.features import Rows
from landmarks.training.finetune import Training, accumulate_gradients, set_training
from landmarks.training.head_training import train_head
from landmarks.training.loader import Batch, share_sizes
from landmarks.training.machine import Machine
from landmarks.training.optimizer import make_optimizer
from landmarks.training.recipe import recipe_named
from landmarks.training.split_head import SplitHead

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


PROCESSES, SHARED_BATCH, SIDE, ROUNDS = 2, 64, 32, 2


def in_processes() -> list[dict[str, object]]:
    """Fine-tune with whole and split heads in turns; return their medians and highest peaks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", PROCESSES, __file__]
    rows = []
    for landmarks in (20_000, 81_313, LANDMARKS):
        measured = {"whole": [], "split": []}
        for _ in range(ROUNDS):
            for kind, runs in measured.items():
                runs.append(run_json(*launcher, "process", f"{kind}:{landmarks}"))
        for kind, runs in measured.items():
            figures = {name: max(run[name] for run in runs) for name in ("step_gb", "checkpoint_gb", "join_seconds")}
            seconds = float(np.median([second for run in runs for second in run["seconds"]]))
            rows.append({"landmarks": landmarks, "head": kind, "seconds_per_step": seconds, **figures})
            print(rows[-1], flush=True)
    return rows


def one_process(kind: str, landmarks: int) -> dict[str, object]:
    """Take a few steps in this process, together with the others; return the times, and the highest peaks of all."""
    from accelerate import Accelerator

    machine, recipe = Machine(Accelerator(cpu=True)), recipe_named("default", head="arcface", batch_size=SHARED_BATCH)
    network = build_network(
        "test_resnet", classes=landmarks, head="arcface", weights="none", image_size=SIDE, seed=SEED
    )
    split = SplitHead(network.head, machine) if kind == "split" else None
    training = Training(network, recipe, machine, torch.ones(landmarks), network.features, split=split)
    optimizer, best = make_optimizer(network, recipe), copy_of_weights(network)
    set_training(network, freeze_bn=False)
    draw, images = torch.Generator().manual_seed(machine.rank), share_sizes(SHARED_BATCH, machine.processes)
    count, seconds = images[machine.rank], []
    for step in range(1 + STEPS):
        pixels = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
        labels = torch.randint(0, landmarks, (count,), generator=draw)
        machine.wait()
        started = time.perf_counter()
        accumulate_gradients(training, Batch([""] * count, pixels, labels), SHARED_BATCH, SHARED_BATCH)
        training.sums.finish()
        training.head.clip_grad_norm(network, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
        if not step:
            forget_peak()  # of building the network
    step_gb = peak_gb()
    forget_peak()
    started = time.perf_counter()
    tensors = training.head.whole_tensors(tensors_of(network, optimizer, best), optimizer)
    join_seconds, checkpoint_gb = time.perf_counter() - started, peak_gb()
    assert not machine.is_main or len(tensors["best.head.centres"]) == landmarks
    gathered = [torch.zeros(3, dtype=torch.float64) for _ in range(machine.processes)]
    torch.distributed.all_gather(gathered, torch.tensor([step_gb, checkpoint_gb, join_seconds], dtype=torch.float64))
    step_gb, checkpoint_gb, join_seconds = torch.stack(gathered).amax(0).tolist()
    machine.close()
    return {
        "seconds": seconds[1:],
        "step_gb": step_gb,
        "checkpoint_gb": checkpoint_gb,
        "join_seconds": join_seconds,
    }


def forget_peak() -> None:
    """Let Linux count the peak of this process's memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_gb() -> float:
    """Return the peak of this process's resident memory, since it was last forgotten."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "training", "memory", "processes", "steps", "process"])
    parser.add_argument("argument", nargs="?")
    chosen = parser.parse_args()
    if chosen.what == "steps":
        print(json.dumps(steps(int(chosen.argument))))
        return
    if chosen.what == "process":
        kind, landmarks = chosen.argument.split(":")
        found = one_process(kind, int(landmarks))
        if os.environ["RANK"] == "0":
            print(json.dumps(found))
        return
    if chosen.what == "training":
        rows = [by_training(split_features(Path(chosen.argument)))]
    elif chosen.what == "accuracy":
        rows = accuracy(Path(chosen.argument))
    else:
        rows = memory() if chosen.what == "memory" else in_processes()
    save(f"many-classes-{chosen.what}", rows, seed=SEED, torch=torch.__version__, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
