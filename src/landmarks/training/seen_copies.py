"""Changed copies of what a run has seen: cropped, framed, recoloured or mirrored, so that no hash tells them."""

from __future__ import annotations

import numpy as np
import polars as pl

from landmarks.dataset.copies import find_copies
from landmarks.dataset.kept_sketches import Sketches, kept_sketches
from landmarks.dataset.manifest import Dataset
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.training.own_data import find_own_dataset
from landmarks.training.run import Run

MOST_COMPARED = 50_000
"""Images of both datasets together up to which copies are looked for without being asked to."""


def copies_of_seen(run: Run, dataset: Dataset, images: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Return which of `images`, rows of `dataset`, are copies of what `run` has `seen` in its own dataset.

    Columns as of `find_seen`. Both datasets' images are looked at; where they are gone, cannot be read or are too many,
    a note says so.
    """
    nothing = pl.DataFrame(
        schema={"image_id": pl.String, "seen_id": pl.String, "split": pl.String, "through": pl.String}
    )
    try:
        own = find_own_dataset(run)
    except LandmarksError:
        note(f"whether some are changed copies of images {run.name} has seen is not known: its dataset is not there")
        return nothing
    if len(images) + len(seen) > MOST_COMPARED:
        note(
            f"changed copies of images {run.name} has seen are not looked for among so many; to see them: "
            f"landmarks join {own.folder} {dataset.folder} -o BOTH, then landmarks split BOTH"
        )
        return nothing
    known = own.images.join(
        seen.filter(pl.col("through").is_null()).select("image_id", "split"), on="image_id", how="inner"
    )
    if not len(images) or not len(known):
        return nothing
    asked = _sketches(run, dataset, images)
    before = _sketches(run, own, known) if asked is not None else None
    if asked is None or before is None:
        return nothing
    found = find_copies(asked.joined(before), side=np.arange(len(images) + len(known)) < len(images))
    at, of = found.pairs[:, 0], found.pairs[:, 1] - len(images)
    table = images[at].select("image_id").with_columns(known[of].select(pl.col("image_id").alias("seen_id"), "split"))
    return table.with_columns(through=pl.lit(None, pl.String)).unique("image_id", keep="first", maintain_order=True)


def _sketches(run: Run, dataset: Dataset, images: pl.DataFrame) -> Sketches | None:
    """Return the sketches of some images of a dataset; those of all its images are kept, for whoever asks next.

    None, with a note, where none of them can be read.
    """
    every = dataset.images
    sketches = kept_sketches(dataset, every)
    place = dict(zip(every["image_id"], range(len(every)), strict=True))
    rows = np.array([place[image_id] for image_id in images["image_id"]])
    if sketches is None or not sketches.counts[rows].any():
        note(
            f"whether some are changed copies of images {run.name} has seen is not known: no image of "
            f"{dataset.folder} can be read"
        )
        return None
    return sketches.of(rows)
