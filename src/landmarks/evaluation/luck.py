"""How lucky was a run with its landmarks? Many draws from a dataset, told apart on the features of the run's trunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import open_dataset
from landmarks.evaluation.evaluate import name_of, own_dataset
from landmarks.evaluation.lottery import DEFINITIONS, SUFFIX, describe, lottery, place_of
from landmarks.evaluation.rejection import directions
from landmarks.evaluation.trunk import features_of
from landmarks.support.console import note
from landmarks.support.files import held, read_record, write_record
from landmarks.training.run import open_run

DRAWS = 200


def luck(
    run: Path | str,
    landmarks: int,
    *,
    data: Path | str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Return, and write to `metrics/<name>.lottery.json`, how accuracy varies over draws of so many `landmarks`.

    They are drawn from the landmarks with two training photographs or more of the run's dataset, or of `data` (whole
    when it has no parts). A trunk that was fine-tuned knows its own training photographs, and draws from them are too
    good. Where the run has been judged already, the record says where its own accuracy lies among the draws; that
    compares only if it tells as many landmarks apart. Raises `UsageError` when there are fewer than are to be drawn.
    """
    opened = open_run(run)
    dataset = open_dataset(own_dataset(opened) if data is None else data)
    part = "train" if dataset.split is not None else "all"
    if data is None and opened.record.get("best", {}).get("phase") == "finetune":
        note(f"{opened.name} was fine-tuned on the very photographs that are drawn from: its draws are too good")
    photos, features = features_of(opened, dataset, part, device)
    enough = photos.select(pl.len().over("label") > 1).to_series().to_numpy()
    labels = photos["label"].to_numpy()[enough]
    accuracies = lottery(directions(features[enough]), labels, landmarks=landmarks, draws=draws, seed=seed)
    name = "test" if data is None else name_of(dataset, opened)
    numbers: dict[str, Any] = {
        "name": name,
        "data": str(dataset.folder),
        "part": part,
        "landmarks": landmarks,
        "of": int(photos.filter(pl.Series(enough))["label"].n_unique()),
        **describe(accuracies),
        "own": _own(opened.folder / "metrics" / f"{name}.json", len(opened.labels)),
        "seed": seed,
        "accuracies": accuracies.tolist(),
        "definitions": DEFINITIONS,
    }
    if numbers["own"] is not None:
        numbers["own"]["place"] = place_of(numbers["own"]["accuracy"], accuracies)
    with held(opened.folder):
        write_record(opened.folder / "metrics" / f"{name}{SUFFIX}", numbers, verb="evaluate", inputs=dataset.digest)
    return numbers


def _own(metrics: Path, landmarks: int) -> dict[str, Any] | None:
    """Return the accuracy the run was judged to have, and how many landmarks it tells apart; None before that."""
    if not metrics.exists():
        return None
    accuracy = read_record(metrics)["top1"]["value"]
    return None if accuracy is None else {"accuracy": accuracy, "landmarks": landmarks}
