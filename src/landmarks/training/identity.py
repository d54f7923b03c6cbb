"""Which training a folder holds: the same one goes on there, or is done; another is never written over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from landmarks.dataset.manifest import Dataset
from landmarks.support.disk import remove_leftovers
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record, refuse_foreign, write_record
from landmarks.training.checkpoint import remove_checkpoint
from landmarks.training.machine import Machine
from landmarks.training.recipe import Recipe
from landmarks.training.run import RECORD, Run, open_run

STARTED = "started.json"
"""In `checkpoint/`, from the first moment on: what is being trained."""

NOT_THE_RESULT = (
    "device",
    "precision",
    "deterministic",
    "compile",
    "workers",
    "threads",
    "time_limit",
    "micro_batch",
    "tracking",
    "gradient_checkpointing",
)
"""Settings of a recipe that may change between the two halves of a training that was interrupted."""


def check_folder(out: Path) -> None:
    """Raise `UsageError` unless `out` is new, empty, or a training's: nothing else is ever written into."""
    refuse_foreign(out, (RECORD, f"checkpoint/{STARTED}"), "run", own=("checkpoint",))


def identity(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Return what decides a training's result: the same folder may only be gone on with when all of it is the same."""
    settings = {name: value for name, value in recipe.record().items() if name not in NOT_THE_RESULT}
    if Path(recipe.weights).exists():
        settings["weights"] = str(Path(recipe.weights).resolve())
    return {**settings, "data": dataset.digest}


def begin(checkpoint: Path, wanted: dict[str, Any], backbone: str, machine: Machine) -> None:
    """Note in `checkpoint` what is being trained, or raise when it holds the beginnings of something else."""
    if machine.is_main:
        remove_leftovers(checkpoint)
        if (checkpoint / STARTED).exists():
            require_same(checkpoint.parent, read_record(checkpoint / STARTED), {**wanted, "backbone": backbone})
        else:
            write_record(checkpoint / STARTED, {**wanted, "backbone": backbone}, verb="train")
    machine.wait()


def finished_run(out: Path, wanted: dict[str, Any], machine: Machine) -> Run:
    """Return the finished run in `out` when it is the one that is wanted; raise when it is another."""
    run = open_run(out)
    require_same(out, run.record.get("identity", {}), wanted)
    if machine.is_main:
        remove_checkpoint(out / "checkpoint")  # of a training killed when all but this was done
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
                way_out=f"choose another folder with -o{_from_there(out)}",
            )


def _from_there(out: Path) -> str:
    """Return how a training with other settings can begin with the weights of the finished one in `out`."""
    return f"; to begin with the weights of this one: --weights {out} -o OTHER" if (out / RECORD).exists() else ""
