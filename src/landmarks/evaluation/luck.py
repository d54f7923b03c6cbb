"""How lucky was a run with its landmarks? Many draws from a dataset, told apart on the features of the run's trunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from landmarks.evaluation.called import name_of
from landmarks.evaluation.lottery import DEFINITIONS, SUFFIX, describe, drawable, held_out, lottery, place_of
from landmarks.evaluation.rejection import directions
from landmarks.evaluation.trunk import features_of
from landmarks.support.console import note
from landmarks.support.files import held, read_record, write_record
from landmarks.training.asked import ask
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

    They are drawn from the landmarks with two groups of training photographs or more of the run's dataset, or of `data`
    (whole when it has no parts). A trunk that was fine-tuned knows its own training photographs: draws from them are
    too good, and among those of `data` they are left out. Where the run has been judged already, the record says where
    its own accuracy lies among the draws; that compares only if it tells as many landmarks apart. Raises `UsageError`
    when there are fewer than are to be drawn.
    """
    opened = open_run(run)
    phase = opened.record.get("best", {}).get("phase")
    untouched = "its trunk was not trained on them" if phase == "warmup" else ""
    asked = ask(opened, data, "train", any_landmarks=True, keep_seen=untouched)
    dataset, part = asked.dataset, asked.part
    if asked.own and phase == "finetune":
        note(f"{opened.name} was fine-tuned on the very photographs that are drawn from: its draws are too good")
    photos, features = features_of(opened, dataset, part, device)
    unseen = photos["id"].is_in(asked.photos["id"].implode()).to_numpy()
    photos, features = photos.filter(pl.Series(unseen)), features[unseen]
    labels = photos["label"].cast(pl.Int64).to_numpy()
    groups = photos["group"].cast(pl.Int64).fill_null(-1).to_numpy()
    accuracies = lottery(directions(features), labels, groups, landmarks=landmarks, draws=draws, seed=seed)
    name = name_of(opened, asked, "all" if part == "all" else "test")
    numbers: dict[str, Any] = {
        "name": name,
        "data": str(dataset.folder.resolve()),
        "part": part,
        "own_data": asked.own,
        "seen": asked.record()["seen"],
        "landmarks": landmarks,
        "of": len(drawable(labels, held_out(labels, groups, seed))),
        **describe(accuracies),
        "own": _own(opened.folder / "metrics" / f"{name}.json", len(opened.labels)),
        "seed": seed,
        "accuracies": accuracies.tolist(),
        "definitions": {},
    }
    if numbers["own"] is not None:
        numbers["own"]["place"] = place_of(numbers["own"]["accuracy"], accuracies)
    told = {"lottery", "place"} if numbers["own"] is not None else {"lottery"}
    there = told | {name for name, value in numbers.items() if value is not None}
    numbers["definitions"] = {name: text for name, text in DEFINITIONS.items() if name in there}
    with held(opened.folder):
        write_record(opened.folder / "metrics" / f"{name}{SUFFIX}", numbers, verb="evaluate", inputs=dataset.digest)
    return numbers


def _own(metrics: Path, landmarks: int) -> dict[str, Any] | None:
    """Return the accuracy the run was judged to have, and how many landmarks it tells apart; None before that."""
    if not metrics.exists():
        return None
    accuracy = read_record(metrics)["top1"]["value"]
    return None if accuracy is None else {"accuracy": accuracy, "landmarks": landmarks}
