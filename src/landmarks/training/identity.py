"""Which training a folder holds: the same one is resumed or returned, another is never overwritten."""

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
"""In `checkpoint/` from the start of a training: what is being trained."""

CHANGEABLE = (
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
"""Settings of a recipe that may change when an interrupted training is resumed."""


def check_folder(out: Path) -> None:
    """Raise `UsageError` unless `out` is new, empty, or the folder of a training."""
    refuse_foreign(out, (RECORD, f"checkpoint/{STARTED}"), "run", own=("checkpoint",))


def identity(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Return what decides the result of a training; it can only be resumed when all of this is the same."""
    settings = {name: value for name, value in recipe.record().items() if name not in CHANGEABLE}
    if Path(recipe.weights).exists():
        settings["weights"] = str(Path(recipe.weights).resolve())
    return {**settings, "data": dataset.digest}


def record_start(checkpoint: Path, wanted: dict[str, Any], backbone: str, machine: Machine) -> None:
    """Record in `checkpoint` what is being trained, or raise when another training was begun there."""
    if machine.is_main:
        remove_leftovers(checkpoint)
        if (checkpoint / STARTED).exists():
            require_same(checkpoint.parent, read_record(checkpoint / STARTED), {**wanted, "backbone": backbone})
        else:
            write_record(checkpoint / STARTED, {**wanted, "backbone": backbone}, verb="train")
    machine.wait()


def finished_run(out: Path, wanted: dict[str, Any], machine: Machine) -> Run:
    """Return the finished run in `out`, or raise when it is another one than `wanted`."""
    run = open_run(out)
    require_same(out, run.record.get("identity", {}), wanted)
    if machine.is_main:
        remove_checkpoint(out / "checkpoint")  # a kill may have left it
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
                way_out=f"choose another folder with -o{_weights_hint(out)}",
            )


def _weights_hint(out: Path) -> str:
    """Return how a training with other settings can begin with the weights of the finished run in `out`."""
    return f"; to begin with the weights of this one: --weights {out} -o OTHER" if (out / RECORD).exists() else ""
