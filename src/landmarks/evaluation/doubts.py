"""What to doubt about a dataset beside its labels: leaks between splits, copies with two labels, strangers.

A leak is a pair of copies in two splits; a stranger is a training image that shows no landmark of the dataset at all:
the images nearest to it are much farther away than those of others are, and no landmark is likely.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.copies import find_copies
from landmarks.dataset.kept_sketches import kept_sketches
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.doubts_page import DOUBTS
from landmarks.evaluation.metrics import Flags, Floats, Integers
from landmarks.support.console import note

COPIES_FOUND = {
    "image_id": pl.String,
    "copy_of": pl.String,
    "agreement": pl.Float64,  # share of the blocks that show something and agree
    "mirrored": pl.Boolean,
    "landmark_id": pl.Int64,
    "landmark_id_of_copy": pl.Int64,
    "split": pl.String,
    "split_of_copy": pl.String,
}
"""Columns of the CSV of copies, which `split --copies` takes; a row that is no copy is deleted from it."""

FAR = 1.3
"""How many times the median distance of an image from its nearest a stranger is away, less what speaks for its label.
Of 20 images of anything else put among 3,582 with labels at random the list held 16 or 17, and some 65 others,
among them images of a landmark that show none (`benchmarks/audit_inserted.py`)."""

NEAREST = 5
"""Images that a stranger is far from."""


def copies_in(dataset: Dataset) -> pl.DataFrame:
    """Return the copies among all images of a dataset (columns of `COPIES_FOUND`), the surest first."""
    images = dataset.images
    if dataset.splits is not None:
        images = images.join(dataset.splits, on="image_id", how="left", maintain_order="left")
    else:
        images = images.with_columns(split=pl.lit(None, pl.String))
    sketches = kept_sketches(dataset, images)
    if sketches is None:
        note("no image can be looked at: no copies are found")
        return pl.DataFrame(schema=COPIES_FOUND)
    found = find_copies(sketches, images["landmark_id"].fill_null(-1).to_numpy())
    first, second = (images[found.pairs[:, side]] for side in (0, 1))
    table = pl.DataFrame(
        {
            "image_id": second["image_id"],
            "copy_of": first["image_id"],
            "agreement": found.agreement.astype(np.float64),
            "mirrored": found.mirrored,
            "landmark_id": second["landmark_id"],
            "landmark_id_of_copy": first["landmark_id"],
            "split": second["split"],
            "split_of_copy": first["split"],
        },
        schema=COPIES_FOUND,
    )
    return table.sort("agreement", "image_id", "copy_of", descending=[True, False, False])


def doubts_of_copies(copies: pl.DataFrame) -> pl.DataFrame:
    """Return the doubts (columns of `DOUBTS`) that copies give: in two splits, or with two labels.

    Of two copies in two splits the one that is not in train is asked about, of two with two labels both are.
    """
    across = copies.filter(pl.col("landmark_id").ne_missing(pl.col("landmark_id_of_copy")))
    leaks = copies.filter((pl.col("split") != pl.col("split_of_copy")).fill_null(False))
    why = pl.format(
        "{} % of what both show agrees{}",
        (100 * pl.col("agreement")).round().cast(pl.Int64),
        pl.when("mirrored").then(pl.lit(", mirrored")).otherwise(pl.lit("")),
    )
    turned = {"image_id": "copy_of", "copy_of": "image_id"}
    turned |= {"landmark_id": "landmark_id_of_copy", "landmark_id_of_copy": "landmark_id"}
    turned |= {"split": "split_of_copy", "split_of_copy": "split"}
    both = pl.concat([across, across.rename(turned).select(across.columns)]).sort(
        "agreement", "image_id", "copy_of", descending=[True, False, False]
    )
    in_train = leaks.filter(pl.col("split") == "train").rename(turned).select(leaks.columns)
    asked = pl.concat([leaks.filter(pl.col("split") != "train"), in_train]).sort(
        "agreement", "image_id", "copy_of", descending=[True, False, False]
    )

    def doubts(table: pl.DataFrame, kind: str) -> pl.DataFrame:
        return table.select(
            kind=pl.lit(kind),
            image_id="image_id",
            suggested_landmark_id=pl.when(pl.col("landmark_id").ne_missing(pl.col("landmark_id_of_copy"))).then(
                "landmark_id_of_copy"
            ),
            why=why,
            other_id="copy_of",
        ).cast(pl.Schema(DOUBTS))

    return pl.concat([doubts(asked, "leak"), doubts(both, "across")])


def strangers(nearest: Floats, own: Floats, labels: Integers) -> tuple[Flags, Floats]:
    """Return which images show no landmark at all, and how surely, both `(N,)`.

    `nearest` are mean cosines to the nearest images of other groups, `own` the probability of the label `labels` that
    each has. What counts is the distance times what the label lacks of the probability that is usual for its images.
    """
    counts = np.bincount(labels)
    usual = np.bincount(labels, weights=own) / np.maximum(counts, 1)
    distance = 1 - nearest
    lacking = np.clip(1 - own / np.maximum(usual[labels], 1e-9), 0, 1)
    away = distance * lacking / max(float(np.median(distance)), 1e-9)
    return away >= FAR, away


def nearest_cosines(cosines: NDArray[np.floating]) -> Floats:
    """Return the mean of the `NEAREST` largest of each row `(N, k)`, those there are."""
    kept = -np.sort(-np.where(np.isfinite(cosines), cosines, np.nan), axis=1)[:, :NEAREST]
    return np.asarray(np.nan_to_num(np.nanmean(kept, axis=1)), dtype=np.float64)
