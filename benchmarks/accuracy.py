"""Accuracy and training time of our recipes, of fastai's `fine_tune` and of timm: same weights, images and epochs.

    python benchmarks/accuracy.py MIRROR WEIGHTS WORK --python PEER/bin/python [--epochs 5] [--seeds 0 1 2]

MIRROR has train and test TARs (`../shared/mirror`). A dataset (split by groups) and a test set are made from it and
unpacked into folders for the peers; then every method is trained once per seed, the methods in turns. PEER is an
environment with fastai, timm and safetensors. Finished trainings (WORK/METHOD-SEED.json) are not repeated. Our minutes
include everything from the mirror on: select, fetch, split, features and both phases; the peers' folders are not
counted. The minutes reported are those of the quickest seed, which other work on the machine disturbed least.
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
from results import landmarks, run_json, save

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
    parser.add_argument("--finished", action="store_true", help="train nothing more, only summarise")
    chosen = parser.parse_args()
    seconds = prepare(chosen.mirror, chosen.work)
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
                    train_ours(chosen.work, method, options, result.with_suffix(""), seconds)
                    if method in OURS
                    else train_peer(chosen.work, method, options, chosen.python)
                )
                result.write_text(json.dumps(found))
            trainings.append({"method": method, "seed": seed, **json.loads(result.read_text())})
            print(method, seed, {name: trainings[-1][name] for name in ("val_accuracy", "test_accuracy", "minutes")})
    by_method = {method: [each for each in trainings if each["method"] == method] for method in chosen.methods}
    rows = [summary(method, own) for method, own in by_method.items() if own]
    for row in rows:
        row["minutes_to_fastai"] = minutes_to(trainings, row["method"])
    save("accuracy", rows, backbone=BACKBONE, image_size=chosen.image_size, epochs=chosen.epochs, trainings=trainings)


def prepare(mirror: Path, work: Path) -> float:
    """Make dataset, test set and folders in `work` once; return the seconds that the dataset took."""
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


def train_ours(work: Path, recipe: str, options: list[str], out: Path, seconds: float) -> dict[str, Any]:
    """Train and evaluate with this project, without cached features; `seconds` is what the dataset took."""
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


def train_peer(work: Path, peer: str, options: list[str], python: str) -> dict[str, Any]:
    """Train a peer in its own environment."""
    script = Path(__file__).parent / "peers" / f"{peer}_finetune.py"
    return run_json(python, script, work / "data-folders", work / "testdata-folders", *options)


def run(*words: object) -> None:
    """Run one of this project's verbs."""
    subprocess.run(landmarks(*words), check=True, capture_output=True)


def summary(method: str, trainings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and range of accuracy over seeds, in percent, and the minutes of the quickest seed."""
    row: dict[str, Any] = {"method": method, "seeds": len(trainings)}
    for split in ("val", "test"):
        values = [100 * each[f"{split}_accuracy"] for each in trainings]
        row |= {f"{split}_mean": statistics.mean(values), f"{split}_spread": f"{min(values):.1f}-{max(values):.1f}"}
    return row | {"minutes": min(each["minutes"] for each in trainings)}


def minutes_to(trainings: list[dict[str, Any]], method: str) -> float | None:
    """Return the minutes until validation accuracy reached fastai's final one, least over seeds.

    None if a seed did not reach it.
    """
    goals = {each["seed"]: each["val_accuracy"] for each in trainings if each["method"] == "fastai"}
    reached = [
        next((row["minutes"] for row in each["curve"] if row["val_accuracy"] >= goals[each["seed"]]), None)
        for each in trainings
        if each["method"] == method and each["seed"] in goals
    ]
    return None if None in reached or not reached else min(minutes for minutes in reached if minutes is not None)


if __name__ == "__main__":
    main()
