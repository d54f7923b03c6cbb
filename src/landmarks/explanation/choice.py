"""Which photographs are explained when a person names none: the landmarks in turn, always in the same order."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from landmarks.support.errors import LandmarksError
from landmarks.support.seeds import generator
from landmarks.training.asked import Asked
from landmarks.training.run import Run


@dataclass(frozen=True)
class Photo:
    """A photograph of a dataset that shows a landmark the run knows, and where its bytes lie."""

    id: str
    truth: int
    """The run's label of it."""
    place: tuple[str, int, int]
    """Shard, offset, length."""


def photos_in_turn(run: Run, asked: Asked) -> list[Photo]:
    """Return those of the photographs `asked` that show a landmark the run knows: one of each, then a second, …

    The order within a landmark and of the landmarks is drawn from their ids, so it is the same everywhere.
    """
    known = dict(zip(asked.labels["landmark_id"], asked.labels["label"], strict=True))
    table = asked.photos.filter(pl.col("landmark_id").is_in(list(known)))
    if table.is_empty():
        raise LandmarksError(
            f"{asked.dataset.folder} holds no photograph of a landmark that {run.name} knows", received=asked.part
        )
    queues: dict[int, list[Photo]] = {}
    for row in table.select("id", "landmark_id", "shard", "offset", "length").iter_rows(named=True):
        photo = Photo(row["id"], known[row["landmark_id"]], (row["shard"], row["offset"], row["length"]))
        queues.setdefault(known[row["landmark_id"]], []).append(photo)
    labels = sorted(queues, key=lambda label: generator("explain", label).random())
    for queue in queues.values():
        queue.sort(key=lambda photo: generator("explain", photo.id).random())
    longest = max(len(queue) for queue in queues.values())
    return [queues[label][turn] for turn in range(longest) for label in labels if turn < len(queues[label])]
