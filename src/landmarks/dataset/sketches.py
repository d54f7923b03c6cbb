"""Sketches of images, by which copies are found: a small luminance image, and hashes of parts of it.

A copy that was cropped, framed or shown on a screen holds only a part of the image, or the image is a part of it. So
each image is hashed as a whole and in parts: cropped a little in many ways, inside what may be a frame, and mirrored.
If one image is about the same as a part of another, the hash of that part is near the hash of the whole image.

All parts are boxes of the same small image, so that the lowest frequencies of one take two products of matrices.

The sketches of a dataset's images are computed once and kept in `DATA/copies/`, or in the user's cache folder if the
dataset is read-only: the luminance images as one array on disk, mapped into memory; the hashes as a table, which is
written last.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dct

from landmarks.dataset.groups import FADING, FLATTEST, LOWEST, NO_HASH, SIDE
from landmarks.dataset.images import decode
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.shards import ImageReader
from landmarks.support.console import note, plural, progress
from landmarks.support.disk import can_write, remove_file, require_free_disk
from landmarks.support.errors import LandmarksError
from landmarks.support.files import cache_folder, digest_of, written_whole
from landmarks.support.tables import array_writer, open_array, read_metadata, read_table, write_cached_table

SKETCH_FORM = 2
"""To be raised whenever `make_sketch` returns something else for the same image."""

SKETCH_SIDE = 96
"""Pixels along each side of the luminance image; it is square whatever the image's proportions."""

CROP = 0.08
"""Share of a side that a crop leaves out; the hash tolerates about half of it more or less."""

LARGEST_MARGIN = 0.65
"""Largest share of a side that the margin of a frame or a screenshot takes."""

MARGIN_ENDS = 5
"""Number of lines at each side that are tried as the end of a margin, from the innermost outwards."""

_FREQUENCIES = 12

Corners = tuple[float, float, float, float]
"""A part of an image: left, top, right and bottom as shares of its width and height."""

WHOLE: Corners = (0.0, 0.0, 1.0, 1.0)

CROPS: tuple[Corners, ...] = tuple(
    (left, top, 1 - right, 1 - bottom) for top, bottom, left, right in itertools.product((0.0, CROP), repeat=4)
)
"""The whole image, and the image cropped at one to four sides."""

MIRRORED: tuple[Corners, ...] = (WHOLE, (CROP, CROP, 1 - CROP, 1 - CROP))
"""Parts of the mirrored image that are hashed."""


@dataclass(frozen=True)
class Sketch:
    """The sketch of one image."""

    pixels: NDArray[np.uint8]  # (SKETCH_SIDE, SKETCH_SIDE) luminance
    whole: int  # hash of the whole image, 64 bits; `NO_HASH` if it has no structure
    parts: NDArray[np.uint64]  # (P,) hashes of `corners`, `CROPS` first, then `MIRRORED`
    corners: NDArray[np.float32]  # (P, 4)


def make_sketch(image: NDArray[np.uint8]) -> Sketch:
    """Return the sketch of an RGB image (H, W, 3)."""
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    pixels = np.asarray(grey.resize((SKETCH_SIDE, SKETCH_SIDE), Image.Resampling.BOX))
    corners = [*CROPS, *MIRRORED, *inner_boxes(pixels)]
    if pixels.std() < FLATTEST:
        return Sketch(pixels, NO_HASH, np.zeros(len(corners), np.uint64), np.array(corners, np.float32))
    values = pixels.astype(np.float32)
    waves = np.stack([_waves(values, part) for part in corners])
    waves[len(CROPS) : len(CROPS) + len(MIRRORED)] *= _MIRROR_SIGNS
    parts = _hashes(waves)
    return Sketch(pixels, int(parts[0]), parts, np.array(corners, np.float32))


def shape_vectors(pixels: NDArray[np.uint8], corners: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return unit vectors (P, 64) of the parts `corners` (P, 4) of a sketch's `pixels`: their lowest frequencies.

    Hashes are made from the signs of these. Two hashes are expected to differ in 64 times the angle between their
    vectors, in half turns.
    """
    values = pixels.astype(np.float32)
    waves = np.stack([_waves(values, tuple(part)) for part in corners.tolist()])
    waves[len(CROPS) : len(CROPS) + len(MIRRORED)] *= _MIRROR_SIGNS
    lowest = waves[:, LOWEST[0], LOWEST[1]]
    return np.asarray(lowest / np.maximum(np.linalg.norm(lowest, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def _waves(pixels: NDArray[np.float32], part: Corners) -> NDArray[np.float32]:
    """Return the lowest frequencies (12, 12) of a part without its mean and with its edges faded out."""
    across, mean_across = _axis(part[0], part[2])
    down, mean_down = _axis(part[1], part[3])
    mean = mean_down @ pixels @ mean_across
    return np.asarray(down @ pixels @ across.T - mean * _WINDOW_WAVES, dtype=np.float32)


@functools.lru_cache(maxsize=4096)
def _axis(start: float, end: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the matrices that compute the low frequencies (12,) and the weighted mean of a line's pixels.

    They use the pixels from `start` to `end`, which are first averaged into `SIDE` values as in `perceptual_hash`.
    """
    edges = np.linspace(start * SKETCH_SIDE, end * SKETCH_SIDE, SIDE + 1)
    pixel = np.arange(SKETCH_SIDE)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    averaging = np.clip(covered, 0, None)
    averaging /= averaging.sum(axis=1, keepdims=True)
    weights = FADING / FADING.sum()
    return (_COSINES @ (FADING[:, None] * averaging)).astype(np.float32), (weights @ averaging).astype(np.float32)


def _hashes(waves: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the hashes (P,) of low frequencies (P, 12, 12): which of the 64 lowest are above their median."""
    lowest = waves[:, LOWEST[0], LOWEST[1]].round(2)
    above = np.packbits(lowest > np.median(lowest, axis=1, keepdims=True), axis=1)
    return np.ascontiguousarray(above).view(">u8")[:, 0].astype(np.uint64)


_COSINES = dct(np.eye(SIDE), axis=0, norm="ortho")[:_FREQUENCIES]
_WINDOW_WAVES = np.outer(_COSINES @ FADING, _COSINES @ FADING)
_MIRROR_SIGNS = np.where(np.arange(_FREQUENCIES) % 2, -1, 1).astype(np.float32)  # a mirror image's odd frequencies


# ── Images within an image: inside a border, on a card, on a screen ─────────────────────────────────────────────────


PLAIN = 0.8
"""Least share of the pixels in the last line of a margin that have the same shade."""

SHADES = 8
"""Grey levels within which shades are the same."""

STEP = 0.3
"""Least share of the pixels that change their shade at the end of a margin."""


def inner_boxes(pixels: NDArray[np.uint8]) -> list[Corners]:
    """Return boxes of a square luminance image that may hold another image.

    A margin ends with a plain line, beyond which much of the shade changes at once. Bars and captions end in the same
    way, so a few ends are tried at each side, the innermost first.
    """
    levels = pixels.astype(np.int16)
    top, bottom = _ends(levels)[:1] or [0.0], _ends(levels[::-1])[:1] or [0.0]
    if SKETCH_SIDE - top[0] - bottom[0] < SKETCH_SIDE / 4:
        top = bottom = [0.0]
    between = levels[int(top[0]) : SKETCH_SIDE - int(bottom[0])].T
    sides = [(0.0, 0.0), *itertools.product(_ends(between)[:2], _ends(between[::-1])[:2])]
    found: dict[Corners, None] = {}
    for left, right in sides:
        if SKETCH_SIDE - left - right < SKETCH_SIDE / 4:
            continue
        between = levels[:, int(left) : SKETCH_SIDE - int(right)]
        for above, below in itertools.product([0.0, *_ends(between)], [0.0, *_ends(between[::-1])]):
            if SKETCH_SIDE - above - below >= SKETCH_SIDE / 4 and (left or right or above or below):
                box = (left, above, SKETCH_SIDE - right, SKETCH_SIDE - below)
                found[tuple(value / SKETCH_SIDE for value in box)] = None  # type: ignore[index]
    return list(found)


def _ends(lines: NDArray[np.int16]) -> list[float]:
    """Return the possible widths of a margin that begins at line 0 of `lines` (n, m), the innermost end first.

    The line in which it ends is blurred, and half of it counts as margin.
    """
    most = int(LARGEST_MARGIN * SKETCH_SIDE)
    head = lines[: most + 2]
    shade = np.sort(head, axis=1)[:, head.shape[1] // 2]
    plain = (np.abs(head - shade[:, None]) <= SHADES).mean(axis=1)[:most] >= PLAIN
    step = np.where(plain, (np.abs(head[2:] - head[:-2]) > SHADES).mean(axis=1), 0)
    before, after = np.append(0, step[:-1]), np.append(step[1:], 0)
    ends = np.flatnonzero((step >= STEP) & (step >= before) & (step > after))[::-1]
    return [float(end) + 1.5 for end in ends[:MARGIN_ENDS]]


# ── The sketches of a dataset's images, computed once and kept on disk ──────────────────────────────────────────────


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
