"""Accuracy and minutes of our recipes, fastai's `fine_tune` and timm's parts: same start, images and epochs.

    python benchmarks/accuracy.py MIRROR WEIGHTS WORK --python PEER/bin/python [--epochs 5] [--seeds 0 1 2]

From a mirror with train and test TARs (`../shared/mirror`) it makes a dataset (group split) and a test set, unpacks
both into folders for the peers, and trains every method once per seed, the methods in turns. PEER is an environment
with fastai, timm and safetensors. A training that is finished (WORK/METHOD-SEED.json) is not repeated. Minutes of ours
hold everything from the mirror on: select, fetch, split, features, both phases; the peers get their folders for
nothing. Minutes are those of the quickest seed, the one that other work on the machine disturbed least.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import polars as pl
from results import keep, landmarks, told

from landmarks.support.files import read_record

BACKBONE = "mobilenetv2_100"
OURS, PEERS = ("default", "study"), ("fastai", "timm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mirror", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--python", required=True, help="the interpreter of the peers' environment")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--finished", action="store_true", help="train nothing more, sum up what there is")
    chosen = parser.parse_args()
    seconds = prepared(chosen.mirror, chosen.work)
    common = ["--image-size", str(chosen.image_size), "--epochs", str(chosen.epochs)]
    common += ["--backbone", BACKBONE, "--weights", str(chosen.weights)]
    trainings: list[dict[str, Any]] = []
    for seed in chosen.seeds:
        for method in chosen.methods:
            result = chosen.work / f"{method}-{seed}.json"
            if chosen.finished and not result.exists():
                continue
            if not result.exists():
                options = [*common, "--seed", str(seed)]
                found = (
                    trained(chosen.work, method, options, result.with_suffix(""), seconds)
                    if method in OURS
                    else compared(chosen.work, method, options, chosen.python)
                )
                result.write_text(json.dumps(found))
            trainings.append({"method": method, "seed": seed, **json.loads(result.read_text())})
            print(method, seed, {name: trainings[-1][name] for name in ("val_accuracy", "test_accuracy", "minutes")})
    by_method = {method: [each for each in trainings if each["method"] == method] for method in chosen.methods}
    rows = [summary(method, own) for method, own in by_method.items() if own]
    for row in rows:
        row["minutes_to_fastai"] = minutes_to(trainings, row["method"])
    keep("accuracy", rows, backbone=BACKBONE, image_size=chosen.image_size, epochs=chosen.epochs, trainings=trainings)


def prepared(mirror: Path, work: Path) -> float:
    """Make dataset, test set and folders in `work` once; return the seconds that the dataset took from the mirror."""
    record = work / "prepared.json"
    if not record.exists():
        work.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        run("select", mirror, "-o", work / "train.parquet")
        run("fetch", work / "train.parquet", "-o", work / "data")
        run("split", work / "data")
        seconds = time.monotonic() - started
        run("select", mirror, "--set", "test", "-o", work / "test.parquet")
        run("fetch", work / "test.parquet", "-o", work / "testdata")
        for name in ("data", "testdata"):
            run("unpack", work / name, "-o", work / f"{name}-folders")
        record.write_text(json.dumps({"seconds": seconds}))
    return float(json.loads(record.read_text())["seconds"])


def trained(work: Path, recipe: str, options: list[str], out: Path, seconds: float) -> dict[str, Any]:
    """Train and judge with this project, its cache of features thrown away first; `seconds` went before."""
    shutil.rmtree(work / "data" / "features", ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    run("train", work / "data", "-o", out, "--recipe", recipe, *options)
    minutes = (seconds + time.monotonic() - started) / 60
    run("evaluate", out, "--split", "val")
    run("evaluate", out, "--data", work / "testdata")
    history = pl.read_parquet(out / "history.parquet").filter(pl.col("phase") == "finetune")
    before = minutes - history["seconds"].max() / 60  # type: ignore[operator]
    curve = [
        {"minutes": before + row["seconds"] / 60, "val_accuracy": row["val_accuracy"]}
        for row in history.iter_rows(named=True)
    ]
    val, test = (read_record(out / "metrics" / f"{name}.json") for name in ("val", "testdata"))
    return {
        "val_accuracy": val["top1"]["value"],
        "test_accuracy": test["top1"]["value"],
        "minutes": minutes,
        "curve": curve,
    }


def compared(work: Path, peer: str, options: list[str], python: str) -> dict[str, Any]:
    """Train a peer in its own environment."""
    script = Path(__file__).parent / "peers" / f"{peer}_finetune.py"
    return told(python, script, work / "data-folders", work / "testdata-folders", *options)


def run(*words: object) -> None:
    """Run one of our verbs."""
    subprocess.run(landmarks(*words), check=True, capture_output=True)


def summary(method: str, trainings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and spread (smallest, largest) over seeds, in percent, and the minutes of the quickest."""
    row: dict[str, Any] = {"method": method, "seeds": len(trainings)}
    for part in ("val", "test"):
        values = [100 * each[f"{part}_accuracy"] for each in trainings]
        row |= {f"{part}_mean": statistics.mean(values), f"{part}_spread": f"{min(values):.1f}-{max(values):.1f}"}
    return row | {"minutes": min(each["minutes"] for each in trainings)}


def minutes_to(trainings: list[dict[str, Any]], method: str) -> float | None:
    """Return the fewest minutes until validation reached what fastai ended with, of all seeds; None: not always."""
    goals = {each["seed"]: each["val_accuracy"] for each in trainings if each["method"] == "fastai"}
    reached = [
        next((row["minutes"] for row in each["curve"] if row["val_accuracy"] >= goals[each["seed"]]), None)
        for each in trainings
        if each["method"] == method and each["seed"] in goals
    ]
    return None if None in reached or not reached else min(minutes for minutes in reached if minutes is not None)


if __name__ == "__main__":
    main()
