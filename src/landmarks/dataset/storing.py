"""Store the images of files in the shards of a new dataset: read, decode, shrink and hash them on all processors.

Each finished shard has a table of its rows beside it, so that a killed import continues with the next shard.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from landmarks.dataset.groups import HASH_FORM, perceptual_hash
from landmarks.dataset.images import DECODER, STORED_FORM, decode, holds_several, prepare, size_of
from landmarks.dataset.manifest import IMAGES, REJECTED, Dataset, open_dataset
from landmarks.dataset.shards import ShardWriter, is_shard, missing_files
from landmarks.dataset.sources import FoundImage
from landmarks.dataset.trust import MAX_IMAGE_BYTES
from landmarks.support.console import Advance, note, plural, progress
from landmarks.support.disk import make_folder, remove_folder, remove_leftovers
from landmarks.support.errors import LandmarksError, StaleError
from landmarks.support.files import digest_of, read_record
from landmarks.support.systems import require_text, usable_processors
from landmarks.support.tables import read_metadata, read_table, write_table

IMAGES_PER_SHARD = 2_000
"""The most images that are imported again after a kill."""

UNFINISHED = ".import"
"""The folder that holds a table for each finished shard until the whole dataset is finished."""

In = TypeVar("In")
Out = TypeVar("Out")


def finished_dataset(out: Path, inputs: str, way_out: str = "choose another folder") -> Dataset | None:
    """Return the dataset in `out` if it was made from the same `inputs`, None if there is none.

    Raises `StaleError`, with `way_out`, if it was made from others, and `LandmarksError` if its shards are gone.
    """
    if not (out / "dataset.json").exists():
        return None
    if read_record(out / "dataset.json")["inputs"] != inputs:
        raise StaleError(f"{out} holds a dataset of other images or settings", way_out=way_out)
    remove_folder(out / UNFINISHED)  # left if the process was killed just before it removed the folder itself
    dataset = open_dataset(out)
    missing, count = missing_files(dataset, filter(is_shard, dataset.images["shard"].unique()))
    if missing:
        raise LandmarksError(
            f"{out} already holds exactly this, but its images are not there",
            received=f"{len(missing):,} of {plural(count, 'shard')} missing, such as {missing[0]}",
            way_out=f"put them back, or delete {out} and run the same command again",
        )
    note(f"{out} already holds exactly this")
    return dataset


@dataclass(frozen=True)
class StoredImages:
    """The images that were stored, and those that were rejected."""

    images: pl.DataFrame  # the columns of `IMAGES` that come from the files themselves
    rejected: pl.DataFrame  # columns of `REJECTED`
    decoders: list[str]
    several: list[str]  # files of which only the first image was taken


def store_images(found: list[FoundImage], out: Path, *, inputs: str, max_side: int | None) -> StoredImages:
    """Store `found` in shards under `out`; with `max_side` None they are only decoded and stay where they are.

    `inputs` is the digest of the images and settings. Shards that were finished under the same digest are kept, unless
    they come from a version that stores or hashes images differently.
    """
    tables = []
    inputs = digest_of(inputs, STORED_FORM, HASH_FORM, "several")
    remove_unfinished(out, inputs)
    with progress("importing", total=len(found)) as advance:
        for number, start in enumerate(range(0, len(found), IMAGES_PER_SHARD)):
            some = found[start : start + IMAGES_PER_SHARD]
            tables.append(_store_shard(some, out, number, advance, inputs=inputs, max_side=max_side))
    rows = pl.concat(tables)
    sound = pl.col("why").is_null()
    decoders = {read_metadata(table)["decoder"] for table in (out / UNFINISHED / inputs).glob("*.parquet")}
    several = rows.filter(sound & pl.col("several"))["where"].to_list()
    images, rejected = rows.filter(sound).drop("where", "why", "several"), rows.filter(~sound).select(*REJECTED)
    return StoredImages(images, rejected, sorted(decoders), several)


_MOST_LETTERS = 300
"""Letters of a path that are printed; `rejected.parquet` holds all of it."""


def note_rejected(rejected: pl.DataFrame) -> None:
    """Note the first files that were rejected (columns of `REJECTED`) with the reasons, and how many more there are."""
    for _, where, why in rejected.head(5).iter_rows():
        note(f"rejected: {where if len(where) <= _MOST_LETTERS else where[:_MOST_LETTERS] + '…'}: {why}")
    if len(rejected) > 5:
        note(f"rejected: {len(rejected) - 5:,} more, named in rejected.parquet")


def remove_unfinished(out: Path, inputs: str) -> None:
    """Remove the half-written files of a killed import, and all of its files if it had other `inputs`."""
    if (out / UNFINISHED).exists() and not (out / UNFINISHED / inputs).exists():
        for folder in (out / UNFINISHED).iterdir():
            remove_folder(folder)
        remove_folder(out / "shards")
    make_folder(out / UNFINISHED / inputs)  # first, as it marks the folder `out` as that of an import
    for folder in (out / "shards", out / UNFINISHED / inputs):
        remove_leftovers(folder)


def _store_shard(
    some: list[FoundImage], out: Path, number: int, advance: Advance, *, inputs: str, max_side: int | None
) -> pl.DataFrame:
    """Store the images of one shard and return a row for each; a shard that was finished before is not made again."""
    table_path, shard = out / UNFINISHED / inputs / f"{number:05d}.parquet", f"import-{number:05d}.tar"
    if table_path.exists():
        advance(len(some))
        return read_table(table_path)

    def read(image: FoundImage) -> tuple[dict[str, Any], bytes]:
        return _read_image(image, max_side)

    rows = []
    if max_side is None:
        for row, _ in in_parallel(read, some):
            rows.append(row)
            advance()
    else:
        with ShardWriter(out / "shards" / shard) as writer:
            for row, jpeg in in_parallel(read, some):
                if row["why"] is None:
                    row["shard"], (row["offset"], row["length"]) = shard, writer.add(row["image_id"], jpeg)
                rows.append(row)
                advance()
    columns = ("image_id", "shard", "offset", "length", "width", "height", "phash", "author", "license", "title")
    schema = {**{name: IMAGES[name] for name in columns}, "where": pl.String, "why": pl.String}
    schema["several"] = pl.Boolean
    table = pl.DataFrame(rows, schema=schema)
    write_table(table_path, table, decoder=DECODER)
    return table


def _read_image(file: FoundImage, max_side: int | None) -> tuple[dict[str, Any], bytes]:
    """Read and decode a file; return its row and the JPEG to store.

    If it is no intact image, `why` in the row holds the reason. With `max_side` None, nothing is to be stored.
    """
    row: dict[str, Any] = {
        "image_id": file.id,
        "where": file.where,
        "why": None,
        "author": file.author,
        "license": file.license,
        "title": file.title,
        "several": False,
    }
    try:
        size = file.path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise LandmarksError("a file too large to be an image", received=f"{size:,} bytes")
        with BYTES_IN_FLIGHT.taking(size):
            data = file.path.read_bytes()
            row["several"] = holds_several(data)
            with PIXELS_IN_FLIGHT.taking(pixels_decoded(data, max_side)):
                if max_side is None:
                    require_text(file.path.absolute())  # the table holds it unescaped
                    image = decode(data)
                    row |= {"shard": str(file.path.absolute()), "offset": 0, "length": len(data)}
                    data = b""
                else:
                    data, image = prepare(data, max_side)
                height, width = image.shape[:2]
                row |= {"width": width, "height": height, "phash": perceptual_hash(image)}
    except OSError as error:
        return row | {"why": f"it cannot be read ({error.strerror or error})"}, b""
    except LandmarksError as error:
        return row | {"why": str(error)}, b""
    return row, data


def in_parallel(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Yield `function(item)` in the order of `items`, computed in threads.

    At most twice as many results as there are threads are in memory at once.
    """
    workers = usable_processors()
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# ── Limits on bytes and pixels in memory: threads wait for their turn, so that more cores take no more memory ───────


MAX_BYTES_READ = 1 << 29
"""Bytes of files that all threads together may have read but not yet decoded."""

MAX_PIXELS_DECODED = 96_000_000
"""Pixels that all threads together may be decoding: about a gigabyte with the copies that resizing needs."""


class Budget:
    """An amount that threads share, in the order of their requests; a request above the limit gets all of it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        """Wait until `amount` is free, and hold it while the block runs."""
        amount, turn = min(amount, self.limit), object()
        with self._changed:
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._used + amount <= self.limit)
                self._used += amount
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


BYTES_IN_FLIGHT = Budget(MAX_BYTES_READ)
PIXELS_IN_FLIGHT = Budget(MAX_PIXELS_DECODED)


def pixels_decoded(data: bytes, max_side: int | None) -> int:
    """Return the number of pixels in memory while an image is decoded to be shrunk to `max_side`.

    A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 that is no smaller than `max_side`, anything
    else at full size. Raises `ImageError` if its headers show that it is no image, or too large.
    """
    width, height = size_of(data)
    scale = 1
    if max_side is not None and data[:3] == b"\xff\xd8\xff":
        while scale < 8 and max(width, height) >= 2 * scale * max_side:
            scale *= 2
    return -(-width // scale) * -(-height // scale)
