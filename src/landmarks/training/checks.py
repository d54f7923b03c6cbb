"""What must hold before anything is computed: data that can be trained on, and a folder that holds nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import Dataset
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record, remove_leftovers, write_record
from landmarks.training.machine import Machine
from landmarks.training.recipe import Recipe
from landmarks.training.run import RECORD, Run, open_run

STARTED = "started.json"
"""In `checkpoint/`, from the first moment on: what is being trained."""

NOT_THE_RESULT = (
    "device",
    "precision",
    "compile",
    "workers",
    "time_limit",
    "micro_batch",
    "tracking",
    "gradient_checkpointing",
)
"""Settings of a recipe that may change between the two halves of a training that was interrupted."""


@dataclass(frozen=True)
class Parts:
    """The photographs to train on and to validate with: known ones, with their labels."""

    train: pl.DataFrame
    val: pl.DataFrame
    notes: tuple[str, ...] = ()  # what the user should know about them


def check_data(dataset: Dataset) -> Parts:
    """Return the photographs to train on; raise `LandmarksError` when the dataset cannot be trained on."""
    landmarks = len(dataset.labels)
    if landmarks < 2:
        raise LandmarksError(
            f"{dataset.folder} cannot be trained on", received=f"{landmarks} landmarks", expected="2 or more"
        )
    known = {part: dataset.part(part).filter(pl.col("label").is_not_null()) for part in ("train", "val")}
    if not len(known["train"]):
        raise LandmarksError(
            f"the train part of {dataset.folder} shows no known landmark",
            way_out=f"divide everything anew with: landmarks split {dataset.folder} --anew",
        )
    if not len(known["val"]):
        way_out = f"divide it with: landmarks split {dataset.folder} --val 0.15"
        if len(dataset.part("test")):
            way_out = (
                "take some out of train, while test stays as it is, with: "
                f"landmarks split {dataset.folder} --val 0.15 --keep-test"
            )
        raise LandmarksError(f"the val part of {dataset.folder} shows no known landmark", way_out=way_out)
    counts = known["train"]["label"].value_counts()
    seen = set(counts["label"].to_list())
    absent = dataset.labels.filter(~pl.col("label").is_in(list(seen)))
    notes = []
    if len(absent):
        notes.append(
            f"{len(absent)} of {landmarks} landmarks have no photograph to train on and will never be answered: "
            + ", ".join(str(name) for name in absent["name"].head(3).fill_null("?"))
            + (", …" if len(absent) > 3 else "")
        )
    single = int((counts["count"] == 1).sum())
    if single:
        notes.append(f"{single} landmark{'s have' if single > 1 else ' has'} a single photograph to train on")
    unknown = len(dataset.part("train")) - len(known["train"])
    if unknown:
        notes.append(f"{unknown} photographs of nothing known are left out of training")
    return Parts(known["train"], known["val"], tuple(notes))


def check_folder(out: Path) -> None:
    """Raise unless `out` is new, empty, or a training's: nothing else is ever written into."""
    if not out.is_dir() or (out / RECORD).exists() or (out / "checkpoint" / STARTED).exists():
        return
    strangers = sorted(entry.name for entry in out.iterdir() if entry.name not in (".lock", "checkpoint"))
    if strangers:
        raise LandmarksError(
            f"{out} exists and is no run",
            received=f"a folder with {strangers[0]}",
            way_out="choose another folder with -o",
        )


def identity(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Return what decides a training's result: the same folder may only be gone on with when all of it is the same."""
    settings = {name: value for name, value in recipe.record().items() if name not in NOT_THE_RESULT}
    if Path(recipe.weights).exists():
        settings["weights"] = str(Path(recipe.weights).resolve())
    return {**settings, "data": dataset.digest}


def begin(checkpoint: Path, wanted: dict[str, Any], trunk: str, machine: Machine) -> None:
    """Note in `checkpoint` what is being trained, or raise when it holds the beginnings of something else."""
    if machine.is_main:
        remove_leftovers(checkpoint)
        if (checkpoint / STARTED).exists():
            require_same(checkpoint.parent, read_record(checkpoint / STARTED), {**wanted, "trunk": trunk})
        else:
            write_record(checkpoint / STARTED, {**wanted, "trunk": trunk}, verb="train")
    machine.wait()


def finished(out: Path, wanted: dict[str, Any], machine: Machine) -> Run:
    """Return the finished run in `out` when it is the one that is wanted; raise when it is another."""
    run = open_run(out)
    require_same(out, run.record.get("identity", {}), wanted)
    if machine.is_main:
        shutil.rmtree(out / "checkpoint", ignore_errors=True)  # of a training killed when all but this was done
    machine.say(f"{out} is trained already; nothing is done again")
    return run


def require_same(out: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise `LandmarksError` that names the first thing in which `found` differs from `wanted`."""
    for name, value in wanted.items():
        if found.get(name) != json.loads(json.dumps(value)):
            raise LandmarksError(
                f"{out} holds another training",
                received=f"{name} {value}",
                expected=f"{name} {found.get(name)}, with which it was begun",
                way_out="choose another folder with -o",
            )
