"""Shards: uncompressed TARs of images, written once and read by position.

`tar` and WebDataset can read a shard. Here an image takes a single positioned read, because the manifest holds its
offset and length.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import IO, Self

from landmarks.dataset.manifest import Dataset
from landmarks.dataset.remote import RemoteImages
from landmarks.dataset.trust import open_plain
from landmarks.support.errors import LandmarksError
from landmarks.support.files import written_whole

MAX_OPEN_FILES = 64
"""The number of shards that a reader keeps open."""

_BLOCK = 512


class ShardWriter:
    """Writes one shard, which appears at `path` if the `with` block ends without an error.

    The bytes depend only on the images and their order: there are no times and no owners in them.

        with ShardWriter(path) as shard:
            offset, length = shard.add("3f8a…", jpeg)
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._position = 0
        self._ending = contextlib.ExitStack()
        self._file: IO[bytes]

    def __enter__(self) -> Self:
        aside = self._ending.enter_context(written_whole(self.path))
        self._file = self._ending.enter_context(open(aside, "wb"))
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self._ending.__exit__(*error)  # type: ignore[arg-type]
            return
        with self._ending:  # a full disk may be reported only now
            self._file.write(b"\0" * (2 * _BLOCK))  # the end of a TAR

    def add(self, id: str, data: bytes) -> tuple[int, int]:
        """Append an image as `<id>.jpg`; return the offset of its first byte in the shard, and its length."""
        if not id or any(character in id for character in "/\\\0\n"):
            raise LandmarksError("an id cannot be a member's name", received=repr(id), expected="no slashes")
        member = tarfile.TarInfo(f"{id}.jpg")
        member.size = len(data)
        header = member.tobuf(tarfile.PAX_FORMAT)
        padding = b"\0" * (-len(data) % _BLOCK)
        offset = self._position + len(header)
        for piece in (header, data, padding):
            self._file.write(piece)
        self._position = offset + len(data) + len(padding)
        return offset, len(data)


def is_shard(place: PurePath | str) -> bool:
    """Return whether a place in `images.parquet` is a TAR of images, and not an image imported by reference."""
    return PurePath(place).suffix.lower() == ".tar"


class ImageReader:
    """Reads the images of one dataset by position, from any number of threads at once."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()
        self.remote = RemoteImages(dataset) if dataset.address is not None else None

    def read_all(self, places: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
        """Yield the bytes at each of `places` (shard, offset, length); from an address all are requested at once."""
        return self.remote.read_all(places) if self.remote else (self.read(*place) for place in places)

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """Return the `length` bytes at `offset` of a shard, or of a file imported by reference."""
        if self.remote:
            return self.remote.read(shard, offset, length)
        file = self._file(shard)  # this reference keeps the file open, even if another thread drops it meanwhile
        data = file.read(length, offset)
        if file.is_image and file.size != length:
            raise LandmarksError(
                f"{self._dataset.path_of(shard)} was changed after it was imported",
                received=f"{file.size:,} bytes",
                expected=f"{length:,}",
                way_out="put the earlier file back, or import the images anew",
            )
        if len(data) != length:
            raise LandmarksError(
                f"{self._dataset.path_of(shard)} is shorter than the manifest says",
                received=f"{len(data)} bytes at {offset}",
                expected=length,
                way_out="make the dataset again",
            )
        return data

    def _file(self, shard: str) -> _OpenFile:
        with self._lock:
            file = self._open.get(shard)
            if file is None:
                within = self._dataset.folder if self._dataset.images_in is None else None
                path = self._dataset.path_of(shard)
                if within is None and not path.exists():
                    raise LandmarksError(
                        f"{path} is not there any more",
                        way_out=f"the images of {self._dataset.folder} are read where they lay when they were imported:"
                        " put them back, or import them anew",
                    )
                file = self._open[shard] = _OpenFile(path, within)
                if len(self._open) > MAX_OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return file


class _OpenFile:
    """A file that is closed with its last reference: a thread may still read it after another has dropped it."""

    def __init__(self, path: Path, within: Path | None) -> None:
        self._lock = threading.Lock()
        self._file = open_plain(path, within)  # closed in __del__
        self.is_image = not is_shard(path)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, length: int, offset: int) -> bytes:
        """Return up to `length` bytes at `offset`; safe in several threads."""
        if sys.platform != "win32" and hasattr(os, "pread"):
            return os.pread(self._file.fileno(), length, offset)
        with self._lock:  # Windows has no positioned reads: one thread at a time seeks and reads
            self._file.seek(offset)
            return self._file.read(length)

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # missing if it could not be opened
            self._file.close()
