"""The predictions file: what a run's network answers to each photograph of a part, and what the photographs show.

Photographs are answered in the order of their ids, a batch at a time; every few thousand are written aside, so that
memory does not grow with their number and a killed evaluation goes on where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from landmarks import __version__
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.metrics import NO_ANSWER
from landmarks.evaluation.recogniser import Answers, Recogniser
from landmarks.support.console import Advance, progress
from landmarks.support.errors import LandmarksError
from landmarks.support.files import FORMAT, digest_of, written_whole
from landmarks.support.tables import read_metadata, read_table, write_table
from landmarks.support.text import readable
from landmarks.training.asked import Asked
from landmarks.training.photos import batches
from landmarks.training.run import Run

PREDICTIONS = {
    "id": pl.String,
    "truth": pl.List(pl.UInt32),  # labels of the run that the photograph shows, the one it counts for first
    "label": pl.List(pl.UInt32),  # the best answers, at most five, by score descending, then label ascending
    "score": pl.List(pl.Float32),  # their probabilities, after temperature
    "truth_score": pl.Float32,  # natural logarithm of the probability of the first truth; null: it shows none
    "untempered": pl.Float32,  # the largest probability before temperature
    "group": pl.UInt32,
    "usage": pl.String,
}
"""Columns of `predictions/<name>.parquet`, sorted by id; after them one Float32 column per rejection score."""

CHUNK = 4096
"""Photographs written aside at a time: about 0.5 MB, and at most some minutes of work lost to a kill."""


def write_predictions(run: Run, asked: Asked, name: str, recogniser: Recogniser, *, batch_size: int) -> Path:
    """Answer the photographs of `asked` and write `predictions/<name>.parquet`; return its path.

    A file that the same model made of the same photographs is left as it is. Call it while holding the run's folder.
    """
    dataset = asked.dataset
    path = run.folder / "predictions" / f"{name}.parquet"
    photos = with_truth(asked.photos, asked.labels).sort("id")
    made_of = {
        "part": asked.part,
        "data_digest": dataset.digest,
        "model_digest": digest_of(run.digest, recogniser.digest),
        "photographs": _digest_of(photos),
    }
    if path.exists() and all(read_metadata(path).get(key) == value for key, value in made_of.items()):
        return path
    place = readable(dataset.folder.resolve())
    about = {
        "run": readable(run.name),
        "data": place,
        "content_digest": str(dataset.content_digest),
        "own_data": str(asked.own),
    }
    aside = path.with_name(f".{name}.chunks")
    key = digest_of(made_of, CHUNK)
    with progress(f"answering {name}", total=len(photos)) as advance:
        chunks = []
        for start in range(0, len(photos), CHUNK):
            chunk = aside / f"{start:09d}.parquet"
            some = photos.slice(start, CHUNK)
            if not (chunk.exists() and read_metadata(chunk).get("key") == key):
                answers = _answers(recogniser, dataset, some, batch_size)
                write_table(chunk, _table(some, answers, advance), key=key)
            else:
                advance(len(some))
            chunks.append(chunk)
    _join(chunks, path, {**about, **made_of})
    shutil.rmtree(aside)
    return path


def with_truth(photos: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """Return `photos` with `truth`: the labels, in a run's `labels`, of the landmarks they show, the main one first.

    A landmark that the run does not know is left out; a photograph of nothing the run knows has an empty list.
    """
    main = pl.col("landmark_id")
    others = pl.col("landmarks").fill_null([]).list.set_difference(pl.concat_list(main.fill_null(-1)))
    shown = photos.select("id", shown=pl.concat_list(pl.concat_list(main), others.list.sort()).list.drop_nulls())
    known = (
        shown.explode("shown", empty_as_null=False)
        .join(labels.select(shown="landmark_id", truth="label"), on="shown", how="inner", maintain_order="left")
        .group_by("id", maintain_order=True)
        .agg(pl.col("truth").cast(pl.UInt32))
    )
    joined = photos.drop("truth", strict=False).join(known, on="id", how="left")
    return joined.with_columns(pl.col("truth").fill_null(pl.lit([], dtype=pl.List(pl.UInt32))))


def read_predictions(path: Path) -> pl.DataFrame:
    """Read a predictions file with all its columns; raise when one is missing, doubled or damaged."""
    table = read_table(path, PREDICTIONS)
    if table["id"].is_duplicated().any():
        raise LandmarksError(f"{path} holds two predictions for one photograph", way_out="delete it and evaluate again")
    return table


def rejection_columns(predictions: pl.DataFrame) -> list[str]:
    """Return the names of a predictions table's rejection scores."""
    return [name for name in predictions.columns if name not in PREDICTIONS]


def _digest_of(photos: pl.DataFrame) -> str:
    """Return the digest of which photographs are answered and what they show, a slice at a time."""
    digests = [digest_of(rows.rows()) for rows in photos.select("id", "truth").iter_slices(100_000)]
    return digest_of(digests)


def _answers(recogniser: Recogniser, dataset: Dataset, photos: pl.DataFrame, batch_size: int) -> Iterator[Answers]:
    first = photos["truth"].list.first().cast(pl.Int64).fill_null(NO_ANSWER).to_numpy()
    start = 0
    for batch in batches(dataset, photos, recogniser.network.preprocessing, batch_size=batch_size):
        yield recogniser.answer(batch.images, first[start : start + len(batch.ids)])
        start += len(batch.ids)


def _table(photos: pl.DataFrame, answers: Iterator[Answers], advance: Advance) -> pl.DataFrame:
    parts = []
    for some in answers:
        advance(len(some.labels))
        columns = {
            "label": pl.Series(some.labels.tolist(), dtype=pl.List(pl.UInt32)),
            "score": pl.Series(some.scores.tolist(), dtype=pl.List(pl.Float32)),
            "truth_score": pl.Series(some.truth_log_scores).fill_nan(None),
            "untempered": some.untempered,
            **some.rejection,
        }
        parts.append(pl.DataFrame(columns))
    answered = pl.concat(parts)
    told = photos.select("id", "truth", "group", "usage")
    rejection = [name for name in answered.columns if name not in PREDICTIONS]
    return pl.concat([told, answered], how="horizontal").select(*PREDICTIONS, *rejection)


def _join(chunks: list[Path], path: Path, metadata: dict[str, str]) -> None:
    table = pl.concat([pl.scan_parquet(chunk) for chunk in chunks])
    texts = {**metadata, "landmarks.format": str(FORMAT), "landmarks.version": __version__}
    with written_whole(path) as whole:
        table.sink_parquet(whole, metadata=texts, maintain_order=True, row_group_size=CHUNK * 16)
