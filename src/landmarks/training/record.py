"""The record of a run, the choices that came from its recipe, and the sentence that sums it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from landmarks.dataset.manifest import SPLITS, Dataset
from landmarks.dataset.naming import identified_by
from landmarks.models.catalogue import gmacs
from landmarks.models.network import Network, count_parameters, has_maps
from landmarks.training.choices import Choice
from landmarks.training.machine import Machine, describe_machine, peak_memory_mb, versions
from landmarks.training.own_data import location_record
from landmarks.training.recipe import Recipe
from landmarks.training.state import State


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
    seconds = {name: state.earlier.get(f"{name}_seconds", 0.0) for name in ("features", "head")}
    seconds["finetune"] = state.seconds
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
        "head": {**state.earlier.get("head", {}), "probe": state.earlier.get("probe")},
        "best": state.best,
        "ended": state.ended,
    }


def recipe_choices(recipe: Recipe) -> list[Choice]:
    """Return the choices that follow from the recipe, with reasons."""
    size = Choice("image", f"{recipe.image_size} pixels", "asked for, or what the weights were made for")
    if recipe.from_scratch:
        return [size, Choice("phases", "one", "without pretrained weights there is nothing to warm up")]
    head = "head in closed form" if recipe.head_solver == "discriminant" else "head training"
    start = f"the backbone starts from {recipe.weights}"
    if Path(recipe.weights).is_dir():
        start += ", whose head stays behind: a new one is trained for these landmarks"
    if not recipe.epochs:
        return [size, Choice("phases", f"{head} alone", f"the recipe has no epochs of fine-tuning; {start}")]
    return [size, Choice("phases", f"{head}, then fine-tuning", start)]


def result_sentence(folder: Path, record: dict[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the accuracy of the run with this `record`, its interval, and the next step; `rows` are its epochs."""
    best, count = record["best"], record["validated_on"]
    interval = binomtest(round(best["val_accuracy"] * count), count).proportion_ci(method="wilson")
    phase = "the head training" if best["phase"] == "head" else f"epoch {best['epoch']}"
    return (
        f"{folder} answers {percent(best['val_accuracy'])} of {count:,} validation images "
        f"(95 % interval {100 * interval.low:.1f} to {percent(interval.high)}, after {phase}; {record['ended']}); "
        f"{_no_gain_hint(best, rows)}next: landmarks evaluate {folder}"
    )


def _no_gain_hint(best: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return advice if no epoch of fine-tuning was better than the head training, otherwise an empty text."""
    tuned = [row["val_accuracy"] for row in rows if row["phase"] == "finetune" and row["val_accuracy"] is not None]
    if best["phase"] != "head" or not tuned:
        return ""
    return (
        f"fine-tuning did no better ({percent(max(tuned))} at best), so the network is kept as the head training left "
        "it: try a smaller --learning-rate, --set freeze_bn=true, more images, or --epochs 0; "
    )


def percent(share: float) -> str:
    """Return 0.934 as 93.4 %."""
    return f"{100 * share:.1f} %"
