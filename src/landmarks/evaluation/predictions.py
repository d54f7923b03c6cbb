"""The predictions file: what a run's network answers to each image of a split, and what the images show.

Images are answered in the order of their ids, a batch at a time; every few thousand are written aside, so that
memory does not grow with their number and a killed evaluation goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks import __version__
from landmarks.dataset.manifest import NO_LABEL, SPLITS, Dataset
from landmarks.dataset.shards import ImageReader
from landmarks.evaluation.metrics import Floats, Integers, Truth
from landmarks.recognition.answers import Answers
from landmarks.recognition.recogniser import ANSWERS, Recogniser
from landmarks.recognition.unknown_images import key_of
from landmarks.support.console import Advance, progress
from landmarks.support.disk import remove_folder
from landmarks.support.errors import LandmarksError
from landmarks.support.files import FORMAT, digest_of, read_record, written_whole
from landmarks.support.systems import readable
from landmarks.support.tables import read_metadata, read_table, write_table
from landmarks.training.eligible_images import EligibleImages
from landmarks.training.run import Run

PREDICTIONS = {
    "image_id": pl.String,
    "truth": pl.List(pl.UInt32),  # labels of the run that the image shows, the one it counts for first
    "label": pl.List(pl.UInt32),  # the best answers, at most five, by score descending, then label ascending
    "score": pl.List(pl.Float32),  # their probabilities, after temperature
    "truth_score": pl.Float32,  # natural logarithm of the probability of the first truth; null: it shows none
    "untempered": pl.Float32,  # the largest probability before temperature
    "group": pl.UInt32,
    "usage": pl.String,
}
"""Columns of `predictions/<name>.parquet`, sorted by id; after them one Float32 column per rejection score."""

CHUNK = 4096
"""Images written aside at a time: about 0.5 MB, and at most some minutes of work lost to a kill."""


def write_predictions(
    run: Run, eligible: EligibleImages, name: str, recogniser: Recogniser, *, batch_size: int
) -> Path:
    """Answer the images of `eligible` and write `predictions/<name>.parquet`; return its path.

    A file that the same model made of the same images is left as it is. Call it while holding the run's folder.
    """
    dataset = eligible.dataset
    path = run.folder / "predictions" / f"{name}.parquet"
    images = with_truth(eligible.images, eligible.labels).sort("image_id")
    made_of = {
        "split": eligible.split,
        "data_digest": dataset.digest,
        "model_digest": digest_of(run.digest, recogniser.digest),
        "images": _digest_of(images),
    }
    aside = path.with_name(f".{name}.chunks")
    if path.exists() and all(read_metadata(path).get(key) == value for key, value in made_of.items()):
        remove_folder(aside)  # of an evaluation that was killed when all but this was done
        return path
    place = readable(dataset.folder.resolve())
    about = {
        "run": readable(run.name),
        "data": place,
        "content_digest": str(dataset.content_digest),
        "own_data": str(eligible.own),
    }
    key = digest_of(made_of, CHUNK)
    with progress(f"answering {name}", total=len(images)) as advance:
        chunks = []
        for start in range(0, len(images), CHUNK):
            chunk = aside / f"{start:09d}.parquet"
            some = images.slice(start, CHUNK)
            if not (chunk.exists() and read_metadata(chunk).get("key") == key):
                answers = _answers(recogniser, dataset, some, batch_size)
                write_table(chunk, _table(some, answers, advance), key=key)
            else:
                advance(len(some))
            chunks.append(chunk)
    _join(chunks, path, {**about, **made_of})
    remove_folder(aside)
    return path


def with_truth(images: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """Return `images` with `truth`: the labels, in a run's `labels`, of the landmarks they show, the main one first.

    A landmark that the run does not know is left out; an image of nothing the run knows has an empty list.
    """
    main = pl.col("landmark_id")
    others = pl.col("landmarks").fill_null([]).list.set_difference(pl.concat_list(main.fill_null(-1)))
    shown = images.select("image_id", shown=pl.concat_list(pl.concat_list(main), others.list.sort()).list.drop_nulls())
    known = (
        shown.explode("shown", empty_as_null=False)
        .join(labels.select(shown="landmark_id", truth="label"), on="shown", how="inner", maintain_order="left")
        .group_by("image_id", maintain_order=True)
        .agg(pl.col("truth").cast(pl.UInt32))
    )
    joined = images.drop("truth", strict=False).join(known, on="image_id", how="left")
    return joined.with_columns(pl.col("truth").fill_null(pl.lit([], dtype=pl.List(pl.UInt32))))


def read_predictions(path: Path) -> pl.DataFrame:
    """Read a predictions file with all its columns; raise when one is missing, doubled or damaged."""
    table = read_table(path, PREDICTIONS)
    if table["image_id"].is_duplicated().any():
        raise LandmarksError(f"{path} holds two predictions for one image", way_out="delete it and evaluate again")
    answers = pl.col("label").list.len()
    scores = pl.col("score").list.eval(pl.element().is_finite().fill_null(False)).list.all()
    sound = (answers == pl.col("score").list.len()) & answers.is_between(0, ANSWERS) & scores
    sound &= ~pl.col("label").list.eval(pl.element().is_null()).list.any() & pl.col("image_id").is_not_null()
    if not table.select(sound.fill_null(False).all()).item():
        raise LandmarksError(
            f"{path} holds answers that cannot be meant",
            expected=f"up to {ANSWERS} labels and as many finite scores for each image",
            way_out="delete it and evaluate again",
        )
    return table


def rejection_columns(predictions: pl.DataFrame) -> list[str]:
    """Return the names of a predictions table's rejection scores."""
    return [name for name in predictions.columns if name not in PREDICTIONS]


def _digest_of(images: pl.DataFrame) -> str:
    """Return the digest of which images are answered and what they show, a slice at a time."""
    digests = [digest_of(rows.rows()) for rows in images.select("image_id", "truth").iter_slices(100_000)]
    return digest_of(digests)


def _answers(recogniser: Recogniser, dataset: Dataset, images: pl.DataFrame, batch_size: int) -> Iterator[Answers]:
    first = images["truth"].list.first().cast(pl.Int64).fill_null(NO_LABEL).to_numpy()
    ids, start, itself = images["image_id"].to_list(), 0, None
    if recogniser.gallery is not None and recogniser.gallery.unknown is not None:
        itself = recogniser.gallery.unknown.places_of([key_of(dataset.content_digest, id) for id in ids])
    for batch in recogniser.read(bytes_of(dataset, images), batch_size):
        for id, one in zip(ids[start : start + len(batch)], batch, strict=True):
            if one.problem is not None:
                raise LandmarksError(
                    f"image {id} in {dataset.folder} cannot be read ({one.problem})",
                    way_out="fetch or import the dataset again",
                )
        pixels = [one.pixels for one in batch if one.pixels is not None]
        rows = slice(start, start + len(batch))
        yield recogniser.answer(pixels, first[rows], None if itself is None else itself[rows])
        start += len(batch)


def bytes_of(dataset: Dataset, images: pl.DataFrame) -> Iterator[bytes]:
    """Yield the bytes of each of `images` of `dataset`."""
    reader = ImageReader(dataset)
    for id, shard, offset, length in images.select("image_id", "shard", "offset", "length").iter_rows():
        try:
            yield reader.read(shard, offset, length)
        except OSError as error:
            raise LandmarksError(
                f"image {id} in {dataset.place_of(shard)} cannot be read ({error})",
                way_out="fetch or import the dataset again",
            ) from error


def _table(images: pl.DataFrame, answers: Iterator[Answers], advance: Advance) -> pl.DataFrame:
    splits = []
    for some in answers:
        advance(len(some.labels))
        columns = {
            "label": pl.Series(some.labels.tolist(), dtype=pl.List(pl.UInt32)),
            "score": pl.Series(some.scores.tolist(), dtype=pl.List(pl.Float32)),
            "truth_score": pl.Series(some.truth_log_scores).fill_nan(None),
            "untempered": some.untempered,
            **some.rejection,
        }
        splits.append(pl.DataFrame(columns))
    answered = pl.concat(splits)
    told = images.select("image_id", "truth", "group", "usage")
    rejection = [name for name in answered.columns if name not in PREDICTIONS]
    return pl.concat([told, answered], how="horizontal").select(*PREDICTIONS, *rejection)


def _join(chunks: list[Path], path: Path, metadata: dict[str, str]) -> None:
    table = pl.concat([pl.scan_parquet(chunk, glob=False) for chunk in chunks])
    texts = {**metadata, "landmarks.format": str(FORMAT), "landmarks.version": __version__}
    with written_whole(path) as whole:
        table.sink_parquet(whole, metadata=texts, maintain_order=True, row_group_size=CHUNK * 16)


# Predictions as arrays: what the metrics take, whether a run's file or somebody's submission brought them.


@dataclass(frozen=True)
class Arrays:
    """The predictions of N images, whatever file they came from."""

    ids: NDArray[np.object_]
    truth: Truth
    labels: Integers  # (N, k), NO_LABEL after the last answer
    scores: Floats  # (N, k), larger is surer; probabilities when the file is ours
    groups: Integers  # (N,), -1: none
    usage: NDArray[np.object_]  # (N,), None: not told
    rejection: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # score name → (N,)
    truth_log_scores: Floats | None = None  # (N,), None: not told
    untempered: Floats | None = None  # (N,), largest probability before temperature, None: no probabilities

    @property
    def all_scores(self) -> dict[str, NDArray[np.float32]]:
        """The scores that may tell known from unknown: the best answer's own, then `rejection`."""
        name = "score" if self.untempered is None else "msp"
        return {name: self.scores[:, 0].astype(np.float32), **self.rejection}


def arrays_of(predictions: pl.DataFrame) -> Arrays:
    """Return a predictions table as arrays."""
    counts = predictions["truth"].list.len().to_numpy()
    shown = predictions["truth"].explode(empty_as_null=False).drop_nulls().to_numpy().astype(np.int64)
    rows = np.repeat(np.arange(len(predictions)), counts)
    k = int(predictions["label"].list.len().max() or 1)  # type: ignore[arg-type]
    return Arrays(
        ids=predictions["image_id"].to_numpy(),
        truth=Truth(rows, shown, len(predictions)),
        labels=predictions["label"].list.to_array(k).to_numpy().astype(np.int64),
        scores=predictions["score"].list.to_array(k).to_numpy(),
        groups=predictions["group"].cast(pl.Int64).fill_null(NO_LABEL).to_numpy(),
        usage=predictions["usage"].to_numpy(),
        rejection={name: predictions[name].to_numpy() for name in rejection_columns(predictions)},
        truth_log_scores=predictions["truth_score"].to_numpy(),
        untempered=predictions["untempered"].to_numpy(),
    )


# What the predictions and numbers of a set of images are called in a run's folder: no two sets share a name.


SUFFIX = ".subsets.json"
"""What follows the name of an evaluation in `metrics/`, where the accuracies on subsets stand beside it."""


def name_of(run: Run, eligible: EligibleImages, split: str | None = None) -> str:
    """Return what the numbers of `eligible` (or of another `split` of its dataset) are called.

    In the run's own dataset that is the split; elsewhere the folder's name, with the split behind it unless it is the
    test or all there is, and `data-` before it where a split of the run's own dataset is called so. When numbers of
    another dataset have that name already, the name of the folder above stands before it, or the dataset's digest
    behind it.
    """
    dataset, split = eligible.dataset, split or eligible.split
    folder, digest = dataset.folder.resolve(), dataset.digest[:8]
    if eligible.own:
        names = [split, f"own-{split}"]
    else:
        whole = dataset.splits is None or split == "test"
        name = folder.name if whole else f"{folder.name}-{split}"
        own = (run.record.get("data") or {}).get("images") or dict.fromkeys(SPLITS, 1)
        first = f"data-{name}" if own.get(name) or name == "all" else name
        names = [first, f"{folder.parent.name}-{name}"]
    last = f"{names[0]}-{digest}"
    return next((name for name in names if _is_free(run.folder, name, eligible, split)), last)


def _is_free(run: Path, name: str, eligible: EligibleImages, split: str) -> bool:
    """Return whether nothing is called `name` yet, or only numbers of the same split of the same dataset."""
    metrics, subsets = run / "metrics" / f"{name}.json", run / "metrics" / f"{name}{SUFFIX}"
    predictions = run / "predictions" / f"{name}.parquet"
    numbers: dict[str, Any] = dict(read_metadata(predictions)) if predictions.exists() else {}
    numbers |= read_record(metrics, way_out="remove it: evaluate writes it anew") if metrics.exists() else {}
    draws = read_record(subsets, way_out="remove it: subsets writes it anew") if subsets.exists() else {}
    of_split = not numbers or numbers.get("split") == split
    return of_split and all(_is_of(told, eligible.dataset, own=eligible.own) for told in (numbers, draws) if told)


def _is_of(told: Mapping[str, Any], dataset: Dataset, *, own: bool) -> bool:
    """Return whether numbers are of `dataset`, as it is, or as it was in the same place."""
    if told.get("own_data") in (True, "True"):
        return own
    digests = (told.get("data_digest"), told.get("inputs"))
    place = told.get("data")
    return dataset.digest in digests or (bool(place) and Path(str(place)).resolve() == dataset.folder.resolve())
