"""A short measurement on a rented graphics card: loading, training steps, and promises such as reproducibility.

    python benchmarks/gpu.py [--seconds 340] [--images 4000] [--batch 128] [--keep FOLDER]

One command for one card with about 16 cores, which takes under six minutes with the defaults. It makes its own images
(512 pixels, JPEG) and needs no network; it needs `pip install "landmarks[train]"`, and torchvision (which timm requires
anyway) for torch's own loader. Every measurement is a process of its own; those for which no time is left are named.
It also runs without a card: `--tiny` tries every part in about two minutes.

Per network, in images per second: `bare` (forward, backward and fused AdamW on tensors on the device), `ours` (the step
of our training on a batch made in advance), `shards` (the same from our loader), `threads` (the same, read by threads
of one process), `decoded` (the same from the cache of decoded images), `torch_loader` and `timm_loader` (the bare step
fed by torch's DataLoader with torchvision's transforms, and by timm's loader, with a process per core). Then our loader
alone by number of workers, `train` from start to end, two trainings with one seed with and without `--deterministic`,
float16, a batch that does not fit into memory, and a training that is killed and resumed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from results import FOLDER, machine, run_json

NETWORKS = (("resnet50", 224), ("xception", 299), ("mobilenetv2_100", 160), ("vit_small_patch16_224", 224))
TINY = (("test_resnet", 64), ("test_vit", 160))
SIDE, LANDMARKS = 512, 20
WARM = 5
"""Steps before the clock starts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=340, help="no measurement is begun after these")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--keep", type=Path, help="a folder that keeps the images for the next time")
    parser.add_argument("--tiny", action="store_true", help="every part with the smallest networks and few images")
    chosen = parser.parse_args()
    if chosen.tiny:
        chosen.images, chosen.batch, chosen.steps = 160, 8, 3
    ends = time.monotonic() + chosen.seconds
    record: dict[str, Any] = {"machine": machine(), "networks": [], "checks": {}, "not_begun": []}
    with tempfile.TemporaryDirectory() as scratch:
        place = chosen.keep or Path(scratch)
        record["seconds_of_images"] = make_images(place, chosen.images)
        networks = TINY if chosen.tiny else NETWORKS
        small = networks[0] if chosen.tiny else ("mobilenetv2_100", 160)
        cores = os.cpu_count() or 1
        workers = [count for count in (1, 2, 4, 8, 16, 32) if count <= cores]
        each = [("steps", [*network, chosen.batch, chosen.steps]) for network in networks]
        plan: list[tuple[str, list[Any]]] = [
            *each[:2],
            ("whole", [*small, 2 if chosen.tiny else 10]),
            ("loader", [SIDE if chosen.tiny else 224, *workers]),
            ("kill", [*small]),
            ("seeds", [*small]),
            ("too_large", [*networks[0], chosen.batch]),
            ("float16", [*small]),
            *each[2:],
        ]
        for name, words in plan:
            if time.monotonic() > ends:
                record["not_begun"].append([name, *map(str, words)])
                continue
            started = time.monotonic()
            found = run_json(sys.executable, __file__, "part", name, place, *words)
            found["took_seconds"] = round(time.monotonic() - started, 1)
            if name == "steps":
                record["networks"].append(found)
            else:
                record["checks"][name] = found
            print(name, *words, json.dumps(found), flush=True)
    show(record)
    if not chosen.tiny:
        (FOLDER / "gpu.json").write_text(json.dumps(record, indent=2) + "\n")


def show(record: dict[str, Any]) -> None:
    """Print the table of networks, and the measurements that were not begun."""
    columns = ("network", "pixels", "bare", "ours", "shards", "threads", "decoded", "torch_loader", "timm_loader")
    columns += ("peak_mb", "precision")
    print(*(f"{column:>13}" for column in columns))
    for row in record["networks"]:
        print(*(f"{row[name]:>13,.0f}" if isinstance(row[name], float) else f"{row[name]:>13}" for name in columns))
    for part in record["not_begun"]:
        print("not begun, no time was left:", *part)


# ── Images ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_images(place: Path, count: int) -> float:
    """Write `count` JPEGs into folders and into a dataset with splits, unless they exist; return the seconds taken."""
    import landmarks
    from landmarks.dataset.images import encode, resize

    started = time.monotonic()
    if (place / "data" / "splits.parquet").exists():
        return 0.0

    def paint(number: int) -> None:
        random = np.random.default_rng(number)
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = resize(coarse, SIDE, SIDE * 3 // 4).astype(np.int16) + random.integers(
            -12, 13, (SIDE * 3 // 4, SIDE, 1)
        )
        file = place / "folders" / f"landmark {number % LANDMARKS:02d}" / f"{number:06d}.jpg"
        file.write_bytes(encode(np.clip(image, 0, 255).astype(np.uint8), quality=90))

    for landmark in range(LANDMARKS):
        (place / "folders" / f"landmark {landmark:02d}").mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(paint, range(count)))
    landmarks.import_(place / "folders", place / "data")
    landmarks.split(place / "data", by="random", val=0.1, test=0)
    return round(time.monotonic() - started, 1)


# ── Steps ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def steps(  # noqa: PLR0915, PLR0917
    place: Path, backbone: str, pixels: int, batch: int, count: int, peers: int = 1
) -> dict[str, Any]:
    """Return images per second of the bare step, of ours, and of both with loaders; `peers` 0: with ours only."""
    import torch

    from landmarks.dataset.manifest import open_dataset
    from landmarks.models.network import build_network
    from landmarks.training.augmentation import EpochAugmentation
    from landmarks.training.decoded import decoded_images
    from landmarks.training.finetune import Training, accumulate_gradients, set_training
    from landmarks.training.loader import Batch, batches, default_workers, on_device
    from landmarks.training.machine import open_machine, peak_memory_mb, with_readers
    from landmarks.training.optimizer import make_optimizer
    from landmarks.training.recipe import recipe_named
    from landmarks.training.timing import choose_by_timing

    recipe = recipe_named("default", backbone=backbone, weights="none", tracking="none", image_size=pixels)
    opened, _ = open_machine(recipe, place)
    network = build_network(backbone, classes=LANDMARKS, weights="none", image_size=pixels).to(opened.device)
    timing = choose_by_timing(network, opened, recipe.batch_size)
    device = opened.device
    computing = type(opened)(opened.accelerator, timing.best.precision, opened.workers)
    set_training(network, freeze_bn=False)
    optimizer = make_optimizer(network, recipe)
    training = Training(network, recipe, computing, torch.ones(LANDMARKS, device=device), network.features)

    def bare(images: torch.Tensor, labels: torch.Tensor) -> None:
        with computing.computing():
            logits = network(images)
        torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def ours(batch: Batch) -> None:
        accumulate_gradients(training, batch, len(batch.ids), len(batch.ids))
        training.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.max_grad_norm or float("inf"))
        training.scaler.step(optimizer)
        training.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def rate(loaded: Iterator[Any], step: Callable[..., None]) -> float:
        seen, started = 0, 0.0
        for number in range(WARM + count):
            arguments = next(loaded)
            if number == WARM:
                computing.synchronize()
                started = time.perf_counter()
            step(*arguments)
            seen += batch if number >= WARM else 0
        computing.synchronize()
        return seen / (time.perf_counter() - started)

    def endless(make: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
        epoch = 0
        while True:
            yield from make(epoch)
            epoch += 1

    dataset = open_dataset(place / "data")
    train = dataset.split("train")
    in_full_batches = len(train) // batch * batch
    if not in_full_batches:
        raise SystemExit(f"{len(train)} images are less than a batch")

    def shards(epoch: int, **settings: Any) -> Iterator[tuple[Batch]]:
        augment = EpochAugmentation(recipe.augmentation, epoch=epoch)
        steps = np.split(
            np.random.default_rng(epoch).permutation(len(train))[:in_full_batches], in_full_batches // batch
        )
        loaded = batches(dataset, train, network.preprocessing, steps=steps, augment=augment, **settings)
        return ((each,) for each in on_device(loaded, device))

    layout = {"channels last": torch.channels_last}.get(timing.best.layout, torch.contiguous_format)
    images = torch.randn(batch, 3, pixels, pixels, device=device).to(memory_format=layout)
    labels = torch.arange(batch, device=device) % LANDMARKS
    ready = next(shards(0))
    found: dict[str, Any] = {"network": backbone, "pixels": pixels, "batch": batch, **timing.best.__dict__}
    found["timed"] = {f"{way.precision}, {way.layout}": rate for way, rate in timing.rates.items()}
    found["bare"] = rate(endless(lambda _: iter([(images, labels)])), bare)
    found["ours"] = rate(endless(lambda _: iter([ready])), ours)
    found["threads"] = rate(endless(functools.partial(shards, workers=default_workers())), ours)
    with with_readers(opened) as hands:
        found["shards"] = rate(endless(functools.partial(shards, workers=hands.workers)), ours)
    started = time.perf_counter()
    decoded = decoded_images(dataset, train, network.preprocessing, machine=opened)
    found["seconds_of_decoding"] = time.perf_counter() - started
    found["decoded"] = rate(endless(functools.partial(shards, decoded=decoded)), ours)
    found["peak_mb"] = peak_memory_mb()

    def moved(loader: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in loader:
            on_card = images.to(device, non_blocking=True).to(memory_format=layout)
            yield on_card, labels.to(device, non_blocking=True)

    for name, make in (("torch_loader", torch_loader), ("timm_loader", timm_loader)) if peers else ():
        loader = make(place / "folders", pixels, batch, device)
        found[name] = rate(endless(lambda _, loader=loader: moved(loader)), bare)  # type: ignore[misc]
    return found


def torch_loader(folders: Path, pixels: int, batch: int, device: Any) -> Any:
    """Return torch's DataLoader as in its tutorials: Pillow, torchvision's transforms, a process per core."""
    import torch
    from torchvision import datasets, transforms

    looks = [transforms.RandomResizedCrop(pixels, (0.35, 1.0)), transforms.RandomHorizontalFlip()]
    looks += [transforms.ColorJitter(0.2, 0.2, 0.2), transforms.ToTensor()]
    looks += [transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    return torch.utils.data.DataLoader(
        datasets.ImageFolder(str(folders), transforms.Compose(looks)),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
    )


def timm_loader(folders: Path, pixels: int, batch: int, device: Any) -> Any:
    """Return timm's loader with the defaults of its `train.py`, prefetching to a card."""
    from timm.data import create_dataset, create_loader

    return create_loader(
        create_dataset("", root=str(folders), is_training=True),
        input_size=(3, pixels, pixels),
        batch_size=batch,
        is_training=True,
        color_jitter=0.4,
        interpolation="random",
        num_workers=os.cpu_count() or 1,
        use_prefetcher=device.type == "cuda",
        persistent_workers=True,
        device=device,
    )


# ── The loader alone, and whole trainings ───────────────────────────────────────────────────────────────────────────


def loader(place: Path, pixels: int, *workers: int) -> dict[str, Any]:
    """Return processor milliseconds per image and images per second of our loader by number of workers."""
    from loader import measure

    return measure(str(place / "data"), pixels, 1280, *workers)


TRAINING = """
import os, signal, sys
from landmarks.training import finetune
from landmarks.training.train import train
kill, data, out, weights, backbone, pixels, epochs, precision, deterministic = sys.argv[1:]
finetune.SECONDS_BETWEEN_CHECKPOINTS = 0.5 if int(kill) else 180.0
original, steps = finetune.accumulate_gradients, iter(range(1, 10**9))
def mortal(*arguments):
    if next(steps) == int(kill):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
finetune.accumulate_gradients = mortal
train(data, out, backbone=backbone, weights=weights, image_size=int(pixels), epochs=int(epochs), patience=int(epochs),
      tracking="none", precision=precision, deterministic=deterministic == "yes")
"""


def trained(place: Path, out: str, backbone: str, pixels: int, epochs: int, **settings: Any) -> dict[str, Any]:
    """Train from fixed random weights; return seconds, images per second, digest and best validation accuracy."""
    import timm
    import torch
    from safetensors.torch import save_file

    from landmarks.training.run import open_run

    settings = {"kill": 0, "precision": "auto", "deterministic": "no", **settings}
    weights = place / f"{backbone}.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        state = timm.create_model(backbone, num_classes=0).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights)
    words = [settings["kill"], place / "data", place / "runs" / out, weights, backbone, pixels, epochs]
    words += [settings["precision"], settings["deterministic"]]
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", TRAINING, *map(str, words)], capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - started
    if settings["kill"]:
        return {"killed": ended.returncode == -signal.SIGKILL, "seconds": seconds}
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])
    run = open_run(place / "runs" / out)
    fine = run.record["seconds"]["finetune"]
    images = run.record["data"]["images"]["train"] * epochs
    lines = [line for line in ended.stderr.splitlines() if line.startswith(("precision", "memory layout", "determin"))]
    return {
        "seconds": seconds,
        "finetune_images_per_second": images / fine,
        "seconds_of": run.record["seconds"],
        "digest": run.digest,
        "best": run.record["best"],
        "peak_mb": run.record["peak_memory_mb"],
        "choices": lines,
    }


def whole(place: Path, backbone: str, pixels: int, epochs: int) -> dict[str, Any]:
    """Return the figures of one training from start to end."""
    return trained(place, "whole", backbone, pixels, epochs)


def seeds(place: Path, backbone: str, pixels: int) -> dict[str, Any]:
    """Return whether two trainings with one seed give the same bits, without and with `--deterministic`."""
    found: dict[str, Any] = {}
    rates = {}
    for way in ("no", "yes"):
        runs = [trained(place, f"seed-{way}-{turn}", backbone, pixels, 2, deterministic=way) for turn in (1, 2)]
        found[f"deterministic_{way}"] = {"same_bits": runs[0]["digest"] == runs[1]["digest"], "runs": runs}
        rates[way] = max(run["finetune_images_per_second"] for run in runs)
    return {"price_of_deterministic": rates["no"] / rates["yes"], **found}


def float16(place: Path, backbone: str, pixels: int) -> dict[str, Any]:
    """Return the figures of a training in float16."""
    return trained(place, "float16", backbone, pixels, 2, precision="float16")


def kill(place: Path, backbone: str, pixels: int) -> dict[str, Any]:
    """Return whether a training that is killed and resumed gives the same bits as an uninterrupted one."""
    unbroken = trained(place, "unbroken", backbone, pixels, 2, deterministic="yes")
    first = trained(place, "broken", backbone, pixels, 2, deterministic="yes", kill=7)
    again = trained(place, "broken", backbone, pixels, 2, deterministic="yes")
    return {"killed": first["killed"], "same_bits": unbroken["digest"] == again["digest"]}


def too_large(place: Path, backbone: str, pixels: int, batch: int) -> dict[str, Any]:
    """Return into how many images at a time a step that does not fit into memory is divided; only on a card."""
    import torch

    from landmarks.models.network import build_network
    from landmarks.training.finetune import Training, accumulate_gradients, set_training
    from landmarks.training.loader import Batch
    from landmarks.training.machine import open_machine
    from landmarks.training.recipe import recipe_named

    recipe = recipe_named("default", backbone=backbone, weights="none", tracking="none", image_size=pixels)
    computing, _ = open_machine(recipe, place)
    if computing.device.type != "cuda":
        return {"tried": False, "why": "a processor's memory is the machine's"}
    free = torch.cuda.mem_get_info()[0]
    torch.cuda.set_per_process_memory_fraction(min(1.0, 6e9 / free))  # 6 GB, so that the step does not take minutes
    network = build_network(backbone, classes=LANDMARKS, weights="none", image_size=pixels).to(computing.device)
    set_training(network, freeze_bn=False)
    training = Training(network, recipe, computing, torch.ones(LANDMARKS, device=computing.device), network.features)
    count = 8 * batch
    all_pixels = torch.zeros(count, 3, pixels, pixels, dtype=torch.uint8)
    step = Batch([str(number) for number in range(count)], all_pixels, torch.zeros(count, dtype=torch.int64))
    _, _, at_a_time = accumulate_gradients(training, step, count, count)
    return {"tried": True, "images": count, "at_a_time": at_a_time, "of_memory_gb": 6.0}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    part.__name__: part for part in (steps, loader, whole, seeds, float16, kill, too_large)
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["part"]:
        words = [int(word) if word.isdigit() else word for word in sys.argv[4:]]
        print(json.dumps(PARTS[sys.argv[2]](Path(sys.argv[3]), *words)))
    else:
        main()
