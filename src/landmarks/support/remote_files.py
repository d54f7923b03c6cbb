"""The files below one address: a folder, a web server or a bucket, read through obstore with patience.

Credentials come from the environment (`AWS_*` and the AWS files, `~/.netrc`, `user:password@` in an address) and stay
inside `Files`: `Files.place` never holds any.
"""

from __future__ import annotations

import functools
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore

from landmarks.support.addresses import place_of
from landmarks.support.requests import (
    AbsentError,
    BrokenAnswerError,
    Host,
    MirrorError,
    Patience,
    RangesRefusedError,
    RefusedError,
    open_store,
    pause_asked,
    reason_of,
)

_CHUNK_BYTES = 1 << 20
_REMOTE_CHUNK_BYTES = 1 << 16  # what arrived of a smaller chunk is lost when a connection breaks
_MOST_SMALL_FILE = 1 << 20


@dataclass(frozen=True)
class Answer:
    """Bytes of a file, with the size and the ETag that the whole file had when they were sent."""

    data: memoryview  # not copied: copying what obstore received costs more than asking for it
    size: int
    etag: str | None


class Files:
    """The files below one address; asked from any number of threads, and sent to other processes whole."""

    def __init__(self, address: str, patience: Patience) -> None:
        self._address = address.rstrip("/") or "/"
        self._patience = patience
        self.place = place_of(self._address)
        self._store, self.root = open_store(self._address, patience)
        self.host = Host(self.place, patience, functools.partial(pause_asked, self._address, patience))
        self._pool = ThreadPoolExecutor(patience.connections, thread_name_prefix="request")

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_once, (type(self), self._address, self._patience)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.place!r})"

    def head(self, path: str) -> tuple[int, str | None]:
        """Return a file's size in bytes and its ETag, if it has one."""
        try:
            meta = self.host.asked(path, lambda: obstore.head(self._store, path))
        except (AbsentError, RefusedError):
            raise
        except MirrorError:  # some servers know GET alone
            answer = self.range(path, 0, 1)
            return answer.size, answer.etag
        return meta["size"], meta["e_tag"]

    def exists(self, path: str) -> bool:
        """Return whether there is such a file."""
        try:
            self.head(path)
        except AbsentError:
            return False
        return True

    def read(self, path: str, most_bytes: int = _MOST_SMALL_FILE) -> bytes:
        """Return a small file's bytes; one of more than `most_bytes` is an error before it is read."""

        def request() -> bytes:
            result = obstore.get(self._store, path)
            if result.meta["size"] > most_bytes:
                raise MirrorError(
                    f"{self._name(path)} is too large",
                    received=f"{result.meta['size']} bytes",
                    expected=f"at most {most_bytes}",
                )
            return bytes(result.bytes())

        return self.host.asked(path, request)

    def range(self, path: str, start: int, end: int) -> Answer:
        """Return the bytes from `start` up to `end` (left out) of a file.

        Raises:
            RangesRefusedError: the server answers with the whole file, or compresses.
        """

        def request() -> Answer:
            result = obstore.get(self._store, path, options={"range": (start, end)})
            if _compressed(result):
                raise RangesRefusedError(f"{self._name(path)}: the mirror compresses")
            if result.range != (start, min(end, result.meta["size"])):
                raise BrokenAnswerError(f"bytes {result.range} were sent for {(start, end)}")
            data = memoryview(result.bytes())
            if len(data) != result.range[1] - result.range[0]:
                raise BrokenAnswerError(f"{len(data)} bytes were sent for {(start, end)}")
            return Answer(data, result.meta["size"], result.meta["e_tag"])

        return self.host.asked(path, request)

    def ask(self, path: str, start: int, end: int) -> Future[Answer]:
        """Begin `range` in one of the threads that all users of this address share."""
        return self._pool.submit(self.range, path, start, end)

    def ranges(self, path: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Return several ranges of a file, one request each, as many at once as its connections allow."""
        under_way = [self.ask(path, start, end) for start, end in zip(starts, ends, strict=True)]
        return [bytes(answer.result().data) for answer in under_way]

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes from first to last; a dropped connection is taken up again where it broke.

        Raises:
            MirrorError: the file changed meanwhile, or all patience is spent.
        """
        if self.root is not None:
            yield from self._read_in_chunks(self.root / path)
            return
        position, failures = 0, 0
        size: int | None = None
        etag: str | None = None
        while size is None or position < size:
            started = time.monotonic()
            chunks, now_size, now_etag, packed = self._opened(path, position)
            if position and (now_size, now_etag) != (size, etag):
                raise MirrorError(f"{self._name(path)} changed while it was being read")
            size, etag = now_size, now_etag
            if packed:
                yield from self._unpacked(path, chunks)
                return
            try:
                for chunk in chunks:
                    position, failures = position + len(chunk), 0
                    yield bytes(chunk)
                if position < size:
                    raise BrokenAnswerError(f"{position} of {size} bytes were sent")
            except (obstore.exceptions.BaseError, OSError, BrokenAnswerError) as error:
                failures += 1
                self.host.wait(path, error, failures, started)

    def _name(self, path: str) -> str:
        return f"{self.place}/{path}"

    def _read_in_chunks(self, file: Path) -> Iterator[bytes]:
        """Yield a local file's bytes; obstore, which hands each chunk from thread to thread, needs twice the time."""
        try:
            with open(file, "rb", buffering=0) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError as error:
            raise AbsentError(f"{file} is not there") from error
        except OSError as error:
            raise MirrorError(f"{file}: {error.strerror}") from error

    def _opened(self, path: str, position: int) -> tuple[Iterator[bytes], int, str | None, str]:
        def request() -> tuple[Iterator[bytes], int, str | None, str]:
            result = obstore.get(self._store, path, options={"range": {"offset": position}} if position else None)
            chunks = result.stream(min_chunk_size=_CHUNK_BYTES if self.root else _REMOTE_CHUNK_BYTES)
            return chunks, result.meta["size"], result.meta["e_tag"], _compressed(result)

        return self.host.asked(path, request)

    def _unpacked(self, path: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            for chunk in chunks:
                rest = bytes(chunk)
                while rest:  # in pieces, so that a small answer cannot claim all memory
                    if unpack.eof:  # a file may be packed in several parts, one behind the other
                        unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
                    yield unpack.decompress(rest, _CHUNK_BYTES)
                    rest = unpack.unused_data.lstrip(b"\0") if unpack.eof else unpack.unconsumed_tail
            yield unpack.flush()
            if not unpack.eof:
                raise MirrorError(f"{self._name(path)}: it was packed for the way, and its end is missing")
        except (zlib.error, obstore.exceptions.BaseError, OSError) as error:
            raise MirrorError(f"{self._name(path)}: {reason_of(error)}") from error


@functools.lru_cache(maxsize=8)
def _opened_once(kind: type[Files], address: str, patience: Patience) -> Files:
    """Return the one object that all tasks sent to this process share, and with it the limit of connections."""
    return kind(address, patience)


def _compressed(result: obstore.GetResult) -> str:
    return str(result.attributes.get("Content-Encoding", "")).replace("identity", "")
