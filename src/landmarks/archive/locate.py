"""The byte index, the TAR, offset and length of each image, and the verb `locate`, which makes it for a mirror.

    index.parquet: image_id u64 (the 16 hex digits as an integer, sorted) · tar u16 · offset u64 · length u32
    its metadata:  set, mirror, tar_count, digest, and `tars`: number, size, ETag, published MD5 of every indexed TAR

`offset` is the position of the image's first byte, just after its header.

It is made by requesting nothing but the TARs' headers: half a kilobyte per image.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.archive.executors import EndedError
from landmarks.archive.mirror import MAX_TARS, Mirror, open_mirror, tar_path
from landmarks.archive.tar import BLOCK, MAX_IMAGE_BYTES, Member, TruncatedError, members
from landmarks.archive.transfer import ChangedError, Places
from landmarks.support.console import note, progress
from landmarks.support.disk import remove_folder
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.files import digest_of, held
from landmarks.support.places import Place
from landmarks.support.remote_files import MAX_FILE_BYTES
from landmarks.support.requests import MirrorError, Patience
from landmarks.support.tables import read_metadata, read_table, write_lone_table, write_table

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


# ── Making the index, by requesting nothing but the TARs' headers ───────────────────────────────────────────────────


MEMBERS_BETWEEN_SAVES = 1000
"""The number of images after which the table of a TAR's images is saved."""

Count = Callable[[int, int], None]
"""`count(bytes, headers)` is called with the bytes passed and the headers read; it may raise to end the work."""


@dataclass(frozen=True)
class _Walk:
    """One TAR whose headers are read, and the file in which its images found so far are saved."""

    mirror: Mirror
    set: str
    tar: IndexedTar
    saved: Path

    @property
    def path(self) -> str:
        return tar_path(self.set, self.tar.tar)


SETS = ("train", "test", "index")


def locate(mirror: Place | Mirror, out: Place, *, set: str = "train", workers: int = 64) -> TarIndex:
    """Make the byte index of a set and write it to `out`, reading the headers of `workers` TARs at once.

    It can be stopped at any time and run again: what has been read is kept next to `out` until the index is written.
    TARs of an earlier index at `out` whose size and ETag are still the same are copied from it. A TAR that cannot be
    read is left out with a note, and listed by `TarIndex.unindexed`.

    Raises:
        LandmarksError: the mirror has no such set, or no TAR could be read.
        UsageError: there is no such set, or `out` is the index of another one.
        BusyError: another process is making the same index.
    """
    if set not in SETS:
        raise UsageError(f'no set "{set}"', expected=" or ".join(SETS), way_out=did_you_mean(set, SETS))
    if workers < 1:
        raise UsageError("--workers must be at least 1", received=workers)
    default = Patience()
    patience = replace(default, connections=max(workers, default.connections))
    mirror, out = open_mirror(mirror, patience=patience), Path(out)
    if out.is_dir():
        raise UsageError(f"{out} is a folder", expected="the name of a file, such as index.parquet")
    earlier = _earlier(out)
    if earlier is not None and earlier.set != set:
        raise UsageError(
            f"{out} is the index of another set", received=f"--set {set}", expected=f"--set {earlier.set}",
            way_out="choose another name, or remove it first",
        )  # fmt: skip
    parts = out.with_name(f".{out.name}.parts")
    with held(parts):
        count = mirror.tar_count(set)
        indexed = dict(earlier.tars) if earlier is not None and earlier.mirror == mirror.place else {}
        with ThreadPoolExecutor(min(workers, 32)) as pool:
            walks = list(pool.map(lambda tar: _prepare_walk(mirror, set, tar, parts), range(count)))
        possible = [walk for walk in walks if walk is not None]
        if len(possible) == count and all(indexed.get(walk.tar.tar) == walk.tar for walk in possible):
            note(f"{out} is complete already")
            index = read_index(out)
        else:
            index = _make_index(mirror, out, set=set, count=count, walks=possible, indexed=indexed, workers=workers)
    with contextlib.suppress(LandmarksError):  # a folder left behind does no harm, and the next call removes it
        remove_folder(parts)
    return index


def _make_index(
    mirror: Mirror, out: Path, *, set: str, count: int, walks: list[_Walk], indexed: dict[int, IndexedTar], workers: int
) -> TarIndex:
    """Read the TARs that are not in `indexed`, the earlier index, and write the index of all that could be read."""
    failed = _walk_all(walks, workers, indexed)
    done = {walk.tar.tar: walk for walk in walks if walk.tar.tar not in failed}
    if not done:
        raise LandmarksError(f"no TAR of {mirror.place}/{set} could be walked", way_out="see the lines above")
    tables = {tar: _members_of(walk, out, indexed) for tar, walk in done.items()}
    tars = {tar: walk.tar for tar, walk in done.items()}
    return write_index(out, tables, tars, set=set, mirror=mirror.place, count=count)


def walk_headers(mirror: Mirror, path: str, size: int, etag: str | None, start: int = 0) -> Iterator[Member]:
    """Yield a TAR's members from the header at `start`, with one request per header and none for data.

    Raises:
        ChangedError: the TAR's size or ETag changed on the way.
        HeaderError, TruncatedError: see `tar.members`.
    """

    def read(position: int, length: int) -> bytes:
        if position + length > size:
            raise TruncatedError(f"{mirror.place}/{path} ends at byte {size}, in the middle")
        answer = mirror.range(path, position, position + length)
        if answer.size != size or answer.etag != etag:
            raise ChangedError(f"{mirror.place}/{path} changed while it was being walked")
        return bytes(answer.data)

    return members(read, start=start)


def _prepare_walk(mirror: Mirror, set: str, tar: int, parts: Path) -> _Walk | None:
    try:
        size, etag = mirror.head(tar_path(set, tar))
    except MirrorError as error:
        note(f"{tar_path(set, tar)} is not indexed: {error}")
        return None
    saved = parts / f"images_{tar:03d}.parquet"
    return _Walk(mirror, set, IndexedTar(tar, size, etag, mirror.md5(set, tar)), saved)


def _earlier(out: Path) -> TarIndex | None:
    """Return the index that is already at `out`, or None when there is none that can be read."""
    with contextlib.suppress(LandmarksError):
        return read_index(out)
    return None


def _walk_all(walks: list[_Walk], workers: int, indexed: dict[int, IndexedTar]) -> set[int]:
    """Read every TAR that is not in the earlier index; return the numbers of those that failed."""
    failed: set[int] = set()
    to_do = [walk for walk in walks if indexed.get(walk.tar.tar) != walk.tar]
    lock, stopped = threading.Lock(), threading.Event()
    headers = 0
    with progress("locating", total=max(1, sum(walk.tar.size for walk in to_do))) as advance:

        def count(bytes: int, read: int) -> None:
            nonlocal headers
            if stopped.is_set():
                raise EndedError("stopped")
            with lock:
                headers += read
                advance(bytes, f"{headers:,} headers")

        with ThreadPoolExecutor(workers, thread_name_prefix="locate") as pool:
            futures = {pool.submit(_walk_tar, walk, count): walk for walk in to_do}
            try:
                for future in as_completed(futures):
                    try:
                        future.result()
                    except MirrorError as error:
                        walk = futures[future]
                        failed.add(walk.tar.tar)
                        note(f"{walk.path} is not indexed: {error}")
            except BaseException:
                stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return failed


def _walk_tar(walk: _Walk, count: Count) -> None:
    """Read a TAR's headers to its end, from where an earlier run stopped, and save the table now and then."""
    table, start, done = _read_saved(walk)
    count(start, 0)
    if done:
        return
    rows: list[tuple[int, int, int]] = []
    for member in walk_headers(walk.mirror, walk.path, walk.tar.size, walk.tar.etag, start):
        if member.id is not None and member.size <= MAX_IMAGE_BYTES:
            rows.append((int(member.id, 16), member.offset, member.size))
        count(member.next - start, 1)
        start = member.next
        if len(rows) >= MEMBERS_BETWEEN_SAVES:
            table, rows = _save(walk, table, rows, start, False), []
    _save(walk, table, rows, start, True)


def _read_saved(walk: _Walk) -> tuple[pl.DataFrame, int, bool]:
    """Return the images found so far, the position of the next header, and whether the TAR is done."""
    with contextlib.suppress(LandmarksError):
        metadata = read_metadata(walk.saved)
        if metadata.get("tar") == json.dumps(asdict(walk.tar)):
            return read_table(walk.saved, MEMBERS), int(metadata["next"]), metadata["done"] == "True"
    return pl.DataFrame(schema=MEMBERS), 0, False


def _save(walk: _Walk, table: pl.DataFrame, rows: list[tuple[int, int, int]], start: int, done: bool) -> pl.DataFrame:
    table = pl.concat([table, pl.DataFrame(rows, MEMBERS, orient="row")])
    write_table(walk.saved, table, tar=json.dumps(asdict(walk.tar)), next=start, done=done)
    return table


def _members_of(walk: _Walk, out: Path, indexed: dict[int, IndexedTar]) -> pl.DataFrame:
    if indexed.get(walk.tar.tar) == walk.tar:
        rows = pl.scan_parquet(out, glob=False).filter(pl.col("tar") == walk.tar.tar)
        return rows.select(list(MEMBERS)).sort("offset").collect()
    return _read_saved(walk)[0]
