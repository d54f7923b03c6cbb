"""The byte index of a whole mirror, made by hopping from header to header: half a kilobyte per image travels."""

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
from landmarks.archive.tar import MOST_BYTES_OF_A_IMAGE, Member, TruncatedError, members
from landmarks.archive.transfer import ChangedError
from landmarks.support.console import note, progress
from landmarks.support.disk import remove_folder
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import held
from landmarks.support.places import Place
from landmarks.support.requests import MirrorError, Patience
from landmarks.support.tables import read_metadata, read_table, write_table

MEMBERS_BETWEEN_SAVES = 1000
"""How many headers of a TAR are read before its table so far is saved."""

Count = Callable[[int, int], None]
"""`count(bytes of the TAR passed, headers read)`; it may raise to end the work."""


@dataclass(frozen=True)
class _Hop:
    """One TAR to be walked, and where what is known of it is kept."""

    mirror: Mirror
    set: str
    tar: IndexedTar
    part: Path

    @property
    def path(self) -> str:
        return tar_path(self.set, self.tar.tar)


def locate(mirror: Place | Mirror, out: Place, *, set: str = "train", workers: int = 64) -> TarIndex:
    """Make the byte index of a set and write it to `out`; `workers` TARs are walked at once.

    Can be stopped at any time and run again: what has been walked is kept beside `out` until the index is written, and
    TARs of an earlier index are taken from it while their size and ETag are the same. A TAR that cannot be walked is
    left out and named; `TarIndex.unindexed` lists those.

    Raises:
        LandmarksError: the mirror has no such set, or not one TAR could be walked.
        UsageError: `out` is the index of another set.
        BusyError: another process makes the same index.
    """
    if workers < 1:
        raise UsageError("--workers must be at least 1", received=workers)
    usual = Patience()
    patience = replace(usual, connections=max(workers, usual.connections))
    mirror, out = open_mirror(mirror, patience=patience), Path(out)
    if out.is_dir():
        raise UsageError(f"{out} is a folder", expected="the name of a file, such as index.parquet")
    earlier = _earlier(out)
    if earlier is not None and earlier.set != set:
        raise UsageError(
            f"{out} is the index of another set", received=f"--set {set}", expected=f"--set {earlier.set}",
            way_out="choose another name, or remove it first",
        )  # fmt: skip
    aside = out.with_name(f".{out.name}.parts")
    with held(aside):
        count = mirror.tar_count(set)
        known = None if earlier is None or earlier.mirror != mirror.place else dict(earlier.tars)
        with ThreadPoolExecutor(min(workers, 32)) as pool:
            hops = list(pool.map(lambda tar: _described(mirror, set, tar, aside), range(count)))
        whole = [hop for hop in hops if hop is not None]
        if known is not None and len(whole) == count and all(known.get(hop.tar.tar) == hop.tar for hop in whole):
            note(f"{out} is complete already")
            index = read_index(out)
        else:
            index = _made(mirror, out, set=set, count=count, hops=whole, known=known or {}, workers=workers)
    with contextlib.suppress(LandmarksError):  # a folder that stays behind harms nothing, and the next call removes it
        remove_folder(aside)
    return index


def _made(
    mirror: Mirror, out: Path, *, set: str, count: int, hops: list[_Hop], known: dict[int, IndexedTar], workers: int
) -> TarIndex:
    """Walk what is not known yet and write the index of all that could be walked."""
    failures = _walk_all(hops, workers, known)
    done = {hop.tar.tar: hop for hop in hops if hop.tar.tar not in failures}
    if not done:
        raise LandmarksError(f"no TAR of {mirror.place}/{set} could be walked", way_out="see the lines above")
    tables = {tar: _members_of(hop, out, known) for tar, hop in done.items()}
    tars = {tar: hop.tar for tar, hop in done.items()}
    return write_index(out, tables, tars, set=set, mirror=mirror.place, count=count)


def hop(mirror: Mirror, path: str, size: int, etag: str | None, start: int = 0) -> Iterator[Member]:
    """Yield a TAR's members from the header at `start`, moving nothing but headers: one request for each.

    Raises:
        ChangedError: the TAR became another one on the way.
        HeaderError, TruncatedError: see `tarheader.members`.
    """

    def read(position: int, length: int) -> bytes:
        if position + length > size:
            raise TruncatedError(f"{mirror.place}/{path} ends at byte {size}, in the middle")
        answer = mirror.range(path, position, position + length)
        if answer.size != size or answer.etag != etag:
            raise ChangedError(f"{mirror.place}/{path} changed while it was being walked")
        return bytes(answer.data)

    return members(read, start=start)


def _described(mirror: Mirror, set: str, tar: int, aside: Path) -> _Hop | None:
    try:
        size, etag = mirror.head(tar_path(set, tar))
    except MirrorError as error:
        note(f"{tar_path(set, tar)} is not indexed: {error}")
        return None
    part = aside / f"images_{tar:03d}.parquet"
    return _Hop(mirror, set, IndexedTar(tar, size, etag, mirror.md5(set, tar)), part)


def _earlier(out: Path) -> TarIndex | None:
    """Return the index that is there already; None where there is none that can be read."""
    with contextlib.suppress(LandmarksError):
        return read_index(out)
    return None


def _walk_all(hops: list[_Hop], workers: int, known: dict[int, IndexedTar]) -> dict[int, str]:
    """Walk every TAR that is not known yet; return TAR → why for those that failed."""
    failures: dict[int, str] = {}
    to_do = [hop for hop in hops if known.get(hop.tar.tar) != hop.tar]
    lock, stopped = threading.Lock(), threading.Event()
    headers = 0
    with progress("locating", total=max(1, sum(hop.tar.size for hop in to_do))) as advance:

        def count(passed: int, read: int) -> None:
            nonlocal headers
            if stopped.is_set():
                raise EndedError("stopped")
            with lock:
                headers += read
                advance(passed, f"{headers:,} headers")

        with ThreadPoolExecutor(workers, thread_name_prefix="hop") as pool:
            futures = {pool.submit(_walk, one, count): one for one in to_do}
            try:
                for future in as_completed(futures):
                    try:
                        future.result()
                    except MirrorError as error:
                        tar = futures[future]
                        failures[tar.tar.tar] = str(error)
                        note(f"{tar.path} is not indexed: {error}")
            except BaseException:
                stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return failures


def _walk(hop_: _Hop, count: Count) -> None:
    """Walk one TAR from where an earlier run left it to its end, saving now and then."""
    table, start, done = _saved(hop_)
    count(start, 0)
    if done:
        return
    rows: list[tuple[int, int, int]] = []
    for member in hop(hop_.mirror, hop_.path, hop_.tar.size, hop_.tar.etag, start):
        if member.id is not None and member.size <= MOST_BYTES_OF_A_IMAGE:
            rows.append((int(member.id, 16), member.offset, member.size))
        count(member.next - start, 1)
        start = member.next
        if len(rows) >= MEMBERS_BETWEEN_SAVES:
            table, rows = _save(hop_, table, rows, start, False), []
    _save(hop_, table, rows, start, True)


def _saved(hop_: _Hop) -> tuple[pl.DataFrame, int, bool]:
    with contextlib.suppress(LandmarksError):
        metadata = read_metadata(hop_.part)
        if metadata.get("tar") == json.dumps(asdict(hop_.tar)):
            return read_table(hop_.part, MEMBERS), int(metadata["next"]), metadata["done"] == "True"
    return pl.DataFrame(schema=MEMBERS), 0, False


def _save(hop_: _Hop, table: pl.DataFrame, rows: list[tuple[int, int, int]], start: int, done: bool) -> pl.DataFrame:
    table = pl.concat([table, pl.DataFrame(rows, MEMBERS, orient="row")])
    write_table(hop_.part, table, tar=json.dumps(asdict(hop_.tar)), next=start, done=done)
    return table


def _members_of(hop_: _Hop, out: Path, known: dict[int, IndexedTar]) -> pl.DataFrame:
    if known.get(hop_.tar.tar) == hop_.tar:
        rows = pl.scan_parquet(out, glob=False).filter(pl.col("tar") == hop_.tar.tar)
        return rows.select(list(MEMBERS)).sort("offset").collect()
    return _saved(hop_)[0]
