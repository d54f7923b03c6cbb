"""Changed copies of images that a run has seen: cropped, framed, recoloured or mirrored, so that hashes differ."""

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
"""Images of both datasets together up to which copies are searched for by default."""


def copies_of_seen(run: Run, dataset: Dataset, images: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Return which of `images`, rows of `dataset`, are copies of images `seen` by `run`; columns of `find_seen`.

    The images of both datasets are read. If they are gone, unreadable or too many, a note says so and nothing is
    returned.
    """
    empty = pl.DataFrame(schema={"image_id": pl.String, "seen_id": pl.String, "split": pl.String, "through": pl.String})
    try:
        own = find_own_dataset(run)
    except LandmarksError:
        note(f"whether some are changed copies of images {run.name} has seen is not known: its dataset is not there")
        return empty
    if len(images) + len(seen) > MOST_COMPARED:
        note(
            f"changed copies of images {run.name} has seen are not looked for among so many; to see them: "
            f"landmarks join {own.folder} {dataset.folder} -o BOTH, then landmarks split BOTH"
        )
        return empty
    seen_images = own.images.join(
        seen.filter(pl.col("through").is_null()).select("image_id", "split"), on="image_id", how="inner"
    )
    if not len(images) or not len(seen_images):
        return empty
    sketches = _sketches(run, dataset, images)
    seen_sketches = _sketches(run, own, seen_images) if sketches is not None else None
    if sketches is None or seen_sketches is None:
        return empty
    is_new = np.arange(len(images) + len(seen_images)) < len(images)
    found = find_copies(sketches.joined(seen_sketches), side=is_new)
    copies, originals = images[found.pairs[:, 0]], seen_images[found.pairs[:, 1] - len(images)]
    table = copies.select("image_id").with_columns(originals.select(pl.col("image_id").alias("seen_id"), "split"))
    return table.with_columns(through=pl.lit(None, pl.String)).unique("image_id", keep="first", maintain_order=True)


def _sketches(run: Run, dataset: Dataset, images: pl.DataFrame) -> Sketches | None:
    """Return the sketches of some images of a dataset; those of all its images are computed and cached.

    None, with a note, when none of the images can be read.
    """
    sketches = kept_sketches(dataset, dataset.images)
    row_of = dict(zip(dataset.images["image_id"], range(len(dataset.images)), strict=True))
    rows = np.array([row_of[image_id] for image_id in images["image_id"]])
    if sketches is None or not sketches.counts[rows].any():
        note(
            f"whether some are changed copies of images {run.name} has seen is not known: no image of "
            f"{dataset.folder} can be read"
        )
        return None
    return sketches.of(rows)
