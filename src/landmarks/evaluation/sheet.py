"""A sheet to look at: photographs whose label is doubted, with what they are said to show and what it may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image, ImageDraw

from landmarks.dataset.manifest import Dataset
from landmarks.dataset.pictures import PictureError, decode, shrink
from landmarks.dataset.shards import PhotoReader
from landmarks.explanation.lettering import fitted, lettering
from landmarks.support.files import written_whole

MOST = 40
"""Photographs on a sheet; the CSV beside it names all."""

COLUMNS = 5
TILE, MARGIN, CAPTION, HEAD = 260, 16, 70, 40
PAPER, EMPTY, INK, QUIET, DOUBT = "#ffffff", "#ececef", "#1c1c1e", "#6b6b70", "#b3261e"


def write_sheet(dataset: Dataset, suspects: pl.DataFrame, path: Path) -> None:
    """Write the first `MOST` of `suspects` (columns of `suspects.SUSPECTS`) as a JPEG, row by row, with captions."""
    shown = suspects.head(MOST)
    columns = min(COLUMNS, max(1, len(shown)))
    rows = -(-len(shown) // columns)
    size = MARGIN + columns * (TILE + MARGIN), HEAD + rows * (TILE + CAPTION + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    _line(draw, (MARGIN, 12), f"{len(shown)} of {len(suspects)} doubted labels", 18, INK)
    places = {row["id"]: row for row in _places(dataset, shown).iter_rows(named=True)}
    reader = PhotoReader(dataset)
    for number, row in enumerate(shown.iter_rows(named=True)):
        left = MARGIN + number % columns * (TILE + MARGIN)
        top = HEAD + number // columns * (TILE + CAPTION + MARGIN)
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=EMPTY)
        picture = _picture(reader, places[row["id"]])
        if picture is not None:
            tile = Image.fromarray(picture)
            sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        _caption(draw, left, top + TILE + 6, row)
    with written_whole(path) as aside:
        sheet.save(aside, format="JPEG", quality=88)


def _places(dataset: Dataset, shown: pl.DataFrame) -> pl.DataFrame:
    return dataset.photos.join(shown.select("id"), on="id", how="semi").select("id", "shard", "offset", "length")


def _picture(reader: PhotoReader, place: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    """Return a photograph no side of which is longer than a tile; None where it cannot be decoded."""
    try:
        return shrink(decode(reader.read(place["shard"], place["offset"], place["length"])), TILE)
    except PictureError:
        return None


def _caption(draw: ImageDraw.ImageDraw, left: int, top: int, row: dict[str, Any]) -> None:
    against = row["why"]
    if row["probability"] is not None:
        against = f"{100 * row['probability']:.0f} % {row['suggested_name'] or row['suggested_landmark_id']}"
    _line(draw, (left, top), str(row["name"] or row["landmark_id"]), 16, INK)
    _line(draw, (left, top + 22), against, 16, DOUBT)
    _line(draw, (left, top + 44), row["id"], 13, QUIET)


def _line(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str) -> None:
    text, font = lettering(text, size)
    draw.text(at, fitted(text, font, TILE if size < 18 else 4 * TILE), fill=colour, font=font)
