"""Shards: uncompressed TARs of images, written once and read by position, from a disk or at an address.

`tar` and WebDataset can read a shard. Here an image takes a single positioned read, because the manifest holds its
offset and length.

    landmarks join s3://bucket/data -o data --by-reference

An image at an address is requested when it is needed, by its byte range, many at once. A share of the images is cached
on disk for later epochs. Which images are cached depends only on their shards and offsets: every epoch needs every
image once, so that caching the most recent ones would gain nothing, and processes need not coordinate.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tarfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePath
from typing import IO, Self

from landmarks.dataset.manifest import CORRECTIONS_FILE, SPLIT_FILE, Dataset, open_dataset
from landmarks.dataset.trust import open_plain
from landmarks.support.console import plural
from landmarks.support.disk import make_folder
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import MAX_RECORD_BYTES, written_whole
from landmarks.support.places import parse_address
from landmarks.support.remote_files import RemoteFiles
from landmarks.support.requests import AbsentError, Patience

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


def missing_files(dataset: Dataset, shards: Iterable[str]) -> tuple[list[Path], int]:
    """Return which of the `shards` of `dataset`, which may repeat, are not there, and the number of all of them.

    Folders are listed rather than asked for each file, of which there may be a million. Of a dataset at an address,
    nothing is known without asking: none is missing.
    """
    if dataset.address is not None:
        return [], 0
    paths = [dataset.path_of(shard) for shard in sorted({*shards})]
    listed: dict[Path, set[str]] = {}
    for folder in {path.parent for path in paths}:
        with contextlib.suppress(OSError):
            listed[folder] = set(os.listdir(folder))  # noqa: PTH208 (of paths, a million would be slow)
    # A name that is not listed may still be there: in other letters, on a disk that ignores case.
    return [path for path in paths if path.name not in listed.get(path.parent, ()) and not path.exists()], len(paths)


def require_images(dataset: Dataset, shards: Iterable[str], what: str, way_out: str = "") -> None:
    """Raise `LandmarksError`, with a `way_out`, if some of the `shards` that `what` is about to read are missing.

    Long work calls it first: otherwise a disk that is not mounted would be noticed only when its first image is read.
    """
    missing, count = missing_files(dataset, shards)
    if missing:
        files = plural(count, "shard" if is_shard(missing[0]) else "file")
        back = "put them back (is their disk mounted?), or make the dataset again"
        raise LandmarksError(
            f"{what} reads the images of {dataset.folder}, which are not there",
            received=f"{len(missing):,} of {files} missing, such as {missing[0]}",
            way_out="; ".join(filter(None, (back, way_out))),
        )


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


# ── A dataset at an address: its tables are in a local folder, its images in a bucket or on a web server ────────────


CACHE = "cache"
"""The folder of a dataset that holds cached images."""

CACHE_GB = 10.0
"""Gigabytes of images that are cached by default."""

AT_ONCE = 16
"""Number of images that one process requests at the same time."""

_TABLES = {"dataset.json": True, "images.parquet": True, "labels.parquet": True, "rejected.parquet": True}
_TABLES |= {SPLIT_FILE: False, CORRECTIONS_FILE: False}
"""File → whether a dataset must have it."""

ShardState = tuple[int, str | None]
"""Size and ETag of a shard, by which a changed one is noticed."""


def open_remote(address: str, folder: Path, *, cache_gb: float = CACHE_GB) -> Dataset:
    """Copy the tables of the dataset at `address` into `folder`, and return it with its images left at the address.

    Raises:
        UsageError: the address holds a signature, or its scheme is not supported.
        LandmarksError: there is no dataset, or its images lie elsewhere.
    """
    if parse_address(address).query:
        raise UsageError(
            "a signed address, one with a query behind a ?, ends before a training does",
            way_out="put credentials into the environment (AWS_…) or into ~/.netrc",
        )
    if cache_gb < 0:
        raise UsageError("--cache-gb cannot be negative", received=cache_gb)
    files = RemoteFiles(address, Patience())
    for name, needed in _TABLES.items():
        try:
            content = [files.read(name, MAX_RECORD_BYTES)] if name.endswith(".json") else files.stream(name)
            with written_whole(folder / name) as aside, open(aside, "wb") as file:
                file.writelines(content)
        except AbsentError as error:
            if needed:
                raise LandmarksError(f"there is no dataset at {files.place}: {error}") from error
    try:
        dataset = open_dataset(folder)
    except LandmarksError as error:  # about the copies: name what they are copies of
        raise LandmarksError(str(error).replace(str(folder), files.place)) from error
    if dataset.images_in is not None or dataset.address is not None:
        raise LandmarksError(
            f"the images of {files.place} lie elsewhere",
            received=str(dataset.address or dataset.images_in),
            expected="a dataset with its own shards",
        )
    shards = dataset.images["shard"].unique().sort()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        states = dict(zip(shards, pool.map(lambda name: [*files.head(f"shards/{name}")], shards), strict=True))
    image_bytes = int(dataset.images["length"].sum() or 0)
    at_address = {"images_in": files.place, "shards": states, "cache_gb": cache_gb, "bytes": image_bytes}
    return replace(dataset, record={**dataset.record, **at_address})


class RemoteImages:
    """Reads the images of one dataset from its address, and caches a share of them in its folder."""

    def __init__(self, dataset: Dataset) -> None:
        assert dataset.address is not None
        self._files = RemoteFiles(dataset.address, Patience())
        self._shards: dict[str, ShardState] = {
            name: (size, etag) for name, (size, etag) in dataset.record["shards"].items()
        }
        self._cache = dataset.folder / CACHE
        self._share = min(1.0, 1e9 * dataset.record["cache_gb"] / max(dataset.record["bytes"], 1))
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="request")

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """Return the `length` bytes at `offset` of a shard."""
        mark = hashlib.blake2b(f"{shard}:{offset}".encode(), digest_size=16)
        is_kept = int.from_bytes(mark.digest()[:8]) < self._share * 2**64
        place = self._cache / mark.hexdigest()
        if is_kept and (data := _read_cached(place, length)) is not None:
            return data
        data = self._request(shard, offset, length)
        if is_kept:
            with contextlib.suppress(OSError):  # a full disk must not end a training
                _write_cached(place, data)
        return data

    def _request(self, shard: str, offset: int, length: int) -> bytes:
        """Return bytes from the address; raise `LandmarksError` if the shard has changed."""
        expected = self._shards.get(shard)
        if expected is None:
            raise LandmarksError(f"{self._files.place} has no shard {shard}")
        answer = self._files.range(f"shards/{shard}", offset, offset + length)
        if (answer.size, answer.etag) != expected:
            raise LandmarksError(
                f"{self._files.place}/shards/{shard} is not what it was",
                received=f"{answer.size:,} bytes, ETag {answer.etag}",
                expected=f"{expected[0]:,} bytes, ETag {expected[1]}",
                way_out="join the dataset again into another folder",
            )
        return bytes(answer.data)

    def read_all(self, places: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
        """Yield the bytes at each of `places` (shard, offset, length), which are requested at once."""
        return self._pool.map(lambda place: self.read(*place), places)


def _read_cached(place: Path, length: int) -> bytes | None:
    """Return the image cached at `place`; None if there is none, or it is damaged or no plain file."""
    try:
        with open_plain(place, place.parent) as file:
            data = file.read(length + 5)
    except (LandmarksError, OSError):
        return None
    image, check = data[:-4], data[-4:]
    return image if len(image) == length and zlib.crc32(image).to_bytes(4) == check else None


def _write_cached(place: Path, data: bytes) -> None:
    """Cache `data` with a checksum, so that a file that two processes wrote at once is noticed and requested again."""
    make_folder(place.parent)
    aside = place.with_name(f".{place.name}.part")
    aside.unlink(missing_ok=True)  # left by a kill, or a stranger's link
    with open(aside, "xb") as file:
        file.write(data + zlib.crc32(data).to_bytes(4))
    aside.replace(place)
