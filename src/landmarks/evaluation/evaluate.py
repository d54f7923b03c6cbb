"""The verb `evaluate`: answer the photographs of a part, write the answers down, and compute every number from them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.arrays import Arrays, arrays_of
from landmarks.evaluation.called import name_of
from landmarks.evaluation.choice import choose_threshold, halves_of
from landmarks.evaluation.judge import write_metrics
from landmarks.evaluation.predictions import read_predictions, with_truth, write_predictions
from landmarks.evaluation.recogniser import Recogniser, open_recogniser, update_model
from landmarks.evaluation.reference import ensure_reference, open_reference
from landmarks.evaluation.rejection import Rule
from landmarks.evaluation.submission import write_submission
from landmarks.evaluation.tempering import ensure_temperature
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.support.files import held, read_record
from landmarks.training.asked import Asked, ask
from landmarks.training.own_data import find_own, is_own, whereabouts
from landmarks.training.run import Run, open_run
from landmarks.training.seen import as_seen, sightings


def evaluate(
    run: Path | str,
    *,
    data: Path | str | None = None,
    part: str = "test",
    others: Path | str | None = None,
    false_acceptance: float | None = None,
    submission: Path | str | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluate `run` on a part of its own dataset, or of `data`, and return the record of numbers.

    Writes `predictions/<name>.parquet`, then from it `metrics/<name>.json` and two tables beside; `<name>` is the part,
    or comes from the folder name of `data` (see `name_of`). A dataset without parts is evaluated whole. Which
    photographs are judged, and how landmarks are matched, is decided by `ask`.
    `others` is a dataset whose photographs all count as unknown, whatever they show, beside those of the part.
    `false_acceptance` chooses the rule that tells known from unknown, and stores it with the model for `predict`;
    `submission` is a file to write the part's answers to in the challenge's form. `device` is auto, cpu, cuda or mps.
    Raises `LandmarksError` when the run knows none of the dataset's landmarks or has seen all of its photographs, and
    when its own was divided anew.
    """
    opened = open_run(run)
    asked = ask(opened, data, part)
    if asked.own and asked.part in ("train", "val"):
        what = "trained on" if asked.part == "train" else "validated with, which chose its best epoch"
        note(f"{opened.name} was {what} these photographs: the numbers say little about others")
    with held(opened.folder):
        started = time.monotonic()
        name = name_of(opened, asked)
        unknown = bool(with_truth(asked.photos, asked.labels)["truth"].list.len().eq(0).any())
        own = asked.dataset if asked.own else None
        recogniser = prepare(opened, batch_size, remember=unknown or others is not None, own=own, device=device)
        path = write_predictions(opened, asked, name, recogniser, batch_size=batch_size)
        predictions = read_predictions(path)
        judged = arrays_of(predictions)
        about: dict[str, Any] = {"name": name, "run": opened.name, **_about(opened, asked)}
        arrays = judged
        if others is not None:
            together, about["others"] = with_others(
                predictions, opened, asked, others, recogniser=recogniser, batch_size=batch_size
            )
            arrays = arrays_of(together)
        about |= {"temperature": recogniser.temperature, "seconds": time.monotonic() - started}
        numbers = write_metrics(opened.folder, opened.labels, arrays, about, inputs=opened.digest)
        if false_acceptance is not None:
            numbers["threshold"] = store_threshold(opened, arrays, false_acceptance)
        if submission is not None:
            export_submission(opened, judged, submission)
    return numbers


def _about(run: Run, asked: Asked) -> dict[str, Any]:
    """Return what a record of numbers says about the photographs: where they lie, and what was decided on the way."""
    place = whereabouts(asked.dataset.folder, beside=run.folder)
    told = {"data": place["folder"], "part": asked.part, **asked.record()}
    return told | ({"data_relative": place["relative"]} if "relative" in place else {})


def with_others(
    predictions: pl.DataFrame,
    run: Run,
    judged: Asked,
    others: Path | str,
    *,
    recogniser: Recogniser,
    batch_size: int,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return `predictions` with those of all photographs of the dataset `others`, which show nothing known.

    With it comes the record of these. What the run has seen is left out, and what is among the `judged` photographs.
    Public and Private are forgotten, since the others are neither: halves of the groups take their place.
    """
    asked = ask(run, others, "all", any_landmarks=True)
    twice = sightings(asked.photos, as_seen(judged.photos, "judged"))
    if len(twice):
        note(f"{len(twice)} of the {len(asked.photos)} photographs of {others} are among those judged, and left out")
        asked = replace(asked, photos=asked.photos.join(twice, on="id", how="anti", maintain_order="left"))
    if not len(asked.photos):
        raise LandmarksError(
            f"every photograph of {others} is judged already", way_out="name photographs of other things"
        )
    known = asked.photos.join(asked.labels, on="landmark_id", how="semi")
    called = f"; {len(known)} of them are said to show a landmark that {run.name} knows" if len(known) else ""
    note(f"{len(asked.photos)} photographs of {others} count as unknown{called}")
    name = name_of(run, asked)
    path = write_predictions(run, asked, name, recogniser, batch_size=batch_size)
    taken, nothing = predictions["id"].to_list(), pl.lit([], dtype=pl.List(pl.UInt32))
    apart = pl.when(pl.col("id").is_in(taken)).then(pl.format(f"{{}} ({name})", "id")).otherwise("id")
    unknown = read_predictions(path).with_columns(id=apart, truth=nothing, truth_score=None, group=None)
    together = pl.concat([predictions, unknown], how="vertical_relaxed").sort("id")
    return together.with_columns(usage=pl.lit(None, pl.String)), _about(run, asked)


def prepare(
    run: Run, batch_size: int, *, remember: bool, own: Dataset | None = None, device: str = "auto"
) -> Recogniser:
    """Return the run's network, tempered on its validation photographs; with `remember`, knowing its training ones too.

    Both come from the run's dataset (`own`, where it is open already), while that is there. They are the photographs
    that the run was validated with and trained on, whatever parts these are in now.
    """
    recogniser = open_recogniser(run, device=device)
    own = own or _own_to_fit_on(run)
    if own is not None:
        recogniser = ensure_temperature(run, own, recogniser, batch_size)
    reference = open_reference(run)
    if reference is None and remember and own is not None:
        reference = ensure_reference(run, recogniser.network, own, batch_size)
    return Recogniser(recogniser.network, recogniser.temperature, reference, recogniser.device)


def _own_to_fit_on(run: Run) -> Dataset | None:
    try:
        own = find_own(run)
    except LandmarksError as error:
        note(f"nothing new is fitted: {error}")
        return None
    if run.seen is None and not is_own(run, own):
        note(f"nothing new is fitted: {own.folder} is not as it was, and what {run.name} was trained on is not known")
        return None
    return own


def store_threshold(run: Run, arrays: Arrays, false_acceptance: float) -> dict[str, Any]:
    """Choose how photographs of nothing known are told, and keep it in the run's `model.json`."""
    halves = halves_of(arrays.usage, arrays.groups)
    chosen = choose_threshold(arrays.all_scores, arrays.truth.known, halves, false_acceptance)
    update_model(run, rejection=chosen)
    return chosen


def export_submission(run: Run, arrays: Arrays, path: Path | str) -> None:
    """Write the best answers in the challenge's form, scored by the rule that the model keeps, else by probability."""
    stored = read_record(run.folder / "model.json").get("rejection")
    rule = Rule("probability", {"probability": 1.0}) if stored is None else Rule(**stored["rule"])
    landmark_ids = run.labels["landmark_id"].gather(arrays.labels[:, 0])
    scores = pl.Series(rule.apply(arrays.all_scores))
    write_submission(path, pl.Series(arrays.ids, dtype=pl.String), landmark_ids, scores)
    note(f"{len(arrays.ids)} answers written to {path}, scored by {rule.name}")
