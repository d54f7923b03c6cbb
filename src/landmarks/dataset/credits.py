"""The verb `credits`: the authors and licences of a dataset's images, which CC BY requires to be passed on."""

from __future__ import annotations

import itertools
from pathlib import Path

import polars as pl

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.support.console import note
from landmarks.support.files import refuse_other_kind, written_whole
from landmarks.support.places import Place
from landmarks.support.systems import printable
from landmarks.support.tables import csv_text, refuse_other_csv

CREDITS = {
    "image_id": pl.String,
    "author": pl.String,
    "license": pl.String,
    "title": pl.String,
    "landmark": pl.String,  # its name
    "url": pl.String,  # of the category in which the image was published
}
"""Columns of the credit list; null where nothing is known."""

UNKNOWN_AUTHOR = "unknown author"


def credits(data: Place, out: Place | None = None) -> pl.DataFrame:
    """Return the credits of a dataset, one row for each image (columns of `CREDITS`).

    With `out` they are also written: as CSV if its name ends with `.csv`, else as text with a paragraph for each author
    and licence. Images without a known author are last, and a note counts them.
    """
    data = data if isinstance(data, Dataset) else open_dataset(data)
    of_landmark = data.labels.select("landmark_id", landmark="name", url="category")
    listed = data.images.join(of_landmark, on="landmark_id", how="left").select(list(CREDITS))
    for column in ("author", "license", "title"):
        listed = listed.with_columns(pl.col(column).str.strip_chars().replace("", None))
    listed = listed.sort("author", "license", "title", "image_id", nulls_last=True)
    if unknown := listed["author"].null_count():
        note(f"{unknown:,} of {len(listed):,} images have no known author")
    if unknown := listed["license"].null_count():
        note(
            f"{unknown:,} of {len(listed):,} images have no known licence: nothing says that they may be passed on. "
            "Before they are shown to others, ask their authors or leave them out; what was learned from them is yours "
            "to judge"
        )
    if out is not None:
        refuse_other_kind(out, ".csv", ".txt", ".md")
        if Path(out).suffix.lower() == ".csv":
            refuse_other_csv(out, CREDITS)
        text = credits_as_csv(listed) if Path(out).suffix.lower() == ".csv" else credits_as_text(listed)
        with written_whole(out, tidy=True) as aside:
            aside.write_text(text, encoding="utf-8", newline="")
    return listed


def by_license(credits: pl.DataFrame) -> pl.DataFrame:
    """Return the `images` and `authors` under each `license`, the one with the most images first."""
    named = credits.with_columns(license=pl.col("license").fill_null("unknown licence"))
    counted = named.group_by("license").agg(images=pl.len(), authors=pl.col("author").drop_nulls().n_unique())
    return counted.sort(["images", "license"], descending=[True, False])


def credits_as_text(credits: pl.DataFrame) -> str:
    """Return the credit list as text: a paragraph for each author and licence, a line for each image."""
    lines: list[str] = []
    for (author, license), images in itertools.groupby(credits.rows(named=True), _author_and_license):
        lines.append(f"{printable(author)}, {printable(license)}" if license else printable(author))
        for image in images:
            title = printable(image["title"] or image["landmark"] or "untitled")
            source = f", {printable(image['url'])}" if image["url"] else ""
            lines.append(f'  "{title}" ({image["image_id"]}){source}')
        lines.append("")
    return "\n".join(lines)


def credits_as_csv(credits: pl.DataFrame) -> str:
    """Return the credit list as CSV, with empty cells where nothing is known."""
    return csv_text(credits)


def _author_and_license(image: dict[str, str | None]) -> tuple[str, str]:
    return image["author"] or UNKNOWN_AUTHOR, image["license"] or ""
