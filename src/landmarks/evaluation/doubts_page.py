"""The page to decide on doubts: one HTML file, operated by keyboard, that saves the decisions as a CSV.

The file contains its images and scripts, and its Content-Security-Policy allows no connection. Names are untrusted:
they stay in a JSON block that no browser runs, and the script inserts them as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.images import ImageError, decode, encode, shrink
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.shards import ImageReader
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of, written_whole

PARTS = Path(__file__).parent / "doubts"

MOST_ON_PAGE = 400
"""Doubts on a page, the first of each kind in turn; the CSVs list all."""

SIDE_ON_PAGE = 400
"""Longer side of the images on the page, in pixels."""

DOUBTS: dict[str, Any] = {
    "kind": pl.String,  # label, across, leak or nothing
    "image_id": pl.String,
    "suggested_landmark_id": pl.Int64,
    "why": pl.String,
    "other_id": pl.String,  # the image that this is a copy of
}
"""Columns of a table of doubts, the strongest doubt first."""


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
        "command": escape(f"landmarks split {dataset.folder} --corrections {csv}"),
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
    return f"data:image/jpeg;base64,{base64.b64encode(encode(image, 80)).decode()}"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
