"""Photographs in the page: small ones read from the dataset while it is there, heat maps from the run folder."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import PARTS, Dataset, open_dataset
from landmarks.dataset.pictures import decode, encode, shrink
from landmarks.dataset.shards import PhotoReader
from landmarks.report.wording import readable
from landmarks.support.errors import LandmarksError
from landmarks.training.own_data import find_own, places_of
from landmarks.training.run import Run

THUMBNAIL = 220
"""Longest side of a photograph in the page, in pixels."""

PANEL = 1000
"""Longest side of a heat-map panel in the page, in pixels."""


@dataclass(frozen=True)
class Photograph:
    """One photograph for the page: `uri` holds its bytes, or is empty when they could not be read."""

    id: str
    uri: str
    width: int
    height: int
    credit: str


def find_dataset(run: Run, judged: Mapping[str, Any] | None) -> Dataset:
    """Return the dataset whose photographs were judged, as the record of numbers `judged` tells, else the run's own.

    Raises `LandmarksError` when it is not there, or is not what was judged: its pictures would be others of that name.
    """
    if judged is None or judged.get("own_data", judged.get("name") in PARTS):
        return find_own(run)
    told = {"folder": judged.get("data"), "relative": judged.get("data_relative")}
    there = [place for place in places_of(told, beside=run.folder) if (place / "dataset.json").is_file()]
    if not there:
        raise LandmarksError(f"the photographs that {run.name} was judged on are not at {told['folder']} any more")
    digest = judged.get("data_digest")
    for place in there:
        dataset = open_dataset(place)
        if digest in (None, dataset.digest):
            return dataset
    raise LandmarksError(f"the dataset at {there[0]} is not as it was when {run.name} was judged on it")


def photographs(dataset: Dataset | None, ids: Iterable[str]) -> dict[str, Photograph]:
    """Return small copies with their credits by id; a photograph that cannot be read keeps its credit and no bytes."""
    if dataset is None:
        return {}
    wanted = dataset.photos.filter(pl.col("id").is_in(list(set(ids))))
    reader = PhotoReader(dataset)
    return {row["id"]: _thumbnail(reader, row) for row in wanted.iter_rows(named=True)}


def _thumbnail(reader: PhotoReader, row: Mapping[str, Any]) -> Photograph:
    credit = credit_of(row)
    try:
        data = reader.read(row["shard"], row["offset"], row["length"])
        image = shrink(decode(data, min_side=THUMBNAIL), THUMBNAIL)
    except (LandmarksError, OSError):
        return Photograph(row["id"], "", 0, 0, credit)
    height, width = image.shape[:2]
    return Photograph(row["id"], data_uri(encode(image, quality=80)), width, height, credit)


def credit_of(row: Mapping[str, Any]) -> str:
    """Return `Author, licence` of a photograph as far as they are known."""
    known = [readable(row[name], 80) for name in ("author", "license") if row.get(name)]
    return ", ".join(known)


def panel(path: Path) -> str:
    """Return a heat-map panel as a data URI no wider than the page needs, or an empty text when it cannot be read."""
    try:
        image = shrink(decode(path.read_bytes()), PANEL)
    except (LandmarksError, OSError):
        return ""
    return data_uri(encode(image, quality=82))


def data_uri(jpeg: bytes) -> str:
    """Return JPEG bytes as a `data:` address."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
