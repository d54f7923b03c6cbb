"""The byte index: in which TAR each photograph lies, and at which bytes.

    index.parquet: id u64 (the 16 hex digits as one integer, sorted) · tar u16 · offset u64 · length u32
    its metadata:  set, mirror, tar_count, digest, and `tars`: number, size, ETag, published MD5 of every indexed TAR

`offset` is where the photograph's bytes begin; its header ends there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from landmarks.archive.mirror import open_mirror
from landmarks.archive.ranges import Places
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of
from landmarks.support.tables import read_metadata, write_table

INDEX = {"id": pl.UInt64, "tar": pl.UInt16, "offset": pl.UInt64, "length": pl.UInt32}
"""Columns of a byte index, sorted by id, then TAR and offset."""

MEMBERS = {"id": pl.UInt64, "offset": pl.UInt64, "length": pl.UInt32}
"""Columns of the photographs' places in one TAR."""


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

    @property
    def unindexed(self) -> list[int]:
        """The TARs of the set that the index does not cover."""
        return [tar for tar in range(self.tar_count) if tar not in self.tars]

    def places(self, ids: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> dict[int, Places]:
        """Return TAR → places of those `ids` that are indexed; of one that lies in several places, the first."""
        wanted = pl.DataFrame({"id": ids}, {"id": pl.UInt64})
        rows = pl.scan_parquet(self.path).join(wanted.lazy(), on="id", how="semi").collect()
        rows = rows.sort("id", "tar", "offset").unique("id", keep="first").sort("tar", "offset")
        found = {}
        for (tar,), group in rows.group_by("tar", maintain_order=True):
            columns = (group[name].to_numpy() for name in ("id", "offset", "length"))
            found[int(str(tar))] = Places(*columns)
        return found


def read_index(place: str | Path) -> TarIndex:
    """Open a byte index at a path, or at an address (a copy is kept and checked).

    Raises:
        LandmarksError: it is not there, is no byte index, or was written by a newer version.
    """
    path = Path(place)
    if "://" in str(place):
        folder, _, name = str(place).rpartition("/")
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
        table.select("id", pl.lit(tar).cast(pl.UInt16).alias("tar"), "offset", "length")
        for tar, table in members.items()
    ]
    table = pl.concat([pl.DataFrame(schema=INDEX), *rows]).sort("id", "tar", "offset")
    told = [asdict(tars[tar]) for tar in sorted(members)]
    write_table(
        path,
        table,
        set=set,
        mirror=mirror,
        tar_count=count,
        tars=json.dumps(told),
        digest=digest_of(set, told),
    )
    return read_index(path)
