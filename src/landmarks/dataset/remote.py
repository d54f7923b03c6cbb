"""Datasets at an address: the tables are in a local folder, the images in a bucket or on a web server.

    landmarks join s3://bucket/data -o data --by-reference

An image is requested when it is needed, by its byte range in the manifest, many at once. A share of the images is
cached on disk for later epochs. Which images are cached depends only on their shards and offsets: every epoch needs
every image once, so that caching the most recent ones would gain nothing, and processes need not coordinate.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from landmarks.dataset.manifest import CORRECTIONS_FILE, SPLIT_FILE, Dataset, open_dataset
from landmarks.dataset.trust import open_plain
from landmarks.support.disk import make_folder
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import MAX_RECORD_BYTES, written_whole
from landmarks.support.places import parse_address
from landmarks.support.remote_files import RemoteFiles
from landmarks.support.requests import AbsentError, Patience

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
