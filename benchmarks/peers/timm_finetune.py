"""timm's own parts as its `train.py` puts them together, fine-tuning on unpacked folders: minutes and accuracy.

    PEER/bin/python timm_finetune.py DATA TEST --backbone mobilenetv2_100 --weights FILE --image-size 160 \
        --epochs 5 --seed 0

DATA and TEST are folders that `landmarks unpack` wrote. Everything is `train.py`'s default (loader, random crops from
8 % of the area, colour, horizontal flip, label smoothing 0.1, cosine by epoch, Pillow, one process per core), but for
what its defaults set for training ImageNet from scratch: AdamW at 5e-4 with weight decay 0.05, batches of 64, one epoch
of head training, no averaged weights. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import timm
import torch
from options import options
from safetensors.torch import load_file
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed

BATCH_SIZE = 64


def main() -> None:
    chosen = options()
    started = time.monotonic()
    random_seed(chosen.seed, 0)
    torch.set_num_threads(os.cpu_count() or 1)
    classes = sorted(path.name for path in (chosen.data / "train").iterdir())
    network = timm.create_model(chosen.backbone, num_classes=len(classes))
    state = {name: tensor.float() for name, tensor in load_file(chosen.weights).items()}
    missing, _ = network.load_state_dict(
        {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}, strict=False
    )
    lacking = [name for name in missing if not name.endswith("num_batches_tracked")]
    assert lacking == ["classifier.weight", "classifier.bias"], lacking
    train, val, test = (
        loader(folder, classes, chosen.image_size, training=part == "train")
        for part, folder in (
            ("train", chosen.data / "train"),
            ("val", chosen.data / "val"),
            ("test", chosen.test),
        )
    )
    optimizer = create_optimizer_v2(network, opt="adamw", lr=5e-4, weight_decay=0.05)
    schedule, _ = create_scheduler_v2(optimizer, num_epochs=chosen.epochs, head_epochs=1, warmup_lr=1e-5)
    measure_loss = LabelSmoothingCrossEntropy(0.1)
    curve: list[dict[str, float]] = []
    schedule.step(0)
    for epoch in range(chosen.epochs):
        network.train()
        for images, labels in train:
            optimizer.zero_grad()
            measure_loss(network(images), labels).backward()
            optimizer.step()
        curve.append({"val_accuracy": accuracy(network, val), "minutes": (time.monotonic() - started) / 60})
        schedule.step(epoch + 1)
    minutes = (time.monotonic() - started) / 60
    told = {"peer": "timm", "seed": chosen.seed, "epochs": chosen.epochs, "minutes": minutes, "curve": curve}
    told |= {"val_accuracy": curve[-1]["val_accuracy"], "test_accuracy": accuracy(network, test)}
    print(json.dumps(told | {"test": len(test.dataset), "threads": torch.get_num_threads()}))


def loader(folder: Path, classes: list[str], image_size: int, *, training: bool) -> torch.utils.data.DataLoader:
    """Return timm's loader of a folder per class, its options as `train.py` has them by default."""
    mapping = {name: label for label, name in enumerate(classes)}
    dataset = create_dataset("", root=str(folder), split="train", is_training=training, class_map=mapping)
    return create_loader(
        dataset,
        input_size=(3, image_size, image_size),
        batch_size=BATCH_SIZE,
        is_training=training,
        interpolation="random" if training else "bicubic",
        mean=timm.data.IMAGENET_DEFAULT_MEAN,
        std=timm.data.IMAGENET_DEFAULT_STD,
        color_jitter=0.4,
        crop_pct=0.875,
        num_workers=os.cpu_count() or 1,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )


@torch.no_grad()
def accuracy(network: torch.nn.Module, loaded: torch.utils.data.DataLoader) -> float:
    """Return the share of right answers."""
    network.eval()
    right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in loaded)
    return right / len(loaded.dataset)


if __name__ == "__main__":
    main()
