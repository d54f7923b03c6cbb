"""The predictions file: what a run or an export answers to each image of a split, and what the images show.

Images are answered in the order of their ids, a batch at a time. Every few thousand answers go to a temporary file, so
that memory does not grow with the number of images and a killed evaluation resumes where it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks import __version__
from landmarks.dataset.manifest import LABELS, NO_LABEL, SPLITS, Dataset
from landmarks.dataset.shards import ImageReader, require_images
from landmarks.evaluation.metrics import Floats, Integers, Truth
from landmarks.recognition.answers import Answers
from landmarks.recognition.portable import ExportedNetwork, open_export
from landmarks.recognition.recogniser import ANSWERS, Recogniser, is_export
from landmarks.support.console import Advance, progress
from landmarks.support.disk import remove_folder
from landmarks.support.errors import LandmarksError
from landmarks.support.files import FORMAT, digest_of, read_record, written_whole
from landmarks.support.places import Place
from landmarks.support.systems import readable
from landmarks.support.tables import read_metadata, read_table, write_table
from landmarks.training.eligible_images import EligibleImages
from landmarks.training.run import Run, open_run

PREDICTIONS = {
    "image_id": pl.String,
    "truth": pl.List(pl.UInt32),  # labels of the run that the image shows, the one it counts for first
    "label": pl.List(pl.UInt32),  # the best answers, at most five, by score descending, then label ascending
    "score": pl.List(pl.Float32),  # their probabilities, after temperature
    "truth_score": pl.Float32,  # natural logarithm of the probability of the first truth; null: no truth
    "untempered": pl.Float32,  # the largest probability before temperature
    "group": pl.UInt32,
    "usage": pl.String,
}
"""Columns of `predictions/<name>.parquet`, sorted by id; after them one Float32 column per rejection score."""

CHUNK = 4096
"""Images per temporary file: about 0.5 MB, and a kill loses a few minutes of work at most."""


def write_predictions(
    run: Run, eligible: EligibleImages, name: str, recogniser: Recogniser, *, batch_size: int
) -> Path:
    """Answer the images of `eligible` and write `predictions/<name>.parquet`; return its path.

    A file that the same model made from the same images is left as it is. The caller holds the run's folder.
    """
    dataset = eligible.dataset
    path = run.folder / "predictions" / f"{name}.parquet"
    images = with_truth(eligible.images, eligible.labels).sort("image_id")
    inputs = {
        "split": eligible.split,
        "data_digest": dataset.digest,
        "model_digest": digest_of(run.digest, recogniser.digest),
        "images": _digest_of(images),
    }
    aside = path.with_name(f".{name}.chunks")
    present = predictions_metadata(path) if path.exists() else {}
    if all(present.get(key) == value for key, value in inputs.items()):
        remove_folder(aside)  # left by an evaluation that was killed just before it removed this
        return path
    place = readable(dataset.folder.resolve())
    about = {
        "run": readable(run.name),
        "data": place,
        "content_digest": str(dataset.content_digest),
        "own_data": str(eligible.own),
    }
    key = digest_of(inputs, CHUNK)
    require_images(dataset, images["shard"], "evaluate")
    with progress(f"answering {name}", total=len(images)) as advance:
        chunks = []
        for start in range(0, len(images), CHUNK):
            chunk = aside / f"{start:09d}.parquet"
            rows = images.slice(start, CHUNK)
            if not (chunk.exists() and read_metadata(chunk).get("key") == key):
                answers = _answers(recogniser, dataset, rows, batch_size)
                write_table(chunk, _table(rows, answers, advance), key=key)
            else:
                advance(len(rows))
            chunks.append(chunk)
    _join(chunks, path, {**about, **inputs})
    remove_folder(aside)
    return path


WAY_OUT = "delete it and evaluate again"


@contextlib.contextmanager
def _naming_the_way_out() -> Iterator[None]:
    """Say of a damaged predictions file how to get another."""
    try:
        yield
    except LandmarksError as error:
        raise LandmarksError(str(error), way_out=WAY_OUT) from error


def predictions_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a predictions file; raise when it is missing or damaged."""
    with _naming_the_way_out():
        return read_metadata(path)


def with_truth(images: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """Return `images` with a column `truth`: the run's labels of the landmarks they show, the main one first.

    `labels` maps `landmark_id` to the run's `label`. Landmarks that the run does not know are left out, so an unknown
    image has an empty list.
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
    with _naming_the_way_out():
        table = read_table(path, PREDICTIONS)
    if table["image_id"].is_duplicated().any():
        raise LandmarksError(f"{path} holds two predictions for one image", way_out=WAY_OUT)
    answers = pl.col("label").list.len()
    scores = pl.col("score").list.eval(pl.element().is_finite().fill_null(False)).list.all()
    sound = (answers == pl.col("score").list.len()) & answers.is_between(0, ANSWERS) & scores
    sound &= ~pl.col("label").list.eval(pl.element().is_null()).list.any() & pl.col("image_id").is_not_null()
    if not table.select(sound.fill_null(False).all()).item():
        raise LandmarksError(
            f"{path} holds invalid answers",
            expected=f"up to {ANSWERS} labels and as many finite scores for each image",
            way_out=WAY_OUT,
        )
    return table


def rejection_columns(predictions: pl.DataFrame) -> list[str]:
    """Return the names of a predictions table's rejection scores."""
    return [name for name in predictions.columns if name not in PREDICTIONS]


def _digest_of(images: pl.DataFrame) -> str:
    """Return a digest of which images are answered and what they show, computed a slice at a time."""
    digests = [digest_of(rows.rows()) for rows in images.select("image_id", "truth").iter_slices(100_000)]
    return digest_of(digests)


def _answers(recogniser: Recogniser, dataset: Dataset, images: pl.DataFrame, batch_size: int) -> Iterator[Answers]:
    first = images["truth"].list.first().cast(pl.Int64).fill_null(NO_LABEL).to_numpy()
    ids, start, itself = images["image_id"].to_list(), 0, None
    if recogniser.gallery is not None and recogniser.gallery.unknown is not None:
        itself = recogniser.gallery.unknown.places_of([key_of(dataset.content_digest, id) for id in ids])
    for batch in recogniser.read(stored_bytes(dataset, images), batch_size):
        for id, image in zip(ids[start : start + len(batch)], batch, strict=True):
            if image.problem is not None:
                raise LandmarksError(
                    f"image {id} in {dataset.folder} cannot be read ({image.problem})",
                    way_out="fetch or import the dataset again",
                )
        pixels = [image.pixels for image in batch if image.pixels is not None]
        rows = slice(start, start + len(batch))
        yield recogniser.answer(pixels, first[rows], None if itself is None else itself[rows])
        start += len(batch)


def key_of(content_digest: str | None, image_id: str) -> str:
    """Return the key, among a run's unknown images, of an image of the dataset with this digest."""
    return f"{content_digest} {image_id}"


def stored_bytes(dataset: Dataset, images: pl.DataFrame) -> Iterator[bytes]:
    """Yield the stored bytes of each of `images` of `dataset`."""
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
    batches = []
    for batch in answers:
        advance(len(batch.labels))
        columns = {
            "label": pl.Series(batch.labels.tolist(), dtype=pl.List(pl.UInt32)),
            "score": pl.Series(batch.scores.tolist(), dtype=pl.List(pl.Float32)),
            "truth_score": pl.Series(batch.truth_log_scores).fill_nan(None),
            "untempered": batch.untempered,
            **batch.rejection,
        }
        batches.append(pl.DataFrame(columns))
    answered = pl.concat(batches)
    described = images.select("image_id", "truth", "group", "usage")
    return pl.concat([described, answered], how="horizontal").select(*PREDICTIONS, *rejection_columns(answered))


def _join(chunks: list[Path], path: Path, metadata: dict[str, str]) -> None:
    table = pl.concat([pl.scan_parquet(chunk, glob=False) for chunk in chunks])
    metadata = {**metadata, "landmarks.format": str(FORMAT), "landmarks.version": __version__}
    with written_whole(path) as aside:
        table.sink_parquet(aside, metadata=metadata, maintain_order=True, row_group_size=CHUNK * 16)


# Predictions as arrays: the input of the metrics, made from a run's file or from a submission.


@dataclass(frozen=True)
class PredictionArrays:
    """The predictions of N images."""

    ids: NDArray[np.object_]
    truth: Truth
    labels: Integers  # (N, k), NO_LABEL after the last answer
    scores: Floats  # (N, k), larger is more confident; probabilities in a run's predictions
    groups: Integers  # (N,), -1: none
    usage: NDArray[np.object_]  # (N,), None: unspecified
    rejection: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # score name → (N,)
    truth_log_scores: Floats | None = None  # (N,), None: a submission, which has no probabilities
    untempered: Floats | None = None  # (N,), largest probability before temperature; None: as above

    @property
    def all_scores(self) -> dict[str, NDArray[np.float32]]:
        """The scores that can separate known from unknown images: the best answer's own, then `rejection`."""
        name = "score" if self.untempered is None else "msp"
        return {name: self.scores[:, 0].astype(np.float32), **self.rejection}


def prediction_arrays(predictions: pl.DataFrame) -> PredictionArrays:
    """Return a predictions table as arrays."""
    counts = predictions["truth"].list.len().to_numpy()
    shown = predictions["truth"].explode(empty_as_null=False).drop_nulls().to_numpy().astype(np.int64)
    rows = np.repeat(np.arange(len(predictions)), counts)
    k = int(predictions["label"].list.len().max() or 1)  # type: ignore[arg-type]
    return PredictionArrays(
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


# The name of an evaluation in a run's folder: no two sets of images share one.


SUBSETS_SUFFIX = ".subsets.json"
"""Ending of the files in `metrics/` that hold the accuracies on subsets, after the name of an evaluation."""


def evaluation_name(run: Run, eligible: EligibleImages, split: str | None = None) -> str:
    """Return the name of the evaluation on `eligible`, or on another `split` of its dataset.

    For the run's own dataset it is the split. For another dataset it is the folder's name: followed by the split,
    unless that is test or all images, and preceded by `data-` where a split of the run's own dataset has that name.
    If numbers of another dataset have the name already, it is preceded by the parent folder's name or followed by the
    dataset's digest.
    """
    dataset, split = eligible.dataset, split or eligible.split
    folder, digest = dataset.folder.resolve(), dataset.digest[:8]
    if eligible.own:
        names = [split, f"own-{split}"]
    else:
        name = folder.name if dataset.splits is None or split == "test" else f"{folder.name}-{split}"
        own_counts = (run.record.get("data") or {}).get("images") or dict.fromkeys(SPLITS, 1)
        first = f"data-{name}" if own_counts.get(name) or name == "all" else name
        names = [first, f"{folder.parent.name}-{name}"]
    last = f"{names[0]}-{digest}"
    return next((name for name in names if _is_available(run.folder, name, eligible, split)), last)


def _is_available(run: Path, name: str, eligible: EligibleImages, split: str) -> bool:
    """Return whether `name` is unused, or used by numbers of the same split of the same dataset."""
    metrics, subsets = run / "metrics" / f"{name}.json", run / "metrics" / f"{name}{SUBSETS_SUFFIX}"
    predictions = run / "predictions" / f"{name}.parquet"
    numbers: dict[str, Any] = dict(predictions_metadata(predictions)) if predictions.exists() else {}
    numbers |= read_record(metrics, way_out="remove it: evaluate writes it anew") if metrics.exists() else {}
    draws = read_record(subsets, way_out="remove it: subsets writes it anew") if subsets.exists() else {}
    same_split = not numbers or numbers.get("split") == split
    records = (record for record in (numbers, draws) if record)
    return same_split and all(_describes(record, eligible.dataset, own=eligible.own) for record in records)


def _describes(record: Mapping[str, Any], dataset: Dataset, *, own: bool) -> bool:
    """Return whether a record's numbers are of `dataset`, as it is now or as it was before in the same place."""
    if record.get("own_data") in (True, "True"):
        return own
    digests = (record.get("data_digest"), record.get("inputs"))
    place = record.get("data")
    return dataset.digest in digests or (bool(place) and Path(str(place)).resolve() == dataset.folder.resolve())


# ── An export that can be evaluated like a run ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False, repr=False)
class ExportAsRun(Run):
    """An export with the interface of a run that evaluation needs; `folder` is where its results are written."""

    export: ExportedNetwork

    def __fspath__(self) -> str:
        return str(self.export.path)

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.export.path.name

    @property
    def digest(self) -> str:
        """A digest that changes with the file and with the landmarks it has learned."""
        return self.export.digest


def results_folder(place: Place) -> Path:
    """Return the folder that results are written to: the run's own, or `NAME.evaluation` beside an export."""
    return Path(place).with_suffix(".evaluation") if is_export(place) else Path(place)


def open_run_or_export(place: Place) -> Run:
    """Open a run's folder or an export; results of an export go to the folder `NAME.evaluation` beside it."""
    if isinstance(place, Run):
        return place
    if not is_export(place):
        return open_run(place)
    export = open_export(place)
    record = export.record
    labels = pl.DataFrame(
        {"label": range(len(export.names)), "landmark_id": export.landmark_ids, "name": export.names},
        schema_overrides={"name": pl.String},
    )
    labels = labels.with_columns(
        pl.lit(None).cast(kind).alias(name) for name, kind in LABELS.items() if name not in labels.columns
    )
    data = {"identified_by": record.identified_by, "digest": (record.raw.get("run") or {}).get("data_digest")}
    return ExportAsRun(
        folder=results_folder(export.path),
        record={"data": data, "export": True},
        labels=labels.select(pl.col(name).cast(kind) for name, kind in LABELS.items()),
        export=export,
    )
