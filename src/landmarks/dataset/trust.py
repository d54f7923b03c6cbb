"""Checks of a dataset's tables, which may come from strangers.

`open_dataset` runs them all; after that the tables can be joined, indexed, read by position and unpacked without
further checks. The files themselves are checked when they are opened (`open_plain`), since they may change in between.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import IO, Any

import polars as pl

from landmarks.support.errors import LandmarksError
from landmarks.support.places import parse_address, place_of

MAX_IMAGE_BYTES = 1 << 28
"""Larger image files are neither imported nor read from a shard."""

MAX_SIDE = 1_000_000
"""Largest width and height of an image in pixels."""

MAX_ID_BYTES = 255
"""The limit of file systems for a name."""

IMAGES_IN = "images_in"
"""Key of `dataset.json`: the folder of images imported by reference, or the address of the shards; absent if all images
are in shards in the dataset's folder."""

AT_AN_ADDRESS = (IMAGES_IN, "shards", "cache_gb", "bytes")
"""Keys of `dataset.json` of a dataset whose shards lie at an address: the address, the size and ETag of each shard, the
gigabytes of images to cache, and the bytes of all images."""

ADDRESSES = ("http", "https", "s3", "gs", "az", "abfs", "abfss")
"""Schemes of addresses at which shards may lie."""

OWN_FOLDERS = ("shards", "features", "copies", "cache", ".import", ".parts")
"""Folders in a dataset's folder that are read and written; none of them may be a link that leads out of it."""


def require_sound_images(folder: Path, images: pl.DataFrame, record: dict[str, Any]) -> None:
    """Raise `LandmarksError` with the first invalid value in `images` (columns of `IMAGES`)."""
    table = folder / "images.parquet"
    _require_unique(table, images["image_id"])
    forbidden = r"[/\\\x00-\x1f\x7f-\x9f\u{2028}-\u{202e}\u{2066}-\u{2069}]"
    id_fits = pl.col("image_id").str.len_bytes().is_between(1, MAX_ID_BYTES)
    id_fits &= ~pl.col("image_id").str.contains(forbidden) & ~pl.col("image_id").is_in([".", ".."])
    inside = pl.col("length").is_between(1, MAX_IMAGE_BYTES) & (pl.col("offset") < 1 << 62)
    sides = [pl.col(side).is_between(1, MAX_SIDE) for side in ("width", "height")]
    columns = {
        "image_id": (id_fits, "a name of 1 to 255 bytes without slashes and control characters"),
        "shard": (pl.col("shard").str.len_bytes().is_between(1, 4096), "the name of a shard"),
        "offset": (inside, f"a place in a shard and 1 to {MAX_IMAGE_BYTES:,} bytes"),
        "width": (sides[0] & sides[1], f"1 to {MAX_SIDE:,} pixels"),
    }
    for column, (fits, expected) in columns.items():
        without_bytes = pl.col("shard").is_null() if column != "image_id" else pl.lit(False)
        wrong = images.lazy().filter(~(fits.fill_null(False) | without_bytes)).select(column).head(1).collect()
        if len(wrong):
            raise _invalid(table, column, wrong[column][0], expected)
    ends = images.drop_nulls("shard").group_by("shard").agg(end=(pl.col("offset") + pl.col("length")).max())
    _require_shards(folder, ends, record)


def require_sound_labels(folder: Path, labels: pl.DataFrame) -> None:
    """Raise unless `labels` (columns of `LABELS`) are 0..N-1, each of a different landmark."""
    table = folder / "labels.parquet"
    if not labels["label"].cast(pl.Int64).equals(pl.Series("label", range(len(labels)), dtype=pl.Int64)):
        raise LandmarksError(f"{table} does not number its landmarks", expected=f"labels 0 to {len(labels) - 1}")
    _require_unique(table, labels["landmark_id"])


def require_sound_splits(path: Path, splits: pl.DataFrame, names: tuple[str, ...]) -> None:
    """Raise unless each image in `splits` (columns of `SPLIT`) occurs once, in one of the splits `names`."""
    _require_unique(path, splits["image_id"])
    wrong = splits.filter(~pl.col("split").is_in(names).fill_null(False))
    if len(wrong):
        raise _invalid(path, "split", wrong["split"][0], f"one of {', '.join(names)}")


def require_sound_corrections(path: Path, corrections: pl.DataFrame) -> None:
    """Raise unless each image occurs once in `corrections`."""
    _require_unique(path, corrections["image_id"])


def require_matching_record(folder: Path, record: dict[str, Any], *, images: int, landmarks: int) -> None:
    """Raise unless the counts in `dataset.json`, which is written last, are those of the tables."""
    counts = {"images": (record.get("images"), images), "landmarks": (record.get("landmarks"), landmarks)}
    for name, (written, found) in counts.items():
        if written != found:
            raise LandmarksError(
                f"{folder} is half-written: its tables are not those that dataset.json tells of",
                received=f"{found:,} {name}",
                expected=written,
                way_out="run the command again that made it",
            )
    digest = record.get("digest")
    if not isinstance(digest, str) or not digest:
        raise _invalid(folder / "dataset.json", "digest", digest, "a text")


def require_own_folders(folder: Path, names: tuple[str, ...] = OWN_FOLDERS) -> None:
    """Raise if one of the folders `names` in `folder` is a link that leads out of it."""
    for name in names:
        path = folder / name
        if path.is_symlink() and not _leads_into(path, folder):
            raise LandmarksError(
                f"{path} is a link that leads out of {folder}",
                received=os.path.realpath(path),
                way_out="put the folder itself in its place",
            )


def _require_unique(table: Path, values: pl.Series) -> None:
    if values.null_count():
        raise LandmarksError(f"{table} has rows without {values.name}")
    # In a sorted column, such as our own, neighbours are compared: a set of all values would be large.
    unique = not (values == values.shift()).any() if values.is_sorted() else values.n_unique() == len(values)
    if not unique:
        duplicate = values.filter(values.is_duplicated())[0]
        raise LandmarksError(f"{table} holds {len(values) - values.n_unique()} rows twice", received=f"{duplicate!r}")


def _require_shards(folder: Path, ends: pl.DataFrame, record: dict[str, Any]) -> None:
    """Raise unless existing shards lie where they may, are plain files, and are as long as the rows say."""
    images_in = folder_of_images(folder, record)
    for shard, end in ends.iter_rows():
        place = place_of_shard(folder, shard, images_in)
        if os.path.isabs(shard):  # noqa: PTH117 (there may be a million)
            continue
        try:
            status = os.lstat(place)
        except OSError:  # without its images a dataset can still be counted, and fetch makes missing shards again
            continue
        if stat.S_ISLNK(status.st_mode) and _leads_into(place, folder) and place.exists():
            status = place.stat()
        if not stat.S_ISREG(status.st_mode):
            raise LandmarksError(f"{place} is no plain file in {folder}", received=_kind(status.st_mode))
        if status.st_size < end:
            raise LandmarksError(
                f"{place} is shorter than the manifest says",
                received=f"{status.st_size:,} bytes",
                expected=f"{end:,}",
                way_out="make the dataset again",
            )


def folder_of_images(folder: Path, record: dict[str, Any]) -> Path | None:
    """Return the folder that must contain all images imported by reference; None if all images are in shards."""
    if address_of_images(folder, record) is not None:
        return None
    place = record.get(IMAGES_IN)
    if place is None and record.get("verb") == "import" and record.get("max_side", 0) is None:
        origin = record.get("origin")  # earlier versions recorded only what was imported
        place = origin if not isinstance(origin, str) or Path(origin).is_dir() else str(Path(origin).parent)
    if place is None:
        return None
    if not isinstance(place, str) or "\0" in place or not Path(place).is_absolute():
        raise _invalid(folder / "dataset.json", IMAGES_IN, place, "the whole path of a folder")
    return Path(os.path.normpath(place))


def address_of_images(folder: Path, record: dict[str, Any]) -> str | None:
    """Return the address at which a dataset's shards lie; None if they are on disk.

    Raises `LandmarksError` if the address holds credentials or a signature, or the states of the shards are missing.
    """
    address = record.get(IMAGES_IN)
    if not isinstance(address, str) or "://" not in address:
        return None
    scheme = address.partition("://")[0]
    if scheme not in ADDRESSES or place_of(address) != address or parse_address(address).query:
        raise _invalid(folder / "dataset.json", IMAGES_IN, address, f"an address of {', '.join(ADDRESSES)}")
    shards, *numbers = (record.get(name) for name in AT_AN_ADDRESS[1:])
    has_states = isinstance(shards, dict) and all(map(_is_shard_state, shards.values()))
    if not has_states or not all(isinstance(number, int | float) and number >= 0 for number in numbers):
        raise _invalid(folder / "dataset.json", "shards", shards, "size and ETag of each, with cache_gb and bytes")
    return address


def _is_shard_state(value: object) -> bool:
    """Return whether a value is the state of a shard at an address: its size, and its ETag or None."""
    match value:
        case [int(), None | str()]:
            return True
    return False


def place_of_shard(folder: Path, shard: str | None, images_in: Path | None) -> Path:
    """Return the path of a shard in `folder`, or of an image imported by reference below `images_in`.

    Raises `LandmarksError` for a name that leads anywhere else, and for None, an image without bytes.
    """
    if shard is None:
        raise LandmarksError(f"{folder} does not hold the bytes of its images", expected="shards")
    if os.path.isabs(shard):  # noqa: PTH117
        place = os.path.normpath(shard)
        if images_in is None or not place.startswith(str(images_in).rstrip(os.sep) + os.sep) or "\0" in shard:
            expected = "a name in its folder shards" if images_in is None else f"a file below {images_in}"
            raise _invalid(folder / "images.parquet", "shard", shard, expected)
        return Path(place)
    if PurePosixPath(shard).name != shard or any(letter in shard for letter in "\\:\0\n") or not shard.endswith(".tar"):
        raise _invalid(folder / "images.parquet", "shard", shard, "the name of a .tar in its folder shards")
    return folder / "shards" / shard


def _leads_into(path: Path, folder: Path) -> bool:
    """Return whether a path lies in `folder` after links are followed; a link that leads to itself is left as it is."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def open_plain(path: Path, within: Path | None = None) -> IO[bytes]:
    """Open a regular file for unbuffered reading; a pipe or a device is refused without blocking.

    With `within`, a link that leads out of that folder is refused too.
    """
    if within is not None and not _leads_into(path, within):
        raise LandmarksError(f"{path} is a link that leads out of {within}", received=os.path.realpath(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise LandmarksError(f"{path} cannot be read ({error.strerror})") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise LandmarksError(f"{path} is no plain file", received=_kind(mode))
    return open(descriptor, "rb", buffering=0)


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISLNK: "a link", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")


def _invalid(table: Path, column: str, value: object, expected: str) -> LandmarksError:
    return LandmarksError(f"{table} holds an impossible {column}", received=repr(value)[:100], expected=expected)
