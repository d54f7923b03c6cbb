"""Training steps of a timm network as PyTorch comes: float32, eager, timm's own loader on folders or tensors.

    PEER/bin/python timm_steps.py FOLDER resnet50 224 16 4

FOLDER holds a folder per class. The loader is timm's with the defaults of its `train.py` (Pillow, one process per
core); the tensors are made before the clock starts. Prints one line of JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy


def main() -> None:
    folder, name, size, batch, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    torch.set_num_threads(os.cpu_count() or 1)
    classes = len(list(Path(folder).iterdir()))
    network = timm.create_model(name, num_classes=classes).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=2e-5)
    measure_loss = LabelSmoothingCrossEntropy(0.1)

    def rate(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> float:
        for step, (images, labels) in enumerate(itertools.islice(batches, steps + 1)):
            optimizer.zero_grad()
            measure_loss(network(images), labels).backward()
            optimizer.step()
            if step == 0:
                started = time.perf_counter()
        return steps * batch / (time.perf_counter() - started)

    loader = create_loader(
        create_dataset("", root=folder, is_training=True),
        input_size=(3, size, size),
        batch_size=batch,
        is_training=True,
        color_jitter=0.4,
        interpolation="random",
        num_workers=os.cpu_count() or 1,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )
    tensors = (torch.randn(batch, 3, size, size), torch.arange(batch) % classes)
    told = {"tensors": rate(itertools.repeat(tensors)), "jpeg": rate(iter(loader))}
    print(json.dumps(told | {"timm": timm.__version__, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
