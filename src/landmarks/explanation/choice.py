"""Which photographs are explained when a person names none: the landmarks in turn, always in the same order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.support.errors import LandmarksError
from landmarks.support.seeds import generator
from landmarks.training.run import Run


@dataclass(frozen=True)
class Photo:
    """A photograph of a dataset that shows a landmark the run knows, and where its bytes lie."""

    id: str
    truth: int
    """The run's label of it."""
    place: tuple[str, int, int]
    """Shard, offset, length."""


def dataset_of(run: Run, data: Path | str | None = None) -> Dataset:
    """Return the dataset in `data`, or the one that `run` was trained on, where the run says it lies."""
    place = data if data is not None else run.record["data"]["folder"]
    try:
        return open_dataset(place)
    except LandmarksError as error:
        if data is not None:
            raise
        raise LandmarksError(
            f"the dataset that {run.name} was trained on is not at {place} any more",
            way_out="say where its photographs are (--data DATA), or name photographs",
        ) from error


def photos_in_turn(run: Run, dataset: Dataset, part: str) -> list[Photo]:
    """Return the photographs of `part` that show a landmark the run knows: one of each landmark, then a second, …

    The order within a landmark and of the landmarks is drawn from their ids, so it is the same everywhere. A dataset
    without parts is taken whole.
    """
    known = dict(zip(run.labels["landmark_id"], run.labels["label"], strict=True))
    table = dataset.part(part if dataset.split is not None else "all").filter(pl.col("landmark_id").is_in(list(known)))
    if table.is_empty():
        raise LandmarksError(f"{dataset.folder} holds no photograph of a landmark that {run.name} knows", received=part)
    queues: dict[int, list[Photo]] = {}
    for row in table.select("id", "landmark_id", "shard", "offset", "length").iter_rows(named=True):
        photo = Photo(row["id"], known[row["landmark_id"]], (row["shard"], row["offset"], row["length"]))
        queues.setdefault(known[row["landmark_id"]], []).append(photo)
    labels = sorted(queues, key=lambda label: generator("explain", label).random())
    for queue in queues.values():
        queue.sort(key=lambda photo: generator("explain", photo.id).random())
    longest = max(len(queue) for queue in queues.values())
    return [queues[label][turn] for turn in range(longest) for label in labels if turn < len(queues[label])]
