"""`predict` on a folder against a plain eager loop with Pillow's full decode: images per second, and the ratio.

    python benchmarks/prediction.py RUN FOLDER [--rounds 3]

Each is a process of its own, in turns. The clock runs from the first image to the last answer, after a first small
call; for `predict` it includes opening the run, which every call does. The plain loop is what a script does: Pillow,
torchvision's resize, crop and normalisation, batches of 32, `network(images)` without gradients, with the same weights
and threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from results import run_json, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    rates: dict[str, list[float]] = {"predict": [], "plain": []}
    for _ in range(chosen.rounds):
        for name, found in rates.items():
            measured = run_json(sys.executable, __file__, name, chosen.run, chosen.folder)
            found.append(measured["images"] / measured["seconds"])
    row = {name: statistics.median(found) for name, found in rates.items()}
    save(
        "prediction",
        [{**row, "ratio": row["predict"] / row["plain"]}],
        images=measured["images"],
        rates=rates,
    )


def predict(run: str, folder: str) -> tuple[int, float]:
    """Return images and seconds of the verb `predict`, without a first small call."""
    from landmarks.dataset.sources import find_images
    from landmarks.recognition.predict import predict

    paths = find_images([folder])
    predict(run, paths[:32])
    started = time.perf_counter()
    predict(run, folder)
    return len(paths), time.perf_counter() - started


def plain(run: str, folder: str) -> tuple[int, float]:
    """Return images and seconds of a script's loop."""
    import torch
    from PIL import Image
    from torchvision import transforms

    from landmarks.dataset.sources import find_images
    from landmarks.training.run import open_run

    network = open_run(run).network().eval()
    size = network.preprocessing.image_size
    prepare = transforms.Compose(
        [
            transforms.Resize(round(size / network.preprocessing.crop), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(network.preprocessing.mean, network.preprocessing.std),
        ]
    )
    paths = find_images([folder])

    def answer(batch: list[Path]) -> None:
        images = torch.stack([prepare(Image.open(path).convert("RGB")) for path in batch])
        with torch.no_grad():
            torch.softmax(network(images), dim=1).topk(5)

    answer(paths[:32])
    started = time.perf_counter()
    for start in range(0, len(paths), 32):
        answer(paths[start : start + 32])
    return len(paths), time.perf_counter() - started


if __name__ == "__main__":
    if sys.argv[1] in ("predict", "plain"):
        images, seconds = {"predict": predict, "plain": plain}[sys.argv[1]](*sys.argv[2:4])
        print(json.dumps({"images": images, "seconds": seconds}))
    else:
        main()
