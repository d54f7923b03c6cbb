"""The loader alone: processor milliseconds per image by stage, and images per second by number of workers.

    python benchmarks/loader.py DATA [--pixels 224] [--workers 1 2] [--before SRC BEFORE_DATA] [--rounds 5]

DATA is a dataset with splits; images of its train split are loaded as in training with the recipe `default`, in batches
of 32. A stage's figure is the processor time of its thread: waiting costs nothing, so other work on the machine hardly
matters. `device` is the part that is done on the device, here the processor: colours, mirroring, normalisation.
`--before` measures another version's sources on the same images (as that version fetched them), in turns with this
version's. Every measurement is a process of its own; milliseconds are medians of the rounds, images per second the best
of them. torch uses one thread, so that the workers have the cores.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from results import run_json, save

BATCH = 32
STAGES = ("read", "decode", "resize", "draw", "generator", "colour")
NAMES = {  # functions of each stage in this and in earlier versions
    "decode": ("decode",),
    "resize": ("resize", "resized_crop"),
    "draw": ("draw", "draw_augmentation"),
    "generator": ("generator",),
    "colour": ("recolour",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--before", nargs=2, metavar=("SRC", "DATA"))
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    versions = {"now": (os.environ.get("PYTHONPATH", ""), chosen.data)}
    if chosen.before:
        versions = {"before": (chosen.before[0], Path(chosen.before[1])), **versions}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in versions}
    for _ in range(chosen.rounds):
        for name, (sources, data) in versions.items():
            os.environ["PYTHONPATH"] = str(sources)
            words = [data, chosen.pixels, chosen.images, *chosen.workers]
            found[name].append(run_json(sys.executable, __file__, "measure", *words))
            print(name, found[name][-1], flush=True)
    rows = [row(name, rounds) for name, rounds in found.items()]
    save("loader", rows, pixels=chosen.pixels, images=chosen.images, batch=BATCH, rounds=found)


def row(name: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one version's row: medians of milliseconds, best images per second."""
    row: dict[str, Any] = {"version": name}
    for stage in ("loader", "device", *STAGES):
        row[f"{stage}_ms"] = round(statistics.median(each["milliseconds"].get(stage, 0.0) for each in rounds), 3)
    for workers in rounds[0]["images_per_second"]:
        row[f"{workers}_workers"] = max(each["images_per_second"][workers] for each in rounds)
        row[f"{workers}_processes"] = max(each["images_per_second_of_processes"].get(workers, 0.0) for each in rounds)
    return row


def measure(data: str, pixels: int, images: int, *workers: int) -> dict[str, Any]:  # noqa: PLR0912, PLR0915
    """Return processor milliseconds per image by stage, and images per second by number of workers."""
    import numpy as np
    import torch

    from landmarks.dataset.manifest import open_dataset
    from landmarks.dataset.shards import ImageReader
    from landmarks.training import loader
    from landmarks.training.recipe import Augmentation

    try:
        from landmarks.models.preprocessing import Preprocessing
    except ImportError:  # earlier versions had it in the network's module
        from landmarks.models.network import Preprocessing  # type: ignore[attr-defined, no-redef]
    try:
        from landmarks.training import readers as reading
    except ImportError:  # earlier versions had threads only
        reading = None  # type: ignore[assignment]
    torch.set_num_threads(1)
    dataset = open_dataset(data)
    train = dataset.split("train")
    chosen = train[np.random.default_rng(0).permutation(len(train))[:images]]
    preprocessing = Preprocessing(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.875)

    def batches(count: int, workers: Any, epoch: int) -> Any:
        try:
            from landmarks.training.augmentation import EpochAugmentation
        except ImportError:  # earlier versions took the epoch as an argument
            augment = {"augment": Augmentation(), "epoch": epoch}
        else:
            augment = {"augment": EpochAugmentation(Augmentation(), epoch=epoch)}
        settings = {"batch_size": BATCH, "workers": workers, **augment}
        return loader.batches(dataset, chosen[:count], preprocessing, **settings)  # type: ignore[arg-type]

    for _ in batches(2 * BATCH, 1, 0):
        pass  # fill the file cache, warm up functions
    rates, spent = {}, []
    for count in workers:
        started, before = time.perf_counter(), time.process_time()
        for _ in batches(images, count, 1):
            pass
        rates[str(count)] = images / (time.perf_counter() - started)
        spent.append(1e3 * (time.process_time() - before) / images)
    process_rates = {}
    if reading is not None:
        for count in workers:
            readers = reading.Readers(count)
            for _ in batches(8 * BATCH, readers, 0):
                pass  # until all processes have started
            started = time.perf_counter()
            for _ in batches(images, readers, 1):
                pass
            process_rates[str(count)] = images / (time.perf_counter() - started)
            readers.close()

    stages = dict.fromkeys(STAGES, 0.0)
    for stage, names in NAMES.items():
        for name, module in itertools.product(names, (loader, reading)):
            if hasattr(module, name):
                setattr(module, name, timed(getattr(module, name), stage, stages))
    ImageReader.read = timed(ImageReader.read, "read", stages)  # type: ignore[method-assign]
    last = None
    for batch in batches(images, 1, 2):
        last = batch
    stages = {stage: 1e3 * seconds / images for stage, seconds in stages.items()}

    assert last is not None
    as_input = getattr(loader, "as_input", lambda batch, how: loader.normalised(batch.pixels, how))
    device = []
    for _ in range(5):
        before = time.thread_time()
        as_input(last, preprocessing)
        device.append(1e3 * (time.thread_time() - before) / len(last.ids))
    return {
        "milliseconds": {"loader": spent[0], "device": min(device), **stages},
        "images_per_second": rates,
        "images_per_second_of_processes": process_rates,
    }


def timed(function: Any, stage: str, stages: dict[str, float]) -> Any:
    """Return `function`, adding the processor time of its calls to `stages[stage]`."""

    @functools.wraps(function)
    def measured(*arguments: Any, **named: Any) -> Any:
        started = time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            stages[stage] += time.thread_time() - started

    return measured


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(sys.argv[2], *map(int, sys.argv[3:]))))
    else:
        main()
