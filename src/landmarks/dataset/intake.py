"""Files into a dataset: read, decoded, shrunk, hashed and put into shards, on all processors and a shard at a time."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from landmarks.dataset.groups import HASH_FORM, perceptual_hash
from landmarks.dataset.manifest import PHOTOS, REJECTED
from landmarks.dataset.pictures import DECODER, STORED_FORM, decode, prepare
from landmarks.dataset.shards import ShardWriter
from landmarks.dataset.sources import Found
from landmarks.support.console import Advance, progress
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of, remove_leftovers
from landmarks.support.processors import usable_processors
from landmarks.support.tables import read_metadata, read_table, write_table
from landmarks.support.text import require_text

PHOTOGRAPHS_PER_SHARD = 2_000
"""Also how much work is repeated when an import is killed."""

MAX_BYTES = 1 << 28
"""A file that is larger is not read."""

UNFINISHED = ".import"
"""The folder that holds what is known of the finished shards until the whole dataset is."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Intake:
    """What came of some files."""

    photos: pl.DataFrame  # the columns of `PHOTOS` that a file tells
    rejected: pl.DataFrame
    decoders: list[str]


def take_in(found: list[Found], out: Path, *, inputs: str, max_side: int | None) -> Intake:
    """Store `found` in shards under `out`, or with `max_side` None only look at them.

    `inputs` is the digest of what is taken in and how: shards that were finished under the same one are taken over, but
    not from a version that stores or hashes photographs otherwise.
    """
    tables = []
    inputs = digest_of(inputs, STORED_FORM, HASH_FORM)
    _clear_away(out, inputs)
    with progress("importing", total=len(found)) as advance:
        for number, start in enumerate(range(0, len(found), PHOTOGRAPHS_PER_SHARD)):
            some = found[start : start + PHOTOGRAPHS_PER_SHARD]
            tables.append(_store(some, out, number, advance, inputs=inputs, max_side=max_side))
    rows = pl.concat(tables)
    sound = pl.col("why").is_null()
    decoders = {read_metadata(done)["decoder"] for done in (out / UNFINISHED / inputs).glob("*.parquet")}
    return Intake(rows.filter(sound).drop("where", "why"), rows.filter(~sound).select(*REJECTED), sorted(decoders))


def _clear_away(out: Path, inputs: str) -> None:
    """Remove what a killed import left half-written, and all of it if that was of other photographs or settings."""
    if (out / UNFINISHED).exists() and not (out / UNFINISHED / inputs).exists():
        shutil.rmtree(out / UNFINISHED)
        shutil.rmtree(out / "shards", ignore_errors=True)
    (out / UNFINISHED / inputs).mkdir(parents=True, exist_ok=True)  # first, so that the folder is known for an import's
    for folder in (out / "shards", out / UNFINISHED / inputs):
        remove_leftovers(folder)


def _store(
    some: list[Found], out: Path, number: int, advance: Advance, *, inputs: str, max_side: int | None
) -> pl.DataFrame:
    """Store up to a shard of photographs and return a row for each; what was done before a kill is taken over."""
    done, shard = out / UNFINISHED / inputs / f"{number:05d}.parquet", f"import-{number:05d}.tar"
    if done.exists():
        advance(len(some))
        return read_table(done)

    def take(one: Found) -> tuple[dict[str, Any], bytes]:
        return _take(one, max_side)

    rows = []
    if max_side is None:
        for row, _ in in_parallel(take, some):
            rows.append(row)
            advance()
    else:
        with ShardWriter(out / "shards" / shard) as writer:
            for row, jpeg in in_parallel(take, some):
                if row["why"] is None:
                    row["shard"], (row["offset"], row["length"]) = shard, writer.add(row["id"], jpeg)
                rows.append(row)
                advance()
    columns = ("id", "shard", "offset", "length", "width", "height", "phash", "author", "license", "title")
    schema = {**{name: PHOTOS[name] for name in columns}, "where": pl.String, "why": pl.String}
    table = pl.DataFrame(rows, schema=schema)
    write_table(done, table, decoder=DECODER)
    return table


def _take(one: Found, max_side: int | None) -> tuple[dict[str, Any], bytes]:
    """Read and decode one file; return its row, with the reason in `why` when it is no whole picture, and its JPEG."""
    row: dict[str, Any] = {
        "id": one.id, "where": one.where, "why": None, "author": one.author, "license": one.license, "title": one.title,
    }  # fmt: skip
    try:
        size = one.path.stat().st_size
        if size > MAX_BYTES:
            raise LandmarksError("a file too large to be a photograph", received=f"{size:,} bytes")
        data = one.path.read_bytes()
        if max_side is None:
            require_text(one.path.absolute())  # it stands in the table as it is
            image = decode(data)
            row |= {"shard": str(one.path.absolute()), "offset": 0, "length": len(data)}
        else:
            data, image = prepare(data, max_side)
    except (OSError, LandmarksError) as error:
        return row | {"why": str(error)}, b""
    height, width = image.shape[:2]
    return row | {"width": width, "height": height, "phash": perceptual_hash(image)}, data


def in_parallel(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Yield the results in the order of `items`, from threads; no more are in flight than twice the workers."""
    workers = usable_processors()
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
