"""The sketches of a dataset's images, computed once and kept in `DATA/copies/`.

If the dataset is read-only, they are kept in the user's cache folder. The luminance images are one array on disk,
mapped into memory; the hashes are a table, which is written last.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.groups import NO_HASH
from landmarks.dataset.images import decode
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.shards import ImageReader
from landmarks.dataset.sketches import SKETCH_FORM, SKETCH_SIDE, Sketch, make_sketch
from landmarks.support.arrays import array_writer, open_array
from landmarks.support.console import note, plural, progress
from landmarks.support.disk import can_write, remove_file, require_free_disk
from landmarks.support.errors import LandmarksError
from landmarks.support.files import cache_folder, digest_of, written_whole
from landmarks.support.tables import read_metadata, read_table, write_cached_table

Integers = NDArray[np.int64]

_CONTENT = ("image_id", "length", "width", "height", "phash")
_SKETCHES: dict[str, Any] = {
    **{"image_id": pl.String, "length": pl.UInt32, "width": pl.UInt32, "height": pl.UInt32, "phash": pl.UInt64},
    **{"whole": pl.UInt64, "parts": pl.List(pl.UInt64), "corners": pl.List(pl.Float32)},
}


@dataclass(frozen=True)
class Sketches:
    """The sketches of N images; the parts of all images follow one another."""

    pixels: NDArray[np.uint8]  # (N, S, S), may be a memory map
    whole: NDArray[np.uint64]  # (N,)
    parts: NDArray[np.uint64]  # (P,)
    corners: NDArray[np.float32]  # (P, 4)
    counts: Integers  # (N,) number of parts of each image

    def parts_of(self, rows: Integers) -> Integers:
        """Return the positions in `parts` of the parts of the images at `rows` (M,)."""
        begins = np.cumsum(self.counts) - self.counts
        return np.concatenate([np.arange(begins[row], begins[row] + self.counts[row]) for row in rows])

    def of(self, rows: Integers) -> Sketches:
        """Return the sketches of the images at `rows` (M,), in their order."""
        parts = self.parts_of(rows)
        return Sketches(self.pixels[rows], self.whole[rows], self.parts[parts], self.corners[parts], self.counts[rows])

    def joined(self, others: Sketches) -> Sketches:
        """Return these sketches followed by the `others`."""
        pairs = ((getattr(self, field.name), getattr(others, field.name)) for field in fields(self))
        return Sketches(*(np.concatenate(pair) for pair in pairs))


def kept_sketches(dataset: Dataset, images: pl.DataFrame) -> Sketches | None:
    """Return the sketches of `images` (columns of a dataset's images); those that are not kept are computed.

    An image that cannot be read or decoded has no parts and is near no other, with a note. It is tried again the next
    time, because a disk or a server may have failed. Returns None if that applies to all images; the caller says so.
    """
    folder = _folder_of(dataset)
    before = _read(folder)
    content = images.select(_CONTENT).with_row_index("row")
    known = content.join(before.table.with_row_index("at"), on=list(_CONTENT), how="inner", nulls_equal=True)
    kept = known.filter(pl.col("parts").list.len() > 0)
    missing = images.filter(~pl.Series(np.isin(np.arange(len(images)), kept["row"].to_numpy())))
    if len(known) == len(images) and (not len(missing) or not any(_make_sketches(dataset, missing))):
        return _unless_all_unread(before.of(known.sort("row")["at"].to_numpy()))
    if missing["shard"].null_count() == len(images):
        return None
    name = f"pixels-{digest_of(SKETCH_FORM, images.select(_CONTENT).hash_rows(seed=0).to_list())}.npy"
    require_free_disk(folder, len(images) * SKETCH_SIDE**2)
    if len(kept):
        note(f"sketches of {plural(len(kept), 'image')} are kept from before, {len(missing):,} computed")
    rows = np.setdiff1d(np.arange(len(images)), kept["row"].to_numpy())
    made: list[Sketch | None] = []
    shape = (len(images), SKETCH_SIDE, SKETCH_SIDE)
    with written_whole(folder / name, tidy=True) as aside, array_writer(aside, np.uint8, shape) as write:
        for start in range(0, len(kept), 4096):
            some = kept[start : start + 4096]
            write(some["row"].to_numpy().astype(np.int64), before.pixels[some["at"].to_numpy()])
        for row, sketch in zip(rows, _make_sketches(dataset, missing), strict=True):
            made.append(None if sketch is None else replace(sketch, pixels=sketch.pixels[:0]))
            if sketch is not None:
                write(np.array([row]), sketch.pixels[None])
    table = pl.concat([kept.select("row", *_SKETCHES), _table_of(missing, rows, made)]).sort("row").drop("row")
    write_cached_table(folder / "sketches.parquet", table, form=SKETCH_FORM, pixels=name)
    for other in folder.glob("pixels-*.npy"):
        if other.name != name:
            with contextlib.suppress(LandmarksError):
                remove_file(other)
    return _unless_all_unread(_read(folder).of(np.arange(len(images))))


def _unless_all_unread(sketches: Sketches) -> Sketches | None:
    """Return `sketches`, with a note about images that have none; None if no image has one."""
    unread = int((sketches.counts == 0).sum())
    if unread and unread == len(sketches.counts):
        return None
    if unread:
        note(f"{unread:,} of {len(sketches.counts):,} images could not be read: no copies of them are found")
    return sketches


def _table_of(images: pl.DataFrame, rows: Integers, made: list[Sketch | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "row": pl.Series(rows, dtype=pl.UInt32),
            **{name: images[name] for name in _CONTENT},
            "whole": pl.Series([NO_HASH if sketch is None else sketch.whole for sketch in made], dtype=pl.UInt64),
            "parts": pl.Series(
                [[] if sketch is None else sketch.parts.tolist() for sketch in made], dtype=pl.List(pl.UInt64)
            ),
            "corners": pl.Series(
                [[] if sketch is None else sketch.corners.ravel().tolist() for sketch in made],
                dtype=pl.List(pl.Float32),
            ),
        }
    )


def _make_sketches(dataset: Dataset, images: pl.DataFrame) -> Iterator[Sketch | None]:
    """Yield the sketch of each image, None if it cannot be read or decoded; only a few images are in memory at once."""
    reader = ImageReader(dataset)

    def sketch(place: tuple[str | None, int, int]) -> Sketch | None:
        if place[0] is None:
            return None
        try:
            return make_sketch(decode(reader.read(place[0], place[1], place[2]), min_side=2 * SKETCH_SIDE))
        except (LandmarksError, OSError):
            return None

    with progress("sketches to find copies by", len(images)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for places in images.select("shard", "offset", "length").iter_slices(256):
            yield from pool.map(sketch, places.iter_rows())
            advance(len(places))


@dataclass(frozen=True)
class _StoredSketches:
    """The sketches in a folder."""

    table: pl.DataFrame  # columns of `_SKETCHES`
    pixels: NDArray[np.uint8]

    def of(self, at: Integers) -> Sketches:
        table = self.table[at]
        all_in_order = len(at) == len(self.table) and bool((at == np.arange(len(self.table))).all())
        return Sketches(
            pixels=self.pixels if all_in_order else self.pixels[at],
            whole=table["whole"].to_numpy(),
            parts=table["parts"].explode(empty_as_null=False).to_numpy(),
            corners=table["corners"].explode(empty_as_null=False).to_numpy().reshape(-1, 4),
            counts=table["parts"].list.len().to_numpy().astype(np.int64),
        )


def _read(folder: Path) -> _StoredSketches:
    """Return the sketches in a folder; none if there are none or they are not sound, as the cache may be anybody's."""
    nothing = _StoredSketches(pl.DataFrame(schema=_SKETCHES), np.zeros((0, SKETCH_SIDE, SKETCH_SIDE), np.uint8))
    path = folder / "sketches.parquet"
    if not path.is_file():
        return nothing
    try:
        metadata, table = read_metadata(path), read_table(path, _SKETCHES)
        name = Path(metadata.get("pixels", "")).name
        pixels = open_array(folder / name)
    except (LandmarksError, OSError, ValueError):
        return nothing
    lengths = table.select(parts=pl.col("parts").list.len(), corners=pl.col("corners").list.len())
    corners = table["corners"].explode(empty_as_null=False)
    sound = (
        metadata.get("form") == str(SKETCH_FORM)
        and pixels.dtype == np.uint8
        and pixels.shape == (len(table), SKETCH_SIDE, SKETCH_SIDE)
        and table.select(pl.all_horizontal(pl.col("image_id", "whole", "parts", "corners").is_not_null()).all()).item()
        and bool((lengths["corners"] == 4 * lengths["parts"]).all())
        and corners.is_between(-1, 2).all()
    )
    return _StoredSketches(table, pixels) if sound else nothing


def _folder_of(dataset: Dataset) -> Path:
    own = dataset.folder / "copies"
    if (own / "sketches.parquet").exists() or can_write(own):
        return own
    return cache_folder() / "copies" / digest_of(str(dataset.content_digest))
