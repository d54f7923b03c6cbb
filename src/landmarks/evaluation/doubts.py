"""Doubts about a dataset beside likely wrong labels, and the page to decide on all doubts.

A leak is a pair of copies in two splits; other copies have two labels. A stranger is a training image that shows no
landmark of the dataset at all: its nearest images are much farther away than those of other images, and its label is
improbable.

The page is one HTML file, operated by keyboard, that saves the decisions as a CSV. It contains its images and scripts,
and its Content-Security-Policy allows no connection. Names are untrusted: they stay in a JSON block that no browser
runs, and the script inserts them as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.copies import find_copies
from landmarks.dataset.images import ImageError, data_uri, decode, encode, shrink
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.shards import ImageReader
from landmarks.dataset.sketches import kept_sketches
from landmarks.evaluation.metrics import Flags, Floats, Integers
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of, written_whole
from landmarks.support.places import in_shell

DOUBTS: dict[str, Any] = {
    "kind": pl.String,  # label, across, leak or nothing
    "image_id": pl.String,
    "suggested_landmark_id": pl.Int64,
    "why": pl.String,
    "other_id": pl.String,  # the image that this is a copy of
}
"""Columns of a table of doubts, the strongest doubt first."""

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


# ── The page to decide on doubts ────────────────────────────────────────────────────────────────────────────────────


PARTS = Path(__file__).parent / "doubts"

MOST_ON_PAGE = 400
"""Doubts on a page, the first of each kind in turn; the CSVs list all."""

SIDE_ON_PAGE = 400
"""Longer side of the images on the page, in pixels."""


def write_doubts_page(dataset: Dataset, doubts: pl.DataFrame, path: Path, csv: str) -> int:
    """Write a page of `doubts` (columns of `DOUBTS`) to `path`, and return how many are on it.

    At most `MOST_ON_PAGE` are. The page saves the decisions as a file called `csv`.
    """
    shown = _first_of_each_kind(doubts)
    items = _items(dataset, shown)
    data = json.dumps(
        {"digest": digest_of(str(dataset.content_digest), shown.rows()), "file": csv, "items": items},
        ensure_ascii=False,
        separators=(",", ":"),
    ).replace("<", "\\u003c")
    style, script = ((PARTS / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    left_out = (
        f" The first {len(items):,} of {len(doubts):,} are here, the CSVs name all."
        if shown.height < len(doubts)
        else ""
    )
    fill = {
        "policy": policy,
        "title": escape(dataset.folder.resolve().name),
        "style": style,
        "script": script,
        "items": data,
        "count": str(len(items)),
        "lead": f"Look at each image and say what it shows. Nothing is changed until the decisions are read.{left_out}",
        "command": escape(f"landmarks split {in_shell(dataset.folder)} --corrections {in_shell(csv)}"),
    }
    page = (PARTS / "page.html").read_text(encoding="utf-8")
    with written_whole(path, tidy=True) as aside:
        text = re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], page)
        aside.write_text(text, encoding="utf-8", newline="")
    return len(items)


def _first_of_each_kind(doubts: pl.DataFrame) -> pl.DataFrame:
    """Return as many doubts as a page holds, taken from the kinds in turn, in their original order."""
    ranked = doubts.with_columns(rank=pl.int_range(pl.len()).over("kind"), row=pl.int_range(pl.len()))
    return ranked.sort("rank", "row").head(MOST_ON_PAGE).sort("row").drop("rank", "row")


def _items(dataset: Dataset, doubts: pl.DataFrame) -> list[dict[str, Any]]:
    names = dict(
        dataset.labels.select("landmark_id", pl.coalesce("name", pl.col("landmark_id").cast(pl.String))).iter_rows()
    )
    ids = pl.concat([doubts["image_id"], doubts["other_id"].drop_nulls()]).unique()
    images = dataset.images.filter(pl.col("image_id").is_in(ids.implode()))
    if dataset.splits is not None:
        images = images.join(dataset.splits, on="image_id", how="left")
    rows = {row["image_id"]: row for row in images.iter_rows(named=True)}
    reader = ImageReader(dataset)
    data_urls = {id: _data_url(reader, row) for id, row in rows.items()}

    def about(id: str) -> dict[str, Any]:
        row = rows[id]
        return {
            "id": id,
            "landmark": row["landmark_id"],
            "name": names.get(row["landmark_id"]),
            "split": row.get("split"),
            "image": data_urls[id],
        }

    return [
        {
            **about(doubt["image_id"]),
            "kind": doubt["kind"],
            "suggested": doubt["suggested_landmark_id"],
            "suggestedName": names.get(doubt["suggested_landmark_id"]),
            "why": doubt["why"],
            "other": None if doubt["other_id"] is None else about(doubt["other_id"]),
        }
        for doubt in doubts.iter_rows(named=True)
    ]


def _data_url(reader: ImageReader, row: dict[str, Any]) -> str:
    """Return an image as a data URL, an empty one where it cannot be read."""
    try:
        image = shrink(
            decode(reader.read(row["shard"], row["offset"], row["length"]), min_side=SIDE_ON_PAGE), SIDE_ON_PAGE
        )
    except (ImageError, LandmarksError, OSError):
        return "data:,"
    return data_uri(encode(image, 80))


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
