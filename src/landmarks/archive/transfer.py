"""Transfer images from a TAR: in one pass over the whole TAR, or by byte ranges; always in the TAR's order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from landmarks.archive.mirror import Mirror
from landmarks.archive.tar import BLOCK, MAX_IMAGE_BYTES, HeaderError, TruncatedError, image_id, members, parse_header
from landmarks.support.remote_files import RangeResponse
from landmarks.support.requests import MirrorError

Report = Callable[[int, int], None]
"""`report(bytes, images)` is called with what has just been done; it may raise to end the work."""


MAX_OTHER_MEMBERS = 100_000
"""The most names of other members that are remembered; the archive's TARs have none but their folders."""


class WrongMd5Error(MirrorError):
    """A TAR arrived in full, but is not the published one."""


class ChangedError(MirrorError):
    """A TAR is not the one that was indexed."""


@dataclass(frozen=True)
class FetchedImage:
    """A wanted image's bytes; when these are not available, `data` is None and `why` is the reason."""

    id: str
    data: bytes | None
    why: str = ""


@dataclass
class Contents:
    """What one pass over a TAR has found.

    That is its images' ids, offsets and sizes, the positions of damaged headers, the names of `other_members`, and
    where it ends if that is too early.
    """

    ids: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    other_members: list[str] = field(default_factory=list)
    truncated: str = ""


class ForwardReader:
    """Read parts of a stream of chunks, forward only, while computing the MD5 of all of it."""

    def __init__(self, chunks: Iterator[bytes], report: Report) -> None:
        self._chunks = chunks
        self._report = report
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._chunk = b""
        self._start = 0  # position of the chunk in the stream

    def __call__(self, position: int, length: int) -> bytes:
        """Return `length` bytes at `position`, fewer at the end of the stream; earlier bytes are gone."""
        pieces: list[bytes] = []
        while length > 0:
            end = self._start + len(self._chunk)
            if position < end:
                first = position - self._start
                piece = self._chunk[first : first + length]
                pieces.append(piece)
                position, length = position + len(piece), length - len(piece)
            elif not self._advance():
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def finish(self) -> str:
        """Read to the end and return the MD5 of everything, 32 hex digits."""
        while self._advance():
            pass
        return self._md5.hexdigest()

    def _advance(self) -> bool:
        chunk = next(self._chunks, None)  # an empty one is not the end: what was packed is unpacked piece by piece
        self._start += len(self._chunk)
        self._chunk = chunk or b""
        self._md5.update(self._chunk)
        self._report(len(self._chunk), 0)
        return chunk is not None


def stream_images(
    mirror: Mirror, path: str, *, md5: str, wanted: Callable[[str], bool], contents: Contents, report: Report
) -> Iterator[FetchedImage]:
    """Yield the wanted images of a TAR in one pass, and check the TAR's MD5 at the end.

    With the right MD5, a TAR that is truncated was published so: what it holds is all there is. The caller must discard
    all images when this raises. `contents` is filled on the way.

    Raises:
        WrongMd5Error: the TAR is not the published one; known only at the end.
        TruncatedError: the TAR ends in the middle, and is not the published one.
        MirrorError: the mirror failed too often.
    """
    reader, too_short = ForwardReader(mirror.stream(path), report), None
    try:
        for member in members(reader, damaged=contents.damaged):
            if member.id is None:
                if len(contents.other_members) < MAX_OTHER_MEMBERS:
                    contents.other_members.append(member.name[:100])
                continue
            contents.ids.append(member.id)
            contents.offsets.append(member.offset)
            contents.sizes.append(member.size)
            if wanted(member.id):
                if member.size > MAX_IMAGE_BYTES:
                    yield FetchedImage(member.id, None, f"claims {member.size} bytes")
                else:
                    yield FetchedImage(member.id, reader(member.offset, member.size))
    except TruncatedError as error:
        too_short, contents.truncated = error, str(error)
    received = reader.finish()
    if received != md5:
        if too_short is not None:
            raise too_short
        raise WrongMd5Error(f"{mirror.place}/{path} has a wrong MD5", received=received, expected=md5)


def request_images(
    mirror: Mirror,
    path: str,
    *,
    places: Places,
    spans: Sequence[Span],
    is_indexed_tar: Callable[[RangeResponse], bool],
    report: Report,
) -> Iterator[FetchedImage]:
    """Yield the images at `places` of a TAR, fetched by the byte ranges `spans`, with some requests sent ahead.

    Every image is read with the header before it, which must be valid and have the image's id and length.
    `is_indexed_tar` tells whether an answer comes from the TAR that was indexed.

    Raises:
        ChangedError: the TAR is another one, or there is something else in an image's place.
        RangesRefusedError, MirrorError: see `Mirror.range`.
    """
    ahead = max(2, mirror.host.patience.connections // 4)
    pending: deque[tuple[Span, Future[RangeResponse]]] = deque()
    waiting = iter(spans)
    try:
        while True:
            for span in islice(waiting, ahead - len(pending)):
                pending.append((span, mirror.ask(path, span.start, span.end)))
            if not pending:
                break
            span, request = pending.popleft()
            answer = request.result()
            if not is_indexed_tar(answer):
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
    short_id = image_id(header.name)  # None when the full name is in an extra header before this one
    if header.size != length or short_id not in (id, None):
        raise ChangedError(f"{where}: {id} is not where the index says")
    return FetchedImage(id, bytes(data[start : start + length]))


def membership_test(sorted_ids: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> Callable[[str], bool]:
    """Return a function that tells whether an id (16 hex digits) is one of `sorted_ids` (as integers)."""

    def is_member(id: str) -> bool:
        number = np.uint64(int(id, 16))
        position = int(np.searchsorted(sorted_ids, number))
        return position < len(sorted_ids) and sorted_ids[position] == number

    return is_member


# ── Which byte ranges to request: neighbours are merged where the gap costs less than one more request ──────────────


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
