"""Images on their way out of a TAR: in one pass over all of it, or by byte ranges, always in the TAR's order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from landmarks.archive.index import Places, Span
from landmarks.archive.mirror import Mirror
from landmarks.archive.tar import BLOCK, MOST_BYTES_OF_A_IMAGE, HeaderError, image_id, members, parse_header
from landmarks.support.remote_files import Answer
from landmarks.support.requests import MirrorError

Report = Callable[[int, int], None]
"""`report(bytes, images)` is told what has just been done; it may raise to end the work."""


class WrongMd5Error(MirrorError):
    """A TAR arrived whole, but is not the published one."""


class ChangedError(MirrorError):
    """A TAR is not the one that the byte index describes."""


@dataclass(frozen=True)
class FetchedImage:
    """A wanted image's bytes; `data` is None when they cannot be had, and `why` says so."""

    id: str
    data: bytes | None
    why: str = ""


@dataclass
class Contents:
    """What one pass over a TAR has met: its images' places, damaged headers (bytes), and names that are none."""

    ids: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)


class ForwardReader:
    """Reads chosen places of a stream of chunks, forward only, while every byte goes through MD5."""

    def __init__(self, chunks: Iterator[bytes], report: Report) -> None:
        self._chunks = chunks
        self._report = report
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._chunk = b""
        self._start = 0  # where the chunk begins in the stream

    def __call__(self, position: int, length: int) -> bytes:
        """Return `length` bytes at `position`, fewer where the stream ends; earlier bytes are gone."""
        files: list[bytes] = []
        while length > 0:
            end = self._start + len(self._chunk)
            if position < end:
                first = position - self._start
                piece = self._chunk[first : first + length]
                files.append(piece)
                position, length = position + len(piece), length - len(piece)
            elif not self._advance():
                break
        return files[0] if len(files) == 1 else b"".join(files)

    def finish(self) -> str:
        """Read to the end and return the MD5 of everything, 32 hex digits."""
        while self._advance():
            pass
        return self._md5.hexdigest()

    def _advance(self) -> bool:
        chunk = next(self._chunks, b"")
        self._start += len(self._chunk)
        self._chunk = chunk
        self._md5.update(chunk)
        self._report(len(chunk), 0)
        return bool(chunk)


def streamed(
    mirror: Mirror, path: str, *, md5: str, wanted: Callable[[str], bool], contents: Contents, report: Report
) -> Iterator[FetchedImage]:
    """Yield the wanted images of a TAR in one pass; the last step checks the TAR's MD5.

    Whoever keeps what is yielded must drop it again when this raises. `contents` is filled on the way.

    Raises:
        WrongMd5Error: only known at the end.
        TruncatedError: the TAR ends in the middle.
        MirrorError: the mirror's patience is spent.
    """
    reader = ForwardReader(mirror.stream(path), report)
    for member in members(reader, damaged=contents.damaged):
        if member.id is None:
            contents.strange.append(member.name[:100])
            continue
        contents.ids.append(member.id)
        contents.offsets.append(member.offset)
        contents.sizes.append(member.size)
        if wanted(member.id):
            if member.size > MOST_BYTES_OF_A_IMAGE:
                yield FetchedImage(member.id, None, f"claims {member.size} bytes")
            else:
                yield FetchedImage(member.id, reader(member.offset, member.size))
    received = reader.finish()
    if received != md5:
        raise WrongMd5Error(f"{mirror.place}/{path} has a wrong MD5", received=received, expected=md5)


def ranged(
    mirror: Mirror, path: str, *, places: Places, spans: Sequence[Span], same: Callable[[Answer], bool], report: Report
) -> Iterator[FetchedImage]:
    """Yield the images at `places` of a TAR, fetched as `spans`; some requests are always under way ahead.

    Every image is read with the header before it, which must be sound and carry its id and length. `same` says
    whether an answer comes from the TAR that was indexed.

    Raises:
        ChangedError: the TAR is another one, or something else stands where an image should.
        RangesRefusedError, MirrorError: see `Mirror.range`.
    """
    ahead = max(2, mirror.host.patience.connections // 4)
    pending: deque[tuple[Span, Future[Answer]]] = deque()
    waiting = iter(spans)
    try:
        while True:
            for span in islice(waiting, ahead - len(pending)):
                pending.append((span, mirror.ask(path, span.start, span.end)))
            if not pending:
                break
            span, request = pending.popleft()
            answer = request.result()
            if not same(answer):
                raise ChangedError(f"{mirror.place}/{path} is not the file that was indexed")
            report(len(answer.data), 0)
            for row in range(span.first, span.last):
                yield _image_at(row, places, span, answer.data, f"{mirror.place}/{path}")
    finally:
        for _, request in pending:
            request.cancel()


def _image_at(row: int, places: Places, span: Span, data: memoryview, where: str) -> FetchedImage:
    id, start, length = places.id_of(row), int(places.offsets[row]) - span.start, int(places.lengths[row])
    try:
        header = parse_header(bytes(data[start - BLOCK : start]))
    except HeaderError as error:
        raise ChangedError(f"{where}: the header of {id} is damaged") from error
    short = image_id(header.name)  # None when the whole name stands in an extra header further up
    if header.size != length or short not in (id, None):
        raise ChangedError(f"{where}: {id} is not where the index says")
    return FetchedImage(id, bytes(data[start : start + length]))


def is_among(sorted_ids: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> Callable[[str], bool]:
    """Return a quick test whether an id (16 hex digits) is among `sorted_ids` (as integers)."""

    def wanted(id: str) -> bool:
        number = np.uint64(int(id, 16))
        position = int(np.searchsorted(sorted_ids, number))
        return position < len(sorted_ids) and sorted_ids[position] == number

    return wanted
