"""The verb `evaluate`: answer the photographs of a part, write the answers down, and compute every number from them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import PARTS, Dataset, open_dataset
from landmarks.evaluation.arrays import Arrays, arrays_of
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
from landmarks.training.run import Run, open_run


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
    or the folder name of `data` (`data-test` where the run has a part `test` of its own). A dataset without parts is
    evaluated whole.
    `others` is a dataset whose photographs all count as unknown, whatever they show, beside those of the part.
    `false_acceptance` chooses the rule that tells known from unknown, and stores it with the model for `predict`;
    `submission` is a file to write the answers to in the challenge's form. `device` is auto, cpu, cuda or mps. Raises
    `LandmarksError` when the run knows none of the dataset's landmarks.
    """
    opened = open_run(run)
    dataset, photos, part = photographs_of(opened, data, part)
    name = part if data is None else name_of(dataset, opened)
    with held(opened.folder):
        started = time.monotonic()
        unknown = bool(with_truth(photos, opened.labels)["truth"].list.len().eq(0).any())
        recogniser = prepare(opened, batch_size, remember=unknown or others is not None, device=device)
        path = write_predictions(opened, dataset, photos, name, recogniser, part=part, batch_size=batch_size)
        predictions = read_predictions(path)
        if others is not None:
            predictions = with_others(predictions, opened, others, recogniser, batch_size)
        arrays = arrays_of(predictions)
        about: dict[str, Any] = {"name": name, "run": opened.name, "data": str(dataset.folder), "part": part}
        about |= {"temperature": recogniser.temperature, "seconds": time.monotonic() - started}
        numbers = write_metrics(opened.folder, opened.labels, arrays, about, inputs=opened.digest)
        if false_acceptance is not None:
            numbers["threshold"] = store_threshold(opened, arrays, false_acceptance)
        if submission is not None:
            export_submission(opened, arrays_of(read_predictions(path)), submission)
    return numbers


def photographs_of(run: Run, data: Path | str | None, part: str) -> tuple[Dataset, pl.DataFrame, str]:
    """Return the dataset, the photographs to answer, and the part they are (`all` where there are no parts)."""
    dataset = open_dataset(own_dataset(run) if data is None else data)
    if data is not None and dataset.split is None:
        part = "all"
    photos = dataset.part(part)
    if not len(photos):
        raise LandmarksError(f'the part "{part}" of {dataset.folder} holds no photographs')
    known = set(run.labels["landmark_id"]) & set(dataset.labels["landmark_id"])
    if len(dataset.labels) and not known:
        raise LandmarksError(
            f"the run {run.folder} does not fit the data {dataset.folder}",
            received=f"{len(dataset.labels)} landmarks, none of which the run knows",
            expected=f"some of its {len(run.labels)}",
        )
    return dataset, photos, part


def name_of(dataset: Dataset, run: Run) -> str:
    """Return what the numbers of another dataset are called: its folder's name, unless a part of the run has it."""
    name = dataset.folder.resolve().name
    own = run.record["data"].get("photographs") or dict.fromkeys(PARTS, 1)
    return f"data-{name}" if own.get(name) else name


def own_dataset(run: Run) -> str:
    """Return the folder of the dataset that `run` was trained on."""
    return str(run.record["data"]["folder"])


def with_others(
    predictions: pl.DataFrame, run: Run, others: Path | str, recogniser: Recogniser, batch_size: int
) -> pl.DataFrame:
    """Return `predictions` and those of all photographs of the dataset `others`, which show nothing known.

    Public and Private are forgotten, since the others are neither: halves of the groups take their place.
    """
    dataset = open_dataset(others)
    photos = dataset.part("all").filter(~pl.col("id").is_in(predictions["id"].to_list()))
    note(f"{len(photos)} photographs of {others} count as unknown")
    path = write_predictions(run, dataset, photos, name_of(dataset, run), recogniser, part="all", batch_size=batch_size)
    nothing = pl.lit([], dtype=pl.List(pl.UInt32))
    unknown = read_predictions(path).with_columns(truth=nothing, truth_score=None, group=None)
    together = pl.concat([predictions, unknown], how="vertical_relaxed").sort("id")
    return together.with_columns(usage=pl.lit(None, pl.String))


def prepare(run: Run, batch_size: int, *, remember: bool, device: str = "auto") -> Recogniser:
    """Return the run's network, tempered on its validation part; with `remember`, knowing its training photographs too.

    Both come from the run's own dataset, when that is still there.
    """
    recogniser = open_recogniser(run, device=device)
    own = _open_own_dataset(run)
    if own is not None:
        recogniser = ensure_temperature(run, own, recogniser, batch_size)
    reference = open_reference(run)
    if reference is None and remember and own is not None:
        reference = ensure_reference(run, recogniser.network, own, batch_size)
    return Recogniser(recogniser.network, recogniser.temperature, reference, recogniser.device)


def _open_own_dataset(run: Run) -> Dataset | None:
    try:
        own = open_dataset(own_dataset(run))
    except LandmarksError:
        note(f"the dataset of {run.name} is not at {own_dataset(run)} any more: nothing new is fitted to it")
        return None
    return own if own.split is not None else None


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
