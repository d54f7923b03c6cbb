"""The records of a training: of what is trained, by which it is resumed or refused, and of the run that came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from landmarks.dataset.manifest import SPLITS, Dataset
from landmarks.dataset.naming import identified_by
from landmarks.models.catalogue import gmacs
from landmarks.models.network import Network, count_parameters, has_maps
from landmarks.support.disk import remove_leftovers
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record, refuse_foreign, write_record
from landmarks.support.places import in_shell
from landmarks.training.checkpoint import State, remove_checkpoint
from landmarks.training.choices import Choice
from landmarks.training.machine import Machine, describe_machine, peak_memory_mb, versions
from landmarks.training.own_data import location_record
from landmarks.training.recipe import Recipe
from landmarks.training.run import RECORD, Epoch, Run, open_run, require_run_file

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


# ── What is trained: the same training is resumed or returned, another is never overwritten ─────────────────────────


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
    for name in ("model.json", "model.safetensors"):
        require_run_file(out, name)
    if machine.is_main:
        remove_checkpoint(out / "checkpoint")  # a kill may have left it
    machine.say(f"{out} is trained already; nothing is done again")
    return run


def require_same(out: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise `LandmarksError` that names the first thing in which `found` differs from `wanted`.

    A setting that `found` does not name was not yet there when that training began, which went by its default.
    """
    found = {field.name: field.default for field in fields(Recipe)} | found
    for name, value in wanted.items():
        if found.get(name) != json.loads(json.dumps(value)):
            what = {"data": "data whose images, labels or splits have the digest"}.get(name, name)
            raise LandmarksError(
                f"{out} holds another training",
                received=f"{what} {value}",
                expected=f"{name} {found.get(name)}, with which it was begun",
                way_out=f"choose another folder with -o{_weights_hint(out)}",
            )


def _weights_hint(out: Path) -> str:
    """Return how a training with other settings can begin with the weights of the finished run in `out`."""
    return (
        f"; to begin with the weights of this one: --weights {in_shell(out)} -o OTHER"
        if (out / RECORD).exists()
        else ""
    )


# ── The run that came of it: its record, the choices that its recipe made, and the sentence that sums it up ─────────


def run_record(
    network: Network,
    dataset: Dataset,
    *,
    recipe: Recipe,
    machine: Machine,
    choices: list[Choice],
    state: State,
    out: Path,
) -> dict[str, Any]:
    """Return the content of `run.json`, in the folder `out`, for a training that ended in `state`."""
    counts, metadata = count_parameters(network), dataset.split_metadata
    rule = {name: value for name, value in metadata.items() if not name.startswith(("landmarks.", "ARROW"))}
    phase_one = state.earlier
    seconds = {
        "features": phase_one.features_seconds,
        "head": phase_one.head_seconds,
        "finetune": state.seconds,
    }
    return {
        "recipe": recipe.record(),
        "data": {
            **location_record(dataset.folder, relative_to=out),
            "digest": dataset.digest,
            "content_digest": dataset.content_digest,
            "identified_by": identified_by(dataset.record, dataset.labels),
            "set": dataset.record.get("set"),
            "origin": dataset.record.get("origin"),
            "landmarks": len(dataset.labels),
            "images": {split: dataset.count(split) for split in SPLITS},
            "split": rule,
        },
        "network": {
            "backbone": recipe.backbone,
            "head": network.head_name,
            "weights": recipe.weights,
            "parameters": counts.total,
            "trainable": counts.trainable,
            "gmacs": round(gmacs(network), 3),
            "maps": has_maps(network),
            "image_size": network.preprocessing.image_size,
        },
        "machine": describe_machine(machine),
        "versions": versions(),
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "choices": [choice.record() for choice in choices],
        "head": {
            **(asdict(phase_one.head) if phase_one.head else {}),
            "probe": asdict(phase_one.probe) if phase_one.probe else None,
        },
        "best": asdict(state.best),
        "ended": state.ended,
    }


def recipe_choices(recipe: Recipe) -> list[Choice]:
    """Return the choices that follow from the recipe, with reasons."""
    size = Choice("image", f"{recipe.image_size} pixels", "asked for, or what the weights were made for")
    if recipe.from_scratch:
        return [size, Choice("phases", "one", "without pretrained weights there is nothing to warm up")]
    head = "head in closed form" if recipe.head_solver == "discriminant" else "head training"
    start = f"the backbone starts from {recipe.weights}"
    if (Path(recipe.weights) / RECORD).is_file():
        start += ", whose head stays behind: a new one is trained for these landmarks"
    if not recipe.epochs:
        return [size, Choice("phases", f"{head} alone", f"the recipe has no epochs of fine-tuning; {start}")]
    return [size, Choice("phases", f"{head}, then fine-tuning", start)]


def result_sentence(folder: Path, record: dict[str, Any], rows: Sequence[Epoch] = ()) -> str:
    """Return the accuracy of the run with this `record`, its interval, and the next step; `rows` are its epochs."""
    best, count = record["best"], record["validated_on"]
    interval = binomtest(round(best["val_accuracy"] * count), count).proportion_ci(method="wilson")
    phase = "the head training" if best["phase"] == "head" else f"epoch {best['epoch']}"
    return (
        f"{folder} answers {percent(best['val_accuracy'])} of {count:,} validation images "
        f"(95 % interval {100 * interval.low:.1f} to {percent(interval.high)}, after {phase}; {record['ended']}); "
        f"{_no_gain_hint(best, rows)}next: landmarks evaluate {in_shell(folder)}"
    )


def _no_gain_hint(best: Mapping[str, Any], rows: Sequence[Epoch]) -> str:
    """Return advice if no epoch of fine-tuning was better than the head training, otherwise an empty text."""
    tuned = [row.val_accuracy for row in rows if row.phase == "finetune"]
    if best["phase"] != "head" or not tuned:
        return ""
    return (
        f"fine-tuning did no better ({percent(max(tuned))} at best), so the network is kept as the head training left "
        "it: try a smaller --learning-rate, --set freeze_bn=true, more images, or --epochs 0; "
    )


def percent(share: float) -> str:
    """Return 0.934 as 93.4 %."""
    return f"{100 * share:.1f} %"
