"""Doubts about a dataset beside likely wrong labels: leaks between splits, copies with two labels, strangers.

A leak is a pair of copies in two splits. A stranger is a training image that shows no landmark of the dataset at all:
its nearest images are much farther away than those of other images, and its label is improbable.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.copies import find_copies
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.sketches import kept_sketches
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

LEAST_STRANGENESS = 1.3
"""Least strangeness of a stranger, in median distances of an image from its nearest images (see `find_strangers`).
Of 20 images of anything else, inserted with random labels among 3,582 images, 16 or 17 were listed, together with
some 65 others, among them images filed under a landmark that they do not show (`benchmarks/audit_inserted.py`)."""

NEAREST = 5
"""Number of nearest images whose mean cosine counts."""


def copies_in(dataset: Dataset) -> pl.DataFrame:
    """Return the copies among all images of a dataset (columns of `COPIES_FOUND`), those that agree most first."""
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
    """Return the doubts (columns of `DOUBTS`) about copies in two splits or with two labels.

    Of a pair in two splits, the image that is not in train is asked about; of a pair with two labels, both are.
    """
    across = copies.filter(pl.col("landmark_id").ne_missing(pl.col("landmark_id_of_copy")))
    leaks = copies.filter((pl.col("split") != pl.col("split_of_copy")).fill_null(False))
    why = pl.format(
        "{} % of what both show agrees{}",
        (100 * pl.col("agreement")).round().cast(pl.Int64),
        pl.when("mirrored").then(pl.lit(", mirrored")).otherwise(pl.lit("")),
    )
    swapped = {"image_id": "copy_of", "copy_of": "image_id"}
    swapped |= {"landmark_id": "landmark_id_of_copy", "landmark_id_of_copy": "landmark_id"}
    swapped |= {"split": "split_of_copy", "split_of_copy": "split"}
    both = pl.concat([across, across.rename(swapped).select(across.columns)]).sort(
        "agreement", "image_id", "copy_of", descending=[True, False, False]
    )
    from_train = leaks.filter(pl.col("split") == "train").rename(swapped).select(leaks.columns)
    outside_train = pl.concat([leaks.filter(pl.col("split") != "train"), from_train]).sort(
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

    return pl.concat([doubts(outside_train, "leak"), doubts(both, "across")])


def find_strangers(nearest: Floats, own: Floats, labels: Integers) -> tuple[Flags, Floats]:
    """Return which images show no landmark at all, and their strangeness, both `(N,)`.

    `nearest` `(N,)` holds the mean cosine to the nearest images of other groups, `own` `(N,)` the probability of each
    image's own label in `labels`. Strangeness is the distance (1 - cosine, relative to the median of all images) times
    the doubt in the label: one minus its probability relative to the mean for images of that label.
    """
    counts = np.bincount(labels)
    usual = np.bincount(labels, weights=own) / np.maximum(counts, 1)
    distance = 1 - nearest
    doubt = np.clip(1 - own / np.maximum(usual[labels], 1e-9), 0, 1)
    strangeness = distance * doubt / max(float(np.median(distance)), 1e-9)
    return strangeness >= LEAST_STRANGENESS, strangeness


def nearest_cosines(cosines: NDArray[np.floating]) -> Floats:
    """Return `(N,)` the mean of the `NEAREST` largest finite values of each row of `cosines` `(N, k)`."""
    largest = -np.sort(-np.where(np.isfinite(cosines), cosines, np.nan), axis=1)[:, :NEAREST]
    return np.asarray(np.nan_to_num(np.nanmean(largest, axis=1)), dtype=np.float64)
