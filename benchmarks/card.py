"""The study's best network on a graphics card: accuracy and minutes of both recipes, and one quick training.

    python benchmarks/card.py DATA TEST WEIGHTS WORK [--seeds 0 1 2] [--image-size 299] [--at-once 3] [--seconds 400]

DATA is a dataset with splits, TEST a test set of the same landmarks; WEIGHTS holds `legacy_xception.safetensors` and
`mobilenetv2_100.safetensors`. First MobileNetV2 is trained at 160 pixels for ten epochs, then Xception with the recipes
`default` and `study` and frozen batch norm statistics, which its weights need. The first seed of each has the card to
itself, so that its minutes and memory count; the other seeds share it, `--at-once` at a time. Finished trainings in
WORK are not repeated, and none is begun after `--seconds`. Each is evaluated on validation images and on TEST, with
95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from results import run_json, save

XCEPTION, QUICK = "legacy_xception", "mobilenetv2_100"
RECIPES = ("default", "study")
SHOWN = ("network", "pixels", "recipe", "seed", "val", "val_from", "val_to", "test", "test_from", "test_to")
SHOWN += ("seconds_from_start", "finetune_seconds", "val_seconds", "test_seconds", "best", "peak_mb", "alone", "device")


@dataclass(frozen=True)
class Job:
    """One training."""

    backbone: str
    image_size: int
    recipe: str
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        """The name of its run's folder."""
        return f"{self.backbone}-{self.image_size}-{self.recipe}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "test", "weights", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--image-size", type=int, default=299)
    parser.add_argument("--epochs", type=int, nargs=2, default=[10, 10], help="of MobileNetV2 and of Xception")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=400, help="after these no training is begun")
    chosen = parser.parse_args()
    ends = time.monotonic() + chosen.seconds
    first, *others = chosen.seeds
    quick, epochs = chosen.epochs
    sequential = [Job(QUICK, 160, "default", first, quick)]
    sequential += [Job(XCEPTION, chosen.image_size, recipe, first, epochs) for recipe in RECIPES]
    parallel = [Job(XCEPTION, chosen.image_size, recipe, seed, epochs) for seed in others for recipe in RECIPES]
    rows: list[dict[str, Any]] = []

    def do(job: Job, *, is_alone: bool) -> None:
        if time.monotonic() > ends:
            print(job.name, "was not begun: no time was left", flush=True)
            return
        try:
            rows.append(run_job(job, chosen, is_alone=is_alone))
        except SystemExit as error:  # the others can still succeed
            print(error, flush=True)
            return
        print(json.dumps(rows[-1]), flush=True)
        shown = sorted(rows, key=lambda row: (row["network"], row["recipe"], row["seed"]))
        save("card", [{key: value for key, value in row.items() if key in SHOWN} for row in shown], whole=shown)

    for job in sequential:
        do(job, is_alone=True)
    with ThreadPoolExecutor(chosen.at_once) as pool:
        list(pool.map(lambda job: do(job, is_alone=False), parallel))


def run_job(job: Job, chosen: argparse.Namespace, *, is_alone: bool) -> dict[str, Any]:
    """Train and evaluate in a process of its own, and return one row."""
    command = [sys.executable, __file__, "job", chosen.data, chosen.test, chosen.weights, chosen.work, is_alone]
    return run_json(*command, json.dumps(asdict(job)))


def train_and_evaluate(data: Path, test: Path, weights: Path, work: Path, job: Job) -> dict[str, Any]:
    """Train, evaluate on validation images and on `test`, and return one row."""
    import landmarks

    started_at = psutil.Process().create_time()
    settings: dict[str, Any] = {"epochs": job.epochs, "patience": job.epochs, "tracking": "none"}
    settings |= {"freeze_bn": True} if job.backbone == XCEPTION else {}
    run = landmarks.train(
        data,
        work / job.name,
        backbone=job.backbone,
        weights=str(weights / f"{job.backbone}.safetensors"),
        image_size=job.image_size,
        recipe=job.recipe,
        seed=job.seed,
        **settings,
    )
    record, seconds = run.record, time.time() - started_at
    row: dict[str, Any] = {"network": job.backbone, "pixels": job.image_size, "recipe": job.recipe, "seed": job.seed}
    for name, options in (("val", {"split": "val"}), ("test", {"data": test})):
        started = time.monotonic()
        top1 = landmarks.evaluate(run.folder, **options).record["top1"]
        row |= {name: 100 * top1["value"], f"{name}_from": 100 * top1["low"], f"{name}_to": 100 * top1["high"]}
        row[f"{name}_seconds"] = time.monotonic() - started
    return row | {
        "seconds_from_start": seconds,
        "finetune_seconds": record["seconds"]["finetune"],
        "best": f"{record['best']['phase']} {record['best']['epoch']}",
        "peak_mb": record["peak_memory_mb"],
        "device": record["machine"]["device"],
        "seconds_of": record["seconds"],
        "choices": [
            f"{choice['what']}: {choice['value']} ({choice['why']})".replace(f"{weights}/", "")
            for choice in record["choices"]
        ],
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        *paths, is_alone, job = sys.argv[2:]
        row = train_and_evaluate(*map(Path, paths), Job(**json.loads(job)))  # type: ignore[arg-type, call-arg]
        print(json.dumps(row | {"alone": is_alone == "True"}))
    else:
        main()
