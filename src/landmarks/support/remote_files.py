"""Reading the files below one address (a folder, a web server or a bucket) through obstore, with retries.

Credentials come from the environment (`AWS_*` and the AWS files, `~/.netrc`, `user:password@` in an address) and stay
inside `RemoteFiles`: `RemoteFiles.place` never holds any.
"""

from __future__ import annotations

import functools
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore

from landmarks.support.places import place_of
from landmarks.support.requests import (
    AbsentError,
    BrokenAnswerError,
    Host,
    MirrorError,
    Patience,
    RangesRefusedError,
    RefusedError,
    open_store,
    reason_of,
    requested_pause,
)

_CHUNK_BYTES = 1 << 20
_REMOTE_CHUNK_BYTES = 1 << 16  # a broken connection loses the chunk that was arriving
_MOST_SMALL_FILE = 1 << 20
MAX_FILE_BYTES = 1 << 40
"""A file of more bytes is not read; the whole archive has half as many."""

_WEB_PAGES = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class RangeResponse:
    """A range of a file's bytes, with the size and the ETag of the whole file."""

    data: memoryview  # not copied: copying what obstore received costs more than the request
    size: int
    etag: str | None


class RemoteFiles:
    """The files below one address, for any number of threads; can be pickled to other processes."""

    def __init__(self, address: str, patience: Patience) -> None:
        self._address = address.rstrip("/") or "/"
        self._patience = patience
        self.place = place_of(self._address)
        self._store, self.root = open_store(self._address, patience)
        self.host = Host(self.place, patience, functools.partial(requested_pause, self._address, patience))
        self._pool = ThreadPoolExecutor(patience.connections, thread_name_prefix="request")

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_once, (type(self), self._address, self._patience)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.place!r})"

    def head(self, path: str) -> tuple[int, str | None]:
        """Return a file's size in bytes and its ETag, if it has one."""
        self._require_plain(path)
        try:
            meta = self.host.send(path, lambda: obstore.head(self._store, path))
        except (AbsentError, RefusedError):
            raise
        except MirrorError:  # some servers support only GET
            response = self.range(path, 0, 1)
            size, etag = response.size, response.etag
        else:
            size, etag = meta["size"], meta["e_tag"]
        self._require_possible(path, size)
        return size, etag

    def exists(self, path: str) -> bool:
        """Return whether the file exists."""
        try:
            self.head(path)
        except AbsentError:
            return False
        return True

    def read(self, path: str, most_bytes: int = _MOST_SMALL_FILE) -> bytes:
        """Return the bytes of a small file; raise `MirrorError`, without reading it, if it exceeds `most_bytes`."""

        def request() -> bytes:
            result = obstore.get(self._store, path)
            if result.meta["size"] > most_bytes:
                raise MirrorError(
                    f"{self._name(path)} is too large",
                    received=f"{result.meta['size']} bytes",
                    expected=f"at most {most_bytes}",
                )
            return bytes(_body(result, result.meta["size"]))

        self._require_plain(path)
        data = self.host.send(path, request)
        self._refuse_web_page(path, data)
        return data

    def range(self, path: str, start: int, end: int) -> RangeResponse:
        """Return the bytes of a file from `start` to `end`, exclusive.

        Raises:
            RangesRefusedError: the server answers with the whole file, or compresses.
        """

        def request() -> RangeResponse:
            result = obstore.get(self._store, path, options={"range": (start, end)})
            if _compressed(result):
                raise RangesRefusedError(f"{self._name(path)}: the mirror compresses")
            if result.range != (start, min(end, result.meta["size"])):
                raise BrokenAnswerError(f"bytes {result.range} were sent for {(start, end)}")
            length = result.range[1] - result.range[0]
            data = memoryview(result.bytes()) if self.root is not None else _body(result, length)
            if len(data) != length:
                raise BrokenAnswerError(f"{len(data)} bytes were sent for {(start, end)}")
            return RangeResponse(data, result.meta["size"], result.meta["e_tag"])

        self._require_plain(path)
        return self.host.send(path, request)

    def ask(self, path: str, start: int, end: int) -> Future[RangeResponse]:
        """Start `range` in one of the threads that all users of this object share."""
        return self._pool.submit(self.range, path, start, end)

    def ranges(self, path: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Return several ranges of a file, one request each, as many at once as there may be connections."""
        responses = [self.ask(path, start, end) for start, end in zip(starts, ends, strict=True)]
        return [bytes(response.result().data) for response in responses]

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield all bytes of a file; after a dropped connection, reading resumes where it broke.

        Raises:
            MirrorError: it is a web page, the file changed meanwhile, or all tries are spent.
        """
        self._require_plain(path)
        chunks = self._read_in_chunks(self.root / path) if self.root is not None else self._request_in_chunks(path)
        first = next(chunks, b"")
        self._refuse_web_page(path, first)
        yield first
        yield from chunks

    def _refuse_web_page(self, path: str, data: bytes) -> None:
        """Raise `MirrorError` if a file begins like HTML: servers answer with a page for what they do not have."""
        if data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGES):
            raise MirrorError(
                f"{self._name(path)}: a web page came instead of the file",
                way_out="does the address lead to the files themselves, and not to a page about them or a portal?",
            )

    def _request_in_chunks(self, path: str) -> Iterator[bytes]:
        position, failures = 0, 0
        size: int | None = None
        etag: str | None = None
        while size is None or position < size:
            started = time.monotonic()
            chunks, new_size, new_etag, encoding = self._open(path, position)
            if position and (new_size, new_etag) != (size, etag):
                raise MirrorError(f"{self._name(path)} changed while it was being read")
            size, etag = new_size, new_etag
            self._require_possible(path, size)
            if encoding:
                yield from self._decompress(path, chunks)
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

    def _require_possible(self, path: str, size: int) -> None:
        """Raise `MirrorError` for a size that no file has: its end would never come."""
        if size > MAX_FILE_BYTES:
            received, expected = f"{size:,} bytes", f"at most {MAX_FILE_BYTES:,}"
            raise MirrorError(f"{self._name(path)} claims an impossible size", received=received, expected=expected)

    def _require_plain(self, path: str) -> None:
        """Raise `MirrorError` for a pipe or a device in a local folder, as opening it or reading it need never end."""
        if self.root is None:
            return
        try:
            mode = (self.root / path).stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return  # whoever opens it says so
        except OSError as error:
            raise MirrorError(f"{self.root / path}: {error.strerror}") from error
        if not stat.S_ISREG(mode):
            raise MirrorError(f"{self.root / path} is no plain file")

    def _read_in_chunks(self, file: Path) -> Iterator[bytes]:
        """Yield a local file's bytes; obstore, which passes each chunk between threads, takes twice the time."""
        try:
            with open(file, "rb", buffering=0) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError as error:
            raise AbsentError(f"{file} is not there") from error
        except OSError as error:
            raise MirrorError(f"{file}: {error.strerror}") from error

    def _open(self, path: str, position: int) -> tuple[Iterator[bytes], int, str | None, str]:
        def request() -> tuple[Iterator[bytes], int, str | None, str]:
            result = obstore.get(self._store, path, options={"range": {"offset": position}} if position else None)
            chunks = result.stream(min_chunk_size=_CHUNK_BYTES if self.root else _REMOTE_CHUNK_BYTES)
            return chunks, result.meta["size"], result.meta["e_tag"], _compressed(result)

        return self.host.send(path, request)

    def _decompress(self, path: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            for chunk in chunks:
                rest = bytes(chunk)
                while rest:  # in pieces, so that a small response cannot take all memory
                    if decompressor.eof:  # a file may be compressed in several consecutive parts
                        decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
                    yield decompressor.decompress(rest, _CHUNK_BYTES)
                    rest = decompressor.unused_data.lstrip(b"\0") if decompressor.eof else decompressor.unconsumed_tail
            yield decompressor.flush()
            if not decompressor.eof:
                raise MirrorError(f"{self._name(path)}: it was packed for the way, and its end is missing")
        except (zlib.error, obstore.exceptions.BaseError, OSError) as error:
            raise MirrorError(f"{self._name(path)}: {reason_of(error)}") from error


@functools.lru_cache(maxsize=8)
def _open_once(kind: type[RemoteFiles], address: str, patience: Patience) -> RemoteFiles:
    """Return the one object that all tasks in this process share, so that they share the limit of connections."""
    return kind(address, patience)


def _body(result: obstore.GetResult, most_bytes: int) -> memoryview:
    """Return the body of a response; raise `BrokenAnswerError` when more than `most_bytes` of it have come.

    `GetResult.bytes` would hold in memory whatever a server sends, although its headers announce less.
    """
    chunks: list[memoryview] = []
    received = 0
    for chunk in result.stream(min_chunk_size=most_bytes + 1):  # all in one, as joining costs more than the request
        chunks.append(memoryview(chunk))
        received += len(chunk)
        if received > most_bytes:
            raise BrokenAnswerError(f"{received} bytes were sent in place of {most_bytes}")
    return chunks[0] if len(chunks) == 1 else memoryview(b"".join(chunks))


def _compressed(result: obstore.GetResult) -> str:
    """Return the content encoding of a response, empty if it is not compressed."""
    return str(result.attributes.get("Content-Encoding", "")).replace("identity", "")
