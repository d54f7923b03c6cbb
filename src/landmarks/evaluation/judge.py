"""Judging answers, whoever gave them: metrics written down, and other people's submissions by the same code."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.evaluation.arrays import Arrays
from landmarks.evaluation.measure import Measured, definitions_of, measure
from landmarks.evaluation.predictions import PREDICTIONS
from landmarks.evaluation.submission import read_solution, read_submission, submission_arrays
from landmarks.support.console import note
from landmarks.support.files import file_digest, held, write_record
from landmarks.support.tables import write_table


def judge(submission: Path | str, truth: Path | str, *, out: Path | str | None = None) -> dict[str, Any]:
    """Return every number that a submission in the challenge's form allows, against the solution CSV `truth`.

    With `out`, a folder that `landmarks report` reads like a run's: predictions, metrics and the landmarks that occur.
    Raises `LandmarksError` on rows that are no predictions, photographs predicted twice or not in the solution.
    """
    started = time.monotonic()
    submitted, solution = read_submission(submission), read_solution(truth)
    answered = int(submitted["landmark_id"].is_not_null().sum())
    note(f"{len(solution)} photographs in the truth, {answered} of them answered by the submission")
    arrays, landmark_ids = submission_arrays(submitted, solution)
    name = Path(submission).stem
    about: dict[str, Any] = {"name": name, "run": name, "data": str(truth), "part": "test", "temperature": None}
    about["answered"] = answered
    if out is None:
        return _record({**about, "seconds": time.monotonic() - started}, measure(arrays))
    with held(out) as folder:
        labels = _labels(landmark_ids)
        write_table(folder / "labels.parquet", labels)
        write_table(folder / "predictions" / f"{name}.parquet", _predictions(arrays), run=name, data=truth, part="test")
        about["seconds"] = time.monotonic() - started
        numbers = write_metrics(folder, labels, arrays, about, inputs=file_digest(submission))
        write_record(folder / "run.json", {"data": {"folder": str(truth)}}, verb="evaluate")
    return numbers


def write_metrics(
    folder: Path, labels: pl.DataFrame, arrays: Arrays, about: dict[str, Any], *, inputs: str
) -> dict[str, Any]:
    """Measure `arrays` and write `metrics/<name>.json` and its two tables; return the record, `about` first."""
    measured = measure(arrays)
    metrics, name = folder / "metrics", about["name"]
    first = ["label", "landmark_id", "name"]
    table = measured.landmarks.cast({"label": pl.UInt32}).join(labels.select(first), on="label", how="left")
    write_table(metrics / f"{name}.landmarks.parquet", table.select(*first, pl.exclude(first)))
    write_table(metrics / f"{name}.confusion.parquet", measured.confusion.cast(pl.UInt32))
    names = labels["name"]
    for pair in measured.record["confused"]:
        pair |= {"truth_name": names[pair["truth"]], "answer_name": names[pair["answer"]]}
    numbers = _record(about, measured)
    write_record(metrics / f"{name}.json", numbers, verb="evaluate", inputs=inputs)
    return numbers


def _record(about: dict[str, Any], measured: Measured) -> dict[str, Any]:
    numbers = {**about, **measured.record}
    return numbers | {"definitions": definitions_of(numbers)}


def _labels(landmark_ids: pl.Series) -> pl.DataFrame:
    ids = landmark_ids.cast(pl.String)
    return pl.DataFrame({"landmark_id": landmark_ids, "name": "landmark " + ids}).select(
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("label"),
        "landmark_id",
        "name",
        category=pl.lit(None, pl.String),
        images=pl.lit(None, pl.UInt32),
    )


def _predictions(arrays: Arrays) -> pl.DataFrame:
    """Return `arrays` as a predictions table; what a submission does not tell is null."""
    rows = pl.DataFrame({"row": arrays.truth.rows, "truth": arrays.truth.labels})
    shown = rows.group_by("row", maintain_order=True).agg("truth")
    table = pl.DataFrame({"id": arrays.ids, "label": arrays.labels[:, 0], "score": arrays.scores[:, 0]})
    answered, none = pl.col("label") >= 0, pl.lit([], dtype=pl.List(pl.Int64))
    table = table.with_row_index("row").join(shown.cast({"row": pl.UInt32}), on="row", how="left")
    return (
        table.sort("row")
        .select(
            "id",
            pl.col("truth").fill_null(none),
            pl.when(answered).then(pl.concat_list("label")).otherwise(none).alias("label"),
            pl.when(answered).then(pl.concat_list("score")).otherwise(none).alias("score"),
            truth_score=None,
            untempered=None,
            group=None,
            usage=pl.Series(arrays.usage, dtype=pl.String),
        )
        .cast(dict(PREDICTIONS))  # type: ignore[arg-type]
    )
