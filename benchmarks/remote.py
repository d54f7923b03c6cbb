"""Images read from a bucket against the same ones read from disk: bytes transferred per epoch, and images per second.

    python benchmarks/remote.py DATA WORK [--share 0.1] [--epochs 3] [--pixels 160] [--workers 2]

DATA is a dataset with splits. It is copied into a bucket of an S3 server (moto, in a process of its own on this
machine) and joined by reference into WORK, with a cache of `--share` of its bytes. The loader then reads the train
split as training does, one epoch from disk and one from the bucket in turns. moto is written in Python and uses this
machine's cores: `answers_per_second` is its rate when only bytes are requested, the upper bound for the loader.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from results import save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from s3_server import bucket_of

from landmarks.dataset.joining import join
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import RemoteImages
from landmarks.models.preprocessing import Preprocessing
from landmarks.support.remote_files import RangeResponse, RemoteFiles
from landmarks.training.augmentation import EpochAugmentation
from landmarks.training.loader import batches, epoch_order, epoch_steps
from landmarks.training.recipe import Augmentation

ANSWERS = 500
"""Images whose bytes are requested to measure the server's own rate."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=160)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    with bucket_of(chosen.data) as (address, variables):
        os.environ |= variables
        compare(open_dataset(chosen.data), address, chosen)


def compare(here: Dataset, address: str, chosen: argparse.Namespace) -> None:
    """Read the dataset `here` and its copy at `address` in turns, and save the results."""
    total = int(here.images["length"].sum() or 0)
    shutil.rmtree(chosen.work, ignore_errors=True)
    there = join([address], chosen.work, by_reference=True, cache_gb=chosen.share * total / 1e9)
    places = here.images.select("shard", "offset", "length").rows()[:ANSWERS]
    started = time.monotonic()
    bare = RemoteImages(replace(there, record={**there.record, "cache_gb": 0.0}))
    assert sum(map(len, bare.read_all(places))) == sum(place[2] for place in places)
    answers = len(places) / (time.monotonic() - started)
    moved, lock, read = [0], threading.Lock(), RemoteFiles.range

    def counted(files: RemoteFiles, path: str, start: int, end: int) -> RangeResponse:
        with lock:
            moved[0] += end - start
        return read(files, path, start, end)

    RemoteFiles.range = counted  # type: ignore[method-assign]
    train_bytes = int(here.split("train")["length"].sum() or 0)
    rows = []
    for epoch in range(1, chosen.epochs + 1):
        before = moved[0]
        speed_here, speed_there = speed(here, chosen, epoch), speed(there, chosen, epoch)
        now = moved[0] - before
        rows.append(
            {
                "epoch": epoch,
                "MB_moved": now / 1e6,
                "share_moved": now / train_bytes,
                "images_per_second_here": speed_here,
                "images_per_second_there": speed_there,
                "ratio": speed_there / speed_here,
            }
        )
        print(rows[-1], flush=True)
    kept = sum(path.stat().st_size for path in (chosen.work / "cache").rglob("*") if path.is_file())
    save(
        "remote",
        rows,
        answers_per_second=answers,
        pixels=chosen.pixels,
        workers=chosen.workers,
        MB=total / 1e6,
        MB_kept_here=kept / 1e6,
    )


def speed(dataset: Dataset, chosen: argparse.Namespace, epoch: int) -> float:
    """Return images per second of an epoch of the loader."""
    preprocessing = Preprocessing(image_size=chosen.pixels, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    images = dataset.split("train")
    started = time.monotonic()
    steps, augment = epoch_steps(epoch_order(len(images), 0, epoch), 32), EpochAugmentation(Augmentation(), epoch=epoch)
    for _ in batches(dataset, images, preprocessing, steps=steps, workers=chosen.workers, augment=augment):
        pass
    return len(images) / (time.monotonic() - started)


if __name__ == "__main__":
    main()
