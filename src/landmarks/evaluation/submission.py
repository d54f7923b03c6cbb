"""The verb `score`, which measures a submission to the challenge; also writes submissions and metrics files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.archive.csv_tables import IMAGE, SOLUTION, CsvColumn, CsvTable, read_checked
from landmarks.dataset.manifest import NO_LABEL
from landmarks.evaluation.measure import Measurement, definitions_of, measure
from landmarks.evaluation.metrics import Truth, require_unique_ids
from landmarks.evaluation.predictions import PREDICTIONS, PredictionArrays
from landmarks.evaluation.results import Evaluation, evaluation_of
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import file_digest, held, read_record, refuse_foreign, write_record
from landmarks.support.places import Place
from landmarks.support.tables import write_csv, write_table
from landmarks.training.run import RECORD


def score(submission: Place, truth: Place, *, out: Place | None = None) -> Evaluation:
    """Measure a submission in the challenge's form against the solution CSV `truth`.

    With `out`, predictions, metrics and the landmarks that occur are written to that folder, which `landmarks report`
    reads like a run's. Images of usage `Ignored` count in no number.
    Raises `LandmarksError` on rows that are no predictions, images that are predicted twice or are not in the
    solution, and when no image counts.
    """
    if out is not None:
        _refuse_other_folders(Path(out))
    started = time.monotonic()
    submitted, solution = read_submission(submission), read_solution(truth)
    _require_in_solution(submitted, solution)
    counts = pl.col("usage") != IGNORED
    ignored, solution = solution.filter(~counts), solution.filter(counts)
    if solution.is_empty():
        raise LandmarksError(f"no image of {truth} counts", received=f"{len(ignored):,} of usage {IGNORED}")
    submitted = submitted.join(solution, on="image_id", how="semi", maintain_order="left")
    answered = int(submitted["landmark_id"].is_not_null().sum())
    left_out = f"; {len(ignored):,} of usage {IGNORED} count nowhere" if len(ignored) else ""
    note(f"{plural(len(solution), 'image')} in the truth, {answered:,} of them answered by the submission{left_out}")
    answers = submitted["landmark_id"].drop_nulls()
    if len(answers) and not answers.is_in(solution["landmarks"].explode(empty_as_null=False).implode()).any():
        note(
            "none of the landmarks that the submission names is one that the solution shows: are its ids the archive's,"
            " or numbers of another table?"
        )
    arrays, landmark_ids = submission_arrays(submitted, solution)
    labels = _labels(landmark_ids)
    name = Path(submission).stem
    about: dict[str, Any] = {"name": name, "run": name, "data": str(truth), "split": "test", "temperature": None}
    about["answered"] = answered
    if out is None:
        about["seconds"] = time.monotonic() - started
        return evaluation_of(_record(about, measure(arrays), labels["name"]))
    with held(out) as folder:
        write_table(folder / "labels.parquet", labels)
        write_table(
            folder / "predictions" / f"{name}.parquet", _predictions(arrays), run=name, data=truth, split="test"
        )
        about["seconds"] = time.monotonic() - started
        numbers = write_metrics(folder, labels, arrays, about, verb="score", inputs=file_digest(submission))
        write_record(folder / RECORD, {"data": {"folder": str(truth)}}, verb="score")
    return evaluation_of(numbers)


def _refuse_other_folders(out: Path) -> None:
    """Raise `UsageError` for a folder that holds anything but the numbers of a submission, such as a run."""
    refuse_foreign(out, (RECORD,), "numbers of a submission")
    if (out / RECORD).is_file() and read_record(out / RECORD).get("verb") != "score":
        raise UsageError(f"{out} is a run, whose files would be replaced", way_out="choose another folder")


def write_metrics(
    folder: Path, labels: pl.DataFrame, arrays: PredictionArrays, about: dict[str, Any], *, verb: str, inputs: str
) -> dict[str, Any]:
    """Measure `arrays`, write `metrics/<name>.json` and its two tables, and return the record.

    `about` describes the images and the run; its entries come first in the record. `about["name"]` is `<name>`.
    """
    measured = measure(arrays)
    metrics, name = folder / "metrics", about["name"]
    first = ["label", "landmark_id", "name"]
    table = measured.landmarks.cast({"label": pl.UInt32}).join(labels.select(first), on="label", how="left")
    write_table(metrics / f"{name}.landmarks.parquet", table.select(*first, pl.exclude(first)))
    write_table(metrics / f"{name}.confusion.parquet", measured.confusion.cast(pl.UInt32))
    numbers = _record(about, measured, labels["name"])
    write_record(metrics / f"{name}.json", numbers, verb=verb, inputs=inputs)
    return numbers


def _record(about: dict[str, Any], measured: Measurement, names: pl.Series) -> dict[str, Any]:
    """Return `about`, the numbers and their definitions as one record; `names` holds the landmarks' names by label."""
    confused = [
        {**pair, "truth_name": names[pair["truth"]], "answer_name": names[pair["answer"]]}
        for pair in measured.record["confused"]
    ]
    numbers = {**about, **measured.record, "confused": confused}
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


def _predictions(arrays: PredictionArrays) -> pl.DataFrame:
    """Return `arrays` as a predictions table; columns that a submission does not have are null."""
    rows = pl.DataFrame({"row": arrays.truth.rows, "truth": arrays.truth.labels})
    shown = rows.group_by("row", maintain_order=True).agg("truth")
    table = pl.DataFrame({"image_id": arrays.ids, "label": arrays.labels[:, 0], "score": arrays.scores[:, 0]})
    answered, none = pl.col("label") >= 0, pl.lit([], dtype=pl.List(pl.Int64))
    table = table.with_row_index("row").join(shown.cast({"row": pl.UInt32}), on="row", how="left")
    return (
        table.sort("row")
        .select(
            "image_id",
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


# The challenge's submission form, `id,landmarks`, and its solution, the archive's `recognition_solution_v2.1.csv`.
#
# The second cell of a submission is empty, or holds one landmark id and one score separated by a space: `12345 0.87`.


IGNORED = "Ignored"
"""The usage of images that count in no number."""

SCORE = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?"

SUBMISSION = CsvTable(
    "",
    {"id": IMAGE, "landmarks": CsvColumn(f" *([0-9]{{1,18}} +{SCORE})? *", "a landmark id and a score, or nothing")},
)
"""Columns of a submission; a score is a finite decimal number."""


def write_submission(path: Place, ids: pl.Series, landmark_ids: pl.Series, scores: pl.Series) -> None:
    """Write one answer per image, an empty one where the landmark is null.

    Raises `LandmarksError` on an id that occurs twice and on a score that is not finite.
    """
    require_unique_ids(ids.to_list())
    answered = landmark_ids.is_not_null()
    if not scores.filter(answered).is_finite().all():
        raise LandmarksError("a score is no number", received=str(scores.filter(~scores.is_finite())[0]))
    table = pl.DataFrame({"image_id": ids, "landmark": landmark_ids, "score": scores})
    cell = pl.format("{} {}", "landmark", pl.col("score"))
    answers = pl.when(pl.col("landmark").is_not_null()).then(cell)
    write_csv(path, table.select(id="image_id", landmarks=answers))


def read_submission(path: Place) -> pl.DataFrame:
    """Read a submission as `image_id` str, `landmark_id` i64?, `score` f64?, in the order of its rows.

    Raises `LandmarksError` that names the line of a cell that is neither empty nor one landmark and a finite score, or
    an image that is predicted twice.
    """
    file = Path(path)
    rows = read_checked(SUBMISSION, file)
    words = pl.col("landmarks").str.strip_chars().str.splitn(" ", 2)
    table = rows.select(
        "image_id",
        landmark_id=words.struct[0].cast(pl.Int64, strict=False),
        score=words.struct[1].str.strip_chars().cast(pl.Float64, strict=False),
    )
    if not table["score"].drop_nulls().is_finite().all():
        raise LandmarksError(f"{file} holds a score beyond the largest number that can be stored")
    require_unique_ids(table["image_id"].to_list())
    return table


def read_solution(path: Place) -> pl.DataFrame:
    """Read the ground truth as `image_id` str, `landmarks` list[i64], `usage` str, sorted by id.

    Images of usage `Ignored` are included.
    """
    file = Path(path)
    rows = read_checked(SOLUTION, file)
    require_unique_ids(rows["image_id"].to_list())
    shown = pl.col("landmarks").fill_null("").str.extract_all("[0-9]+").cast(pl.List(pl.Int64))  # "None": no landmark
    return rows.select("image_id", landmarks=shown, usage="Usage").sort("image_id")


def submission_arrays(submission: pl.DataFrame, solution: pl.DataFrame) -> tuple[PredictionArrays, pl.Series]:
    """Return a prediction for every image of `solution`, and the landmark id of each label used in them.

    An image that the submission leaves out has no answer. Raises `LandmarksError` on images that are not in the
    solution.
    """
    _require_in_solution(submission, solution)
    table = solution.join(submission, on="image_id", how="left").sort("image_id")
    shown = table["landmarks"].explode(empty_as_null=False).drop_nulls()
    landmark_ids = pl.concat([shown, table["landmark_id"].drop_nulls()]).unique().sort()
    scores = table["score"].to_numpy()
    lowest = np.nanmin(scores) if np.isfinite(scores).any() else 0.0
    answers = landmark_ids.search_sorted(table["landmark_id"].fill_null(landmark_ids.max() or 0)).to_numpy()
    counts = table["landmarks"].list.len().to_numpy()
    arrays = PredictionArrays(
        ids=table["image_id"].to_numpy(),
        truth=Truth(np.repeat(np.arange(len(table)), counts), landmark_ids.search_sorted(shown).to_numpy(), len(table)),
        labels=np.where(np.isnan(scores), NO_LABEL, answers.astype(np.int64))[:, None],
        scores=np.where(np.isnan(scores), np.nextafter(lowest, -np.inf), scores)[:, None],
        groups=np.full(len(table), -1),
        usage=table["usage"].to_numpy(),
    )
    return arrays, landmark_ids


def _require_in_solution(submission: pl.DataFrame, solution: pl.DataFrame) -> None:
    extra = submission.join(solution, on="image_id", how="anti", maintain_order="left")
    if len(extra):
        raise LandmarksError(
            f"{plural(len(extra), 'image')} of the submission not in the solution",
            received=extra["image_id"][0],
            expected="the ids of the test set (train, index and test have ids of one kind)",
        )
