"""The byte index: the TAR, offset and length of each image.

    index.parquet: image_id u64 (the 16 hex digits as an integer, sorted) · tar u16 · offset u64 · length u32
    its metadata:  set, mirror, tar_count, digest, and `tars`: number, size, ETag, published MD5 of every indexed TAR

`offset` is the position of the image's first byte, just after its header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.archive.mirror import MAX_TARS, open_mirror
from landmarks.archive.tar import BLOCK, MAX_IMAGE_BYTES
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of
from landmarks.support.places import Place
from landmarks.support.remote_files import MAX_FILE_BYTES
from landmarks.support.tables import read_metadata, write_lone_table

INDEX = {"image_id": pl.UInt64, "tar": pl.UInt16, "offset": pl.UInt64, "length": pl.UInt32}
"""Columns of a byte index, sorted by id, TAR and offset."""

MEMBERS = {"image_id": pl.UInt64, "offset": pl.UInt64, "length": pl.UInt32}
"""Columns of a table of the images in one TAR."""


@dataclass(frozen=True)
class IndexedTar:
    """A TAR as it was when indexed; an ETag or MD5 that is not available is None."""

    tar: int
    size: int
    etag: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class TarIndex:
    """A byte index on disk, whose rows are read only when needed."""

    path: Path
    set: str
    mirror: str
    tar_count: int
    tars: Mapping[int, IndexedTar]

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"TarIndex({self.path}: {len(self.tars)} of {self.tar_count} TARs of {self.set})"

    @property
    def unindexed(self) -> list[int]:
        """The TARs of the set that the index does not cover."""
        return [tar for tar in range(self.tar_count) if tar not in self.tars]

    def places(self, ids: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> dict[int, Places]:
        """Return the places of those `ids` that are indexed, by TAR; an image may lie in several, or twice in one."""
        wanted = pl.DataFrame({"image_id": ids}, {"image_id": pl.UInt64})
        rows = pl.scan_parquet(self.path, glob=False).join(wanted.lazy(), on="image_id", how="semi").collect()
        self._refuse_impossible(rows)
        rows = rows.sort("tar", "offset")
        places = {}
        for (tar,), group in rows.group_by("tar", maintain_order=True):
            columns = (group[name].to_numpy() for name in ("image_id", "offset", "length"))
            places[int(str(tar))] = Places(*columns)
        return places

    def _refuse_impossible(self, rows: pl.DataFrame) -> None:
        """Raise `LandmarksError` if a place lies outside of its TAR: an index may come from strangers."""
        sizes = {"tar": list(self.tars), "size": [tar.size for tar in self.tars.values()]}
        table = rows.join(pl.DataFrame(sizes, {"tar": pl.UInt16, "size": pl.UInt64}), on="tar", how="left")
        inside = pl.col("offset").is_between(BLOCK, pl.col("size")) & (pl.col("length") <= MAX_IMAGE_BYTES)
        inside &= pl.col("length") <= pl.col("size") - pl.min_horizontal("offset", "size")
        impossible = table.filter(~inside.fill_null(False))
        if len(impossible):
            id, tar, offset, length, _ = impossible.row(0)
            raise LandmarksError(
                f"{self.path} holds a place of {id or 0:016x} that cannot be",
                received=f"{length} bytes at {offset} of TAR {tar}",
                way_out="make it again with: landmarks locate MIRROR -o INDEX",
            )


def read_index(place: Place) -> TarIndex:
    """Open a byte index at a path or an address; of a remote file a copy is cached (see `Mirror.local`).

    Raises:
        LandmarksError: there is no such file, it is no byte index, or a newer version wrote it.
    """
    path = Path(place)
    if "://" in os.fspath(place):
        folder, _, name = os.fspath(place).rpartition("/")
        path = open_mirror(folder).local(name)
    if not path.exists():
        raise LandmarksError(f"there is no byte index {place}", way_out="landmarks locate MIRROR -o INDEX makes one")
    metadata = read_metadata(path)
    columns = pl.read_parquet_schema(path)
    if "tars" not in metadata or any(columns.get(name) != kind for name, kind in INDEX.items()):
        raise LandmarksError(f"{place} is no byte index", expected="a file that landmarks locate wrote")
    try:
        tars = [_indexed_tar(**record) for record in json.loads(metadata["tars"])]
        count, set, mirror = int(metadata["tar_count"]), metadata["set"], metadata["mirror"]
        if not 0 <= count <= MAX_TARS:
            raise ValueError("an impossible number of TARs")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise LandmarksError(
            f"the metadata of {place} is not that of a byte index", way_out="landmarks locate MIRROR -o INDEX makes one"
        ) from error
    return TarIndex(path, set, mirror, count, {tar.tar: tar for tar in tars})


def _indexed_tar(tar: Any, size: Any, etag: Any = None, md5: Any = None) -> IndexedTar:
    """Return a TAR of an index from strangers; raise `ValueError` unless its fields are possible."""
    possible = type(tar) is int and 0 <= tar < MAX_TARS and type(size) is int and 0 <= size <= MAX_FILE_BYTES
    if not possible or not isinstance(etag, str | None) or not isinstance(md5, str | None):
        raise ValueError("an impossible TAR")
    return IndexedTar(tar, size, etag, md5)


def write_index(
    path: Path,
    members: Mapping[int, pl.DataFrame],
    tars: Mapping[int, IndexedTar],
    *,
    set: str,
    mirror: str,
    count: int,
) -> TarIndex:
    """Write a byte index to `path`, from tables of the TARs' images (columns `MEMBERS`) by TAR number.

    `count` is the number of TARs in the set. A row takes about 15 bytes on disk and 22 in memory, hence about 100 MB
    for the whole archive.
    """
    rows = [
        table.select("image_id", pl.lit(tar).cast(pl.UInt16).alias("tar"), "offset", "length")
        for tar, table in members.items()
    ]
    table = pl.concat([pl.DataFrame(schema=INDEX), *rows]).sort("image_id", "tar", "offset")
    tar_records = [asdict(tars[tar]) for tar in sorted(members)]
    write_lone_table(
        path,
        table,
        set=set,
        mirror=mirror,
        tar_count=count,
        tars=json.dumps(tar_records),
        digest=digest_of(set, tar_records),
    )
    return read_index(path)


# Which byte ranges to request: neighbours are merged where transferring the gap is cheaper than one more request.


MAX_OVERHEAD = 0.15
"""Largest size of gaps and headers together, as a share of the wanted bytes."""

MAX_SPAN_BYTES = 1 << 20
"""Largest size of a merged range: little is held in memory, and little is repeated after a fault."""


@dataclass(frozen=True)
class Places:
    """The places of P images in one TAR, in the TAR's order: ids as integers, offsets and lengths in bytes, `(P,)`."""

    ids: np.ndarray[Any, np.dtype[np.uint64]]
    offsets: np.ndarray[Any, np.dtype[np.uint64]]
    lengths: np.ndarray[Any, np.dtype[np.uint32]]

    def __len__(self) -> int:
        return len(self.ids)

    def id_of(self, row: int) -> str:
        """Return the image's id as 16 hex digits."""
        return f"{int(self.ids[row]):016x}"


@dataclass(frozen=True)
class Span:
    """One request: bytes `start` up to `end` of the TAR, for the places `first` up to `last` (ends excluded)."""

    start: int
    end: int
    first: int
    last: int


def spans(places: Places, largest_gap: int) -> list[Span]:
    """Return the requests for all images, each including the header before it.

    Neighbours with at most `largest_gap` bytes between them share a request. The smallest gaps are closed first, as
    long as the total stays within 1 + `MAX_OVERHEAD` times the size of the images themselves.
    """
    starts = places.offsets.astype(np.int64) - BLOCK
    ends = places.offsets.astype(np.int64) + places.lengths
    gaps = np.maximum(starts[1:] - ends[:-1], 0)
    budget = MAX_OVERHEAD * float(places.lengths.sum()) - BLOCK * len(places)
    closed = np.zeros(len(gaps), bool)
    order = np.argsort(gaps, kind="stable")
    affordable = (gaps[order] <= largest_gap) & (np.cumsum(gaps[order]) <= max(0.0, budget))
    closed[order[affordable]] = True
    result: list[Span] = []
    for row in range(len(places)):
        start, end = int(starts[row]), int(ends[row])
        previous = result[-1] if result else None
        if previous is not None and closed[row - 1] and end - previous.start <= MAX_SPAN_BYTES:
            result[-1] = Span(previous.start, max(end, previous.end), previous.first, row + 1)
        else:
            result.append(Span(start, end, row, row + 1))
    return result
