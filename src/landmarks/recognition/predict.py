"""The verb `predict`: what do these images show? Files and folders, landmarks or "not a landmark I know"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from landmarks.dataset.sources import find_images
from landmarks.recognition.answers import NOT_KNOWN, Recognition
from landmarks.recognition.recogniser import CLASSIFIER, is_export, load, require_by, require_top
from landmarks.support.console import progress
from landmarks.support.errors import naming_the_extra
from landmarks.support.files import require_writable
from landmarks.support.places import Place
from landmarks.support.systems import readable
from landmarks.support.tables import refuse_other_csv, write_csv

PREDICTED = {
    "path": pl.String,  # with \x.. for bytes that are not UTF-8
    "rank": pl.UInt32,  # from 1; null where the image could not be answered
    "landmark_id": pl.Int64,
    "name": pl.String,
    "probability": pl.Float32,
    "known": pl.Boolean,  # null: the model has no threshold (evaluate --false-acceptance chooses one)
    "problem": pl.String,  # why the image could not be answered; null: it was
}
"""Columns of the table that `predict` returns, images in the order they were named."""


def predict(
    run: Place,
    images: Place | Sequence[Place],
    *,
    csv: Place | None = None,
    top: int = 3,
    by: str | None = None,
    device: str = "auto",
) -> pl.DataFrame:
    """Return the `top` best answers of `run` to each image, as `PREDICTED`; `csv` also writes the table to a file.

    `run` is a run's folder, or an export, which needs no PyTorch. `images` are files and folders; a folder stands for
    all images in it and below, sorted by name. An image that cannot be decoded has one row that says why. `by` is the
    way of answering: classifier, neighbours or both; by default the one that validation chose for the run. Answering by
    neighbours for the first time needs the run's own dataset. `device` is auto, cpu, cuda or mps. Raises
    `LandmarksError` when a path does not exist or holds no images.
    """
    require_top(top)
    require_by(by)
    if csv is not None:
        refuse_other_csv(csv, PREDICTED)  # before the work
        require_writable(csv)
    if by is not None and by != CLASSIFIER and not is_export(run):
        with naming_the_extra("answering by neighbours"):
            from landmarks.recognition.making_ready import make_ready
        make_ready(run, device=device)
    recogniser = load(run, by=by, device=device)
    paths = find_images(images)
    rows: list[tuple[Any, ...]] = []
    with progress("answering", total=len(paths)) as advance:
        for path, recognition in zip(paths, recogniser.recognitions(paths, top), strict=True):
            rows += _rows(readable(path), recognition)
            advance(1)
    table = pl.DataFrame(rows, schema=PREDICTED, orient="row")
    if csv is not None:
        write_csv(csv, table)
    return table


def counts(table: pl.DataFrame) -> pl.DataFrame:
    """Return how many images of a table of `predict` have each best answer, most images first: name, images."""
    best = table.filter(pl.col("rank") == 1)
    answer = pl.when(pl.col("known").fill_null(True)).then(pl.col("name")).otherwise(pl.lit(NOT_KNOWN)).alias("name")
    counted = best.select(answer).group_by("name").agg(images=pl.len())
    return counted.sort(["images", "name"], descending=[True, False])


def _rows(path: str, recognition: Recognition) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of `PREDICTED` for one file."""
    if recognition.problem is not None:
        yield (path, None, None, None, None, None, recognition.problem)
    for rank, answer in enumerate(recognition.answers, 1):
        yield (path, rank, answer.landmark_id, answer.name, answer.probability, recognition.known, None)
