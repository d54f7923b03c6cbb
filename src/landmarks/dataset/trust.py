"""What the tables of a dataset must be before anything of them is believed: folders of datasets come from strangers.

`open_dataset` asks everything here; what passes can be joined, indexed, read by position and unpacked without a second
look. The files themselves are looked at where they are opened (`open_plain`), since they may change in between.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import IO, Any

import polars as pl

from landmarks.support.addresses import parse_address, place_of
from landmarks.support.errors import LandmarksError

MAX_IMAGE_BYTES = 1 << 28
"""A file that is larger is not read, neither when it is imported nor from a shard."""

MAX_SIDE = 1_000_000
"""In pixels: no image is wider or higher."""

MAX_ID_BYTES = 255
"""What a file system takes as a name."""

IMAGES_IN = "images_in"
"""Key of `dataset.json`: the folder below which images lie that stay where they are, or the address at which the shards
do; absent where all are in shards here."""

AT_AN_ADDRESS = (IMAGES_IN, "shards", "cache_gb", "bytes")
"""Keys of `dataset.json` where shards lie at an address: it, what each shard is known by (size, ETag), how many
gigabytes of images are kept here, and how many bytes all of them have."""

ADDRESSES = ("http", "https", "s3", "gs", "az", "abfs", "abfss")
"""Kinds of addresses at which shards may lie."""

OWN_FOLDERS = ("shards", "features", "copies", "cache", ".import", ".parts")
"""Folders in a dataset's folder that are read from and written to: none of them may lead elsewhere."""


def require_sound_images(folder: Path, images: pl.DataFrame, record: dict[str, Any]) -> None:
    """Raise `LandmarksError` that names the first row of `images` (columns of `IMAGES`) which cannot be meant."""
    table = folder / "images.parquet"
    _require_unique(table, images["image_id"])
    strange = r"[/\\\x00-\x1f\x7f-\x9f\u{2028}-\u{202e}\u{2066}-\u{2069}]"
    id_fits = pl.col("image_id").str.len_bytes().is_between(1, MAX_ID_BYTES)
    id_fits &= ~pl.col("image_id").str.contains(strange) & ~pl.col("image_id").is_in([".", ".."])
    inside = pl.col("length").is_between(1, MAX_IMAGE_BYTES) & (pl.col("offset") < 1 << 62)
    sides = [pl.col(side).is_between(1, MAX_SIDE) for side in ("width", "height")]
    columns = {
        "image_id": (id_fits, "a name of 1 to 255 bytes without slashes and control characters"),
        "shard": (pl.col("shard").str.len_bytes().is_between(1, 4096), "the name of a shard"),
        "offset": (inside, f"a place in a shard and 1 to {MAX_IMAGE_BYTES:,} bytes"),
        "width": (sides[0] & sides[1], f"1 to {MAX_SIDE:,} pixels"),
    }
    for column, (fits, expected) in columns.items():
        nowhere = pl.col("shard").is_null() if column != "image_id" else pl.lit(False)  # a row whose bytes are not here
        wrong = images.lazy().filter(~(fits.fill_null(False) | nowhere)).select(column).head(1).collect()
        if len(wrong):
            raise _impossible(table, column, wrong[column][0], expected)
    ends = images.drop_nulls("shard").group_by("shard").agg(end=(pl.col("offset") + pl.col("length")).max())
    _require_shards(folder, ends, record)


def require_sound_labels(folder: Path, labels: pl.DataFrame) -> None:
    """Raise unless `labels` (columns of `LABELS`) are 0..N-1, each of another landmark."""
    table = folder / "labels.parquet"
    if not labels["label"].cast(pl.Int64).equals(pl.Series("label", range(len(labels)), dtype=pl.Int64)):
        raise LandmarksError(f"{table} does not number its landmarks", expected=f"labels 0 to {len(labels) - 1}")
    _require_unique(table, labels["landmark_id"])


def require_sound_splits(path: Path, splits: pl.DataFrame, names: tuple[str, ...]) -> None:
    """Raise unless each image of `splits` (columns of `SPLIT`) is in one of the splits `names`."""
    _require_unique(path, splits["image_id"])
    wrong = splits.filter(~pl.col("split").is_in(names).fill_null(False))
    if len(wrong):
        raise _impossible(path, "split", wrong["split"][0], f"one of {', '.join(names)}")


def require_sound_corrections(path: Path, corrections: pl.DataFrame) -> None:
    """Raise unless each image is decided on once."""
    _require_unique(path, corrections["image_id"])


def require_matching_record(folder: Path, record: dict[str, Any], *, images: int, landmarks: int) -> None:
    """Raise unless `dataset.json`, which is written last, tells of tables as long as those that are there."""
    told = {"images": (record.get("images"), images), "landmarks": (record.get("landmarks"), landmarks)}
    for name, (written, found) in told.items():
        if written != found:
            raise LandmarksError(
                f"{folder} is half-written: its tables are not those that dataset.json tells of",
                received=f"{found:,} {name}",
                expected=written,
                way_out="run the command again that made it",
            )
    digest = record.get("digest")
    if not isinstance(digest, str) or not digest:
        raise _impossible(folder / "dataset.json", "digest", digest, "a text")


def require_own_folders(folder: Path, names: tuple[str, ...] = OWN_FOLDERS) -> None:
    """Raise where one of the folders in `folder` is a link that leads out of it: neither read through nor written."""
    for name in names:
        inside = folder / name
        if inside.is_symlink() and not inside.resolve().is_relative_to(folder.resolve()):
            raise LandmarksError(
                f"{inside} is a link that leads out of {folder}",
                received=str(inside.resolve()),
                way_out="put the folder itself in its place",
            )


def _require_unique(table: Path, values: pl.Series) -> None:
    if values.null_count():
        raise LandmarksError(f"{table} has rows without {values.name}")
    # What is sorted, as our own tables are, is compared with what stands before it: a set of all would be large.
    unique = not (values == values.shift()).any() if values.is_sorted() else values.n_unique() == len(values)
    if not unique:
        twice = values.filter(values.is_duplicated())[0]
        raise LandmarksError(f"{table} holds {len(values) - values.n_unique()} rows twice", received=f"{twice!r}")


def _require_shards(folder: Path, ends: pl.DataFrame, record: dict[str, Any]) -> None:
    """Raise unless the shards that are there lie where they may, are plain files, and as long as the rows say."""
    elsewhere = folder_of_images(folder, record)
    for shard, end in ends.iter_rows():
        place = place_of_shard(folder, shard, elsewhere)
        if os.path.isabs(shard):  # noqa: PTH117 (there may be a million)
            continue
        try:
            status = os.lstat(place)
        except OSError:  # a dataset without its images can still be counted, and fetch makes shards anew
            continue
        if stat.S_ISLNK(status.st_mode) and place.resolve().is_relative_to(folder.resolve()) and place.exists():
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
    """Return below which folder images may lie that stayed where they are; None where all are in shards."""
    if address_of_images(folder, record) is not None:
        return None
    told = record.get(IMAGES_IN)
    if told is None and record.get("verb") == "import" and record.get("max_side", 0) is None:
        origin = record.get("origin")  # what the record said before it named the folder
        told = origin if not isinstance(origin, str) or Path(origin).is_dir() else str(Path(origin).parent)
    if told is None:
        return None
    if not isinstance(told, str) or "\0" in told or not Path(told).is_absolute():
        raise _impossible(folder / "dataset.json", IMAGES_IN, told, "the whole path of a folder")
    return Path(os.path.normpath(told))


def address_of_images(folder: Path, record: dict[str, Any]) -> str | None:
    """Return the address at which a dataset's shards lie; None where they are on a disk.

    Raises `LandmarksError` for one that holds a name or a signature, or is without what its shards are known by.
    """
    told = record.get(IMAGES_IN)
    if not isinstance(told, str) or "://" not in told:
        return None
    scheme = told.partition("://")[0]
    if scheme not in ADDRESSES or place_of(told) != told or parse_address(told).query:
        raise _impossible(folder / "dataset.json", IMAGES_IN, told, f"an address of {', '.join(ADDRESSES)}")
    shards, *numbers = (record.get(name) for name in AT_AN_ADDRESS[1:])
    known = isinstance(shards, dict) and all(map(_is_state, shards.values()))
    if not known or not all(isinstance(one, int | float) and one >= 0 for one in numbers):
        raise _impossible(folder / "dataset.json", "shards", shards, "size and ETag of each, with cache_gb and bytes")
    return told


def _is_state(value: object) -> bool:
    """Return whether a value is what a shard at an address is known by: its size and its ETag, if it has one."""
    match value:
        case [int(), None | str()]:
            return True
    return False


def place_of_shard(folder: Path, shard: str | None, elsewhere: Path | None) -> Path:
    """Return where a shard lies: in `folder`, or below `elsewhere` where the dataset leaves its images there.

    Raises `LandmarksError` for a name that leads anywhere else, and for an image whose bytes lie nowhere (None).
    """
    if shard is None:
        raise LandmarksError(f"{folder} does not hold the bytes of its images", expected="shards")
    if os.path.isabs(shard):  # noqa: PTH117
        place = os.path.normpath(shard)
        if elsewhere is None or not place.startswith(str(elsewhere).rstrip(os.sep) + os.sep) or "\0" in shard:
            expected = "a name in its folder shards" if elsewhere is None else f"a file below {elsewhere}"
            raise _impossible(folder / "images.parquet", "shard", shard, expected)
        return Path(place)
    if PurePosixPath(shard).name != shard or any(letter in shard for letter in "\\:\0\n") or not shard.endswith(".tar"):
        raise _impossible(folder / "images.parquet", "shard", shard, "the name of a .tar in its folder shards")
    return folder / "shards" / shard


def open_plain(path: Path, within: Path | None = None) -> IO[bytes]:
    """Open a plain file for reading without buffer; a pipe or a device is refused, and never waited for.

    With `within`, a link that leads out of that folder is refused too.
    """
    if within is not None and not path.resolve().is_relative_to(within.resolve()):
        raise LandmarksError(f"{path} is a link that leads out of {within}", received=str(path.resolve()))
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


def _impossible(table: Path, column: str, value: object, expected: str) -> LandmarksError:
    return LandmarksError(f"{table} holds an impossible {column}", received=repr(value)[:100], expected=expected)
