"""The study's best network on a graphics card: what both recipes reach in how many minutes, and one quick training.

    python benchmarks/card.py DATA TEST WEIGHTS WORK [--seeds 0 1 2] [--image-size 299] [--at-once 3] [--seconds 400]

DATA is a dataset that was split, TEST one of the same landmarks to be judged on; WEIGHTS holds
`legacy_xception.safetensors` and `mobilenetv2_100.safetensors`. First MobileNetV2 at 160 pixels, ten epochs, alone;
then Xception with the recipes `default` and `study`, running statistics frozen, as its weights want it: seed 0 of each
alone (its minutes and memory count), then the other seeds, `--at-once` of them. A training that is finished in WORK is
not repeated; after `--seconds` none is begun. Each is judged on validation and on TEST, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import keep

XCEPTION, QUICK = "legacy_xception", "mobilenetv2_100"


@dataclass(frozen=True)
class Job:
    """One training, and what is said of it."""

    backbone: str
    image_size: int
    recipe: str
    seed: int
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the folder of its run."""
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
    quick, long = (("--epochs", str(count), "--set", f"patience={count}") for count in chosen.epochs)
    frozen = ("--set", "freeze_bn=true")
    first, *others = chosen.seeds
    alone = [Job(QUICK, 160, "default", first, quick)]
    alone += [Job(XCEPTION, chosen.image_size, recipe, first, (*long, *frozen)) for recipe in ("default", "study")]
    together = [
        Job(XCEPTION, chosen.image_size, recipe, seed, (*long, *frozen))
        for seed in others
        for recipe in ("default", "study")
    ]
    rows: list[dict[str, Any]] = []

    def done(job: Job, *, is_alone: bool) -> None:
        if time.monotonic() > ends:
            print(job.name, "was not begun: no time was left", flush=True)
            return
        rows.append(judged(job, chosen, is_alone=is_alone))
        print(json.dumps(rows[-1]), flush=True)
        keep("card", sorted(rows, key=lambda row: (row["network"], row["recipe"], row["seed"])))

    for job in alone:
        done(job, is_alone=True)
    with ThreadPoolExecutor(chosen.at_once) as pool:
        list(pool.map(lambda job: done(job, is_alone=False), together))


def judged(job: Job, chosen: argparse.Namespace, *, is_alone: bool) -> dict[str, Any]:
    """Train, judge, and return one row."""
    out, started = chosen.work / job.name, time.monotonic()
    words = ["--backbone", job.backbone, "--weights", chosen.weights / f"{job.backbone}.safetensors"]
    words += ["--image-size", job.image_size, "--recipe", job.recipe, "--seed", job.seed, *job.options]
    run("train", chosen.data, "-o", out, *words, "--set", "tracking=none")
    minutes, record = (time.monotonic() - started) / 60, json.loads((out / "run.json").read_text())
    row: dict[str, Any] = {"network": job.backbone, "pixels": job.image_size, "recipe": job.recipe, "seed": job.seed}
    for name, options in (("val", ("--split", "val")), ("test", ("--data", chosen.test))):
        started = time.monotonic()
        numbers = json.loads(run("evaluate", out, *options, "--json"))
        top1 = numbers["top1"]
        row |= {name: 100 * top1["value"], f"{name}_from": 100 * top1["low"], f"{name}_to": 100 * top1["high"]}
        row[f"{name}_seconds"] = time.monotonic() - started
    return row | {
        "minutes": minutes,
        "finetune_seconds": record["seconds"]["finetune"],
        "epochs": record["best"]["epoch"],
        "peak_mb": record["peak_memory_mb"],
        "alone": is_alone,
        "device": record["machine"]["device"],
        "choices": "; ".join(f"{one['what']}: {one['value']}" for one in record["choices"]),
    }


def run(*words: object) -> str:
    """Run one of our verbs and return what it says on standard output."""
    ended = subprocess.run(
        [sys.executable, "-m", "landmarks", *map(str, words)], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(f"landmarks {' '.join(map(str, words))} failed:\n{ended.stderr[-3000:]}")
    return ended.stdout


if __name__ == "__main__":
    main()
