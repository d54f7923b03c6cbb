"""A mirror of the archive: a folder, an HTTP(S) address or a bucket, read through obstore.

    mirror = open_mirror("https://s3.amazonaws.com/google-landmark")
    mirror.tar_count("train")                       # 500
    for chunk in mirror.stream("train/images_000.tar"): ...
    mirror.range("train/images_000.tar", 0, 512)    # the first header

Proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`), credentials from the usual places (`AWS_*` and the AWS
files, `~/.netrc`, `user:password@` in an address). They stay inside `Mirror`: `Mirror.place` never holds any.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
import obstore.store

from landmarks.support.addresses import parse_address, place_of
from landmarks.support.disk import remove_file
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import cache_folder, read_record, write_record, written_whole
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

MOST_TARS = 1000
"""`images_NNN.tar` has three digits."""

_PAGES = (b"<!doctype html", b"<html")

_CHUNK_BYTES = 1 << 20
_REMOTE_CHUNK_BYTES = 1 << 16  # what arrived of a smaller chunk is lost when a connection breaks
_MOST_SMALL_FILE = 1 << 20


def open_mirror(place: str | Path | Mirror, *, patience: Patience | None = None) -> Mirror:
    """Open a mirror at a path or at an `http(s)://`, `s3://`, `gs://` or `az://` address; nothing is asked for yet.

    Raises:
        LandmarksError: there is no such folder.
        UsageError: the address has a scheme that is not known, or is a signed one.
    """
    if isinstance(place, Mirror):
        return place
    address = parse_address(str(place)) if "://" in str(place) else None
    if address is not None and address.query:
        raise UsageError(
            f"a signed address, one with a query behind a ?, is of no use for a whole mirror: {address.bare}",
            way_out="take s3://, gs:// or az:// with credentials in the environment (AZURE_STORAGE_SAS_TOKEN=… for a"
            " signature of Azure's), or copy the files into a folder",
        )
    return Mirror(str(place), patience or Patience())


def tar_path(set: str, tar: int) -> str:
    """Return where TAR number `tar` of a set lies in a mirror."""
    return f"{set}/images_{tar:03d}.tar"


@dataclass(frozen=True)
class Answer:
    """Bytes of a file, with the size and the ETag that the whole file had when they were sent."""

    data: memoryview  # not copied: copying what obstore received costs more than asking for it
    size: int
    etag: str | None


class Mirror:
    """One mirror; its methods may be called from many threads, and it can be sent to another process."""

    def __init__(self, address: str, patience: Patience) -> None:
        self._address = address.rstrip("/") or "/"
        self._patience = patience
        self.place = place_of(self._address)
        self._store, self.root = open_store(self._address, patience)
        self.host = Host(self.place, patience, functools.partial(pause_asked, self._address, patience))
        self._md5: dict[str, list[str]] = {}
        self._pool = ThreadPoolExecutor(patience.connections, thread_name_prefix="request")

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_once, (self._address, self._patience)

    def __repr__(self) -> str:
        return f"Mirror({self.place!r})"

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
        """Say whether the mirror has the file."""
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
            RangesRefusedError: the mirror answers with the whole file, or compresses.
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
        """Begin `range` in one of the threads that all users of this mirror share."""
        return self._pool.submit(self.range, path, start, end)

    def ranges(self, path: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Return several ranges of a file, one request each, as many at once as the mirror's connections allow."""
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

    def tar_count(self, set: str) -> int:
        """Return how many TARs a set has: the first MD5 file that is absent after a success ends the list."""
        return len(self._md5_list(set))

    def md5(self, set: str, tar: int) -> str:
        """Return the published MD5 of TAR number `tar`, 32 lower-case hex digits."""
        if set in self._md5:
            return self._md5[set][tar]
        md5 = self._published_md5(set, tar)
        if md5 is None:
            raise AbsentError(f"{self._name(_md5_path(set, tar))} is not there")
        return md5

    def local(self, path: str) -> Path:
        """Return a file of the mirror as a local file: itself, or a copy that is kept and checked by size and ETag."""
        if self.root is not None:
            if not (self.root / path).is_file():
                raise AbsentError(f"{self._name(path)} is not there")
            return self.root / path
        size, etag = self.head(path)
        place = hashlib.blake2b(self.place.encode(), digest_size=8).hexdigest()
        copy = cache_folder() / "mirrors" / place / path
        seal = copy.with_name(copy.name + ".json")
        with contextlib.suppress(LandmarksError):
            known = read_record(seal)
            if copy.is_file() and (known.get("size"), known.get("etag")) == (size, etag) and etag:
                return copy
        remove_file(seal)
        with written_whole(copy, tidy=True) as aside, open(aside, "wb") as file:
            for number, chunk in enumerate(self.stream(path)):
                if number == 0 and chunk[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
                    raise MirrorError(
                        f"{self._name(path)}: a web page came instead of the file",
                        way_out="does the address lead to the mirror itself, and not to a page about it or a portal?",
                    )
                file.write(chunk)
        write_record(seal, {"place": self.place, "path": path, "size": size, "etag": etag}, verb="select")
        return copy

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
                    yield unpack.decompress(rest, _CHUNK_BYTES)
                    rest = unpack.unconsumed_tail
            yield unpack.flush()
        except (zlib.error, obstore.exceptions.BaseError, OSError) as error:
            raise MirrorError(f"{self._name(path)}: {reason_of(error)}") from error

    def _md5_list(self, set: str) -> list[str]:
        if set not in self._md5:
            self._md5[set] = self._read_md5_list(set)
        return self._md5[set]

    def _read_md5_list(self, set: str) -> list[str]:
        found: list[str] = []
        batch = 32  # as many at once; the TARs of a set are far more than one and at most a thousand
        for first in range(0, MOST_TARS, batch):
            tars = range(first, min(first + batch, MOST_TARS))
            for md5 in self._pool.map(functools.partial(self._published_md5, set), tars):
                if md5 is None and not found:
                    raise AbsentError(
                        f"{self.place} has no {_md5_path(set, 0)}",
                        way_out="is it a mirror of the archive, with md5sum/, metadata/ and the set's TARs?",
                    )
                if md5 is None:
                    return found
                found.append(md5)
        return found

    def _published_md5(self, set: str, tar: int) -> str | None:
        path = _md5_path(set, tar)
        try:
            text = self.read(path).decode("ascii", "replace")
        except AbsentError:
            return None
        except RefusedError:
            if tar > 0:  # a bucket that may not be listed answers so about absent files
                return None
            raise
        match = re.match(r"\\?([0-9a-fA-F]{32})\b", text.strip())
        if match is None:
            raise MirrorError(f"{self._name(path)} holds no MD5", received=repr(text[:40]))
        return match.group(1).lower()


@functools.lru_cache(maxsize=8)
def _opened_once(address: str, patience: Patience) -> Mirror:
    """Return the one mirror that all tasks sent to this process share, and with it the limit of connections."""
    return Mirror(address, patience)


def _md5_path(set: str, tar: int) -> str:
    return f"md5sum/{set}/md5.images_{tar:03d}.txt"


def _compressed(result: obstore.GetResult) -> str:
    return str(result.attributes.get("Content-Encoding", "")).replace("identity", "")
