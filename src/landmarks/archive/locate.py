"""Make the byte index of a mirror by requesting nothing but the TARs' headers: half a kilobyte per image."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import polars as pl

from landmarks.archive.executors import EndedError
from landmarks.archive.index import MEMBERS, IndexedTar, TarIndex, read_index, write_index
from landmarks.archive.mirror import Mirror, open_mirror, tar_path
from landmarks.archive.tar import MAX_IMAGE_BYTES, Member, TruncatedError, members
from landmarks.archive.transfer import ChangedError
from landmarks.support.console import note, progress
from landmarks.support.disk import remove_folder
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.files import held
from landmarks.support.places import Place
from landmarks.support.requests import MirrorError, Patience
from landmarks.support.tables import read_metadata, read_table, write_table

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
