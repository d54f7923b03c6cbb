"""The byte index: in which TAR each image lies, and at which bytes.

    index.parquet: id u64 (the 16 hex digits as one integer, sorted) · tar u16 · offset u64 · length u32
    its metadata:  set, mirror, tar_count, digest, and `tars`: number, size, ETag, published MD5 of every indexed TAR

`offset` is where the image's bytes begin; its header ends there.
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

from landmarks.archive.mirror import open_mirror
from landmarks.archive.tar import BLOCK
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of
from landmarks.support.places import Place
from landmarks.support.tables import read_metadata, write_lone_table

INDEX = {"image_id": pl.UInt64, "tar": pl.UInt16, "offset": pl.UInt64, "length": pl.UInt32}
"""Columns of a byte index, sorted by id, then TAR and offset."""

MEMBERS = {"image_id": pl.UInt64, "offset": pl.UInt64, "length": pl.UInt32}
"""Columns of the images' places in one TAR."""


@dataclass(frozen=True)
class IndexedTar:
    """A TAR as it was when it was indexed; an unknown ETag or MD5 is None."""

    tar: int
    size: int
    etag: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class TarIndex:
    """A byte index on disk; its rows are read only as they are needed."""

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
        """Return TAR → places of those `ids` that are indexed; of one that lies in several places, the first."""
        wanted = pl.DataFrame({"image_id": ids}, {"image_id": pl.UInt64})
        rows = pl.scan_parquet(self.path, glob=False).join(wanted.lazy(), on="image_id", how="semi").collect()
        rows = rows.sort("image_id", "tar", "offset").unique("image_id", keep="first").sort("tar", "offset")
        found = {}
        for (tar,), group in rows.group_by("tar", maintain_order=True):
            columns = (group[name].to_numpy() for name in ("image_id", "offset", "length"))
            found[int(str(tar))] = Places(*columns)
        return found


def read_index(place: Place) -> TarIndex:
    """Open a byte index at a path, or at an address (a copy is kept and checked).

    Raises:
        LandmarksError: it is not there, is no byte index, or was written by a newer version.
    """
    path = Path(place)
    if "://" in os.fspath(place):
        folder, _, name = os.fspath(place).rpartition("/")
        path = open_mirror(folder).local(name)
    metadata = read_metadata(path)
    columns = pl.read_parquet_schema(path)
    if "tars" not in metadata or any(columns.get(name) != kind for name, kind in INDEX.items()):
        raise LandmarksError(f"{place} is no byte index", expected="a file that landmarks locate wrote")
    tars = [IndexedTar(**tar) for tar in json.loads(metadata["tars"])]
    return TarIndex(
        path, metadata["set"], metadata["mirror"], int(metadata["tar_count"]), {tar.tar: tar for tar in tars}
    )


def write_index(
    path: Path,
    members: Mapping[int, pl.DataFrame],
    tars: Mapping[int, IndexedTar],
    *,
    set: str,
    mirror: str,
    count: int,
) -> TarIndex:
    """Write the byte index of the TARs whose `members` (columns `MEMBERS`) are given.

    A row takes about 15 bytes on disk and 22 in memory, so that the whole archive needs about 100 MB.
    """
    rows = [
        table.select("image_id", pl.lit(tar).cast(pl.UInt16).alias("tar"), "offset", "length")
        for tar, table in members.items()
    ]
    table = pl.concat([pl.DataFrame(schema=INDEX), *rows]).sort("image_id", "tar", "offset")
    told = [asdict(tars[tar]) for tar in sorted(members)]
    write_lone_table(
        path,
        table,
        set=set,
        mirror=mirror,
        tar_count=count,
        tars=json.dumps(told),
        digest=digest_of(set, told),
    )
    return read_index(path)


# Which byte ranges to ask for: near ones are merged where moving the gap is cheaper than one more request.


MOST_OVERHEAD = 0.15
"""Gaps and headers together never move more than this share of the wanted bytes."""

MOST_BYTES_OF_A_SPAN = 1 << 20
"""A merged range is no larger than this, so that little is held in memory and little repeated after a fault."""


@dataclass(frozen=True)
class Places:
    """Where images lie in one TAR, in the TAR's order: ids (as integers), offsets and lengths in bytes, `(P,)`."""

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
    """One request: bytes `start` up to `end` of the TAR, which hold the places `first` up to `last`."""

    start: int
    end: int
    first: int
    last: int


def spans(places: Places, largest_gap: int) -> list[Span]:
    """Return the requests for all places, each with its header in front.

    Two neighbours share a request when at most `largest_gap` bytes lie between them; the smallest gaps are closed
    first, as long as everything that moves stays within 1 + `MOST_OVERHEAD` times the images' own bytes.
    """
    starts = places.offsets.astype(np.int64) - BLOCK
    ends = places.offsets.astype(np.int64) + places.lengths
    gaps = np.maximum(starts[1:] - ends[:-1], 0)
    budget = MOST_OVERHEAD * float(places.lengths.sum()) - BLOCK * len(places)
    closed = np.zeros(len(gaps), bool)
    order = np.argsort(gaps, kind="stable")
    affordable = (gaps[order] <= largest_gap) & (np.cumsum(gaps[order]) <= max(0.0, budget))
    closed[order[affordable]] = True
    result: list[Span] = []
    for row in range(len(places)):
        start, end = int(starts[row]), int(ends[row])
        before = result[-1] if result else None
        if before is not None and closed[row - 1] and end - before.start <= MOST_BYTES_OF_A_SPAN:
            result[-1] = Span(before.start, max(end, before.end), before.first, row + 1)
        else:
            result.append(Span(start, end, row, row + 1))
    return result
