"""Dataset folders: their tables, how they are opened and written, and how a notebook shows them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.trust import (
    address_of_images,
    folder_of_images,
    place_of_shard,
    require_matching_record,
    require_own_folders,
    require_sound_corrections,
    require_sound_images,
    require_sound_labels,
    require_sound_splits,
)
from landmarks.support.console import html_table, note, plural
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.files import digest_of, read_record, write_record
from landmarks.support.places import Place, as_given, in_shell, without_secrets
from landmarks.support.systems import require_text
from landmarks.support.tables import read_table, read_with_metadata, write_table

SPLITS = ("train", "val", "test")

IMAGES: dict[str, Any] = {
    "image_id": pl.String,  # unique; 16 hex digits when it comes from the archive
    "landmark_id": pl.Int64,  # null: shows nothing known
    "shard": pl.String,  # file name under shards/, or an absolute path (imported by reference)
    "offset": pl.UInt64,  # of the image's first byte in the shard
    "length": pl.UInt32,  # in bytes
    "width": pl.UInt32,  # upright, in pixels, as stored
    "height": pl.UInt32,
    "phash": pl.UInt64,  # perceptual hash, see groups.py
    "group": pl.UInt32,  # images that must land in the same split, see groups.py; null: removed by a correction
    "author": pl.String,
    "license": pl.String,
    "title": pl.String,
    "usage": pl.String,  # Public or Private in the recognition test set, else null
    "landmarks": pl.List(pl.Int64),  # all landmarks shown, including `landmark_id`; null: only `landmark_id`
}
"""Columns of `images.parquet`, sorted by id."""

LABELS: dict[str, Any] = {
    "label": pl.UInt32,  # 0..N-1, in the order of landmark_id
    "landmark_id": pl.Int64,
    "name": pl.String,
    "category": pl.String,
    "images": pl.UInt32,  # images of it in this dataset
}
"""Columns of `labels.parquet`, sorted by label."""

SPLIT: dict[str, Any] = {"image_id": pl.String, "split": pl.String}
"""Columns of `splits.parquet`, sorted by id."""

SPLIT_FILE = "splits.parquet"

CORRECTIONS: dict[str, Any] = {
    "image_id": pl.String,
    "landmark_id": pl.Int64,  # the landmark decided on; null: nothing known
    "fetched_landmark_id": pl.Int64,  # the value in images.parquet; equal to `landmark_id` where that was confirmed
    "csv": pl.String,  # digest of the CSV that holds the decision
    "removed": pl.Boolean,  # whether the image is left out of the dataset; missing in tables of earlier versions
}
"""Columns of `corrections.parquet`, sorted by id; see `split.py`."""

CORRECTIONS_FILE = "corrections.parquet"

REJECTED: dict[str, Any] = {"image_id": pl.String, "where": pl.String, "why": pl.String}
"""Columns of `rejected.parquet`, sorted by id."""


NO_LABEL = -1
"""In arrays of labels: nothing known is shown, or no answer was given."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset folder, with its tables in memory and its images on disk.

    It is accepted wherever the path of its folder is.
    """

    folder: Path
    record: dict[str, Any]
    images: pl.DataFrame  # with corrected labels
    labels: pl.DataFrame
    splits: pl.DataFrame | None
    split_metadata: dict[str, str]  # metadata of `splits.parquet`: rule, seed, leakage
    corrections: pl.DataFrame  # empty if there are none

    def __repr__(self) -> str:
        counts = "not divided yet"
        if self.splits is not None:
            counts = ", ".join(f"{self.count(name)} {name}" for name in SPLITS)
        size = f"{plural(len(self.images), 'image')} of {plural(len(self.labels), 'landmark')}"
        return f"Dataset({self.folder}, {size}, {counts})"

    def __fspath__(self) -> str:
        return str(self.folder)

    @functools.cached_property
    def digest(self) -> str:
        """The digest of the images, their labels and their splits; the place of the folder is no part of it."""
        if self.splits is None:
            return digest_of(self.content_digest, "")
        # The same as `digest_of(self.content_digest, "\n".join(lines))`, computed slice by slice to save memory.
        digest, separator = hashlib.blake2b(f'[{json.dumps(self.content_digest)},"'.encode(), digest_size=16), b""
        for rows in self.splits.iter_slices(100_000):
            lines = "\n".join(rows["image_id"] + " " + rows["split"])
            digest.update(separator + json.dumps(lines)[1:-1].encode())
            separator = b"\\n"
        digest.update(b'"]')
        return digest.hexdigest()

    @property
    def content_digest(self) -> Any:
        """The digest of the images and their labels, corrections included; the splits are no part of it."""
        written, corrected = self.record.get("digest"), self.corrected
        return digest_of(written, corrected.rows()) if len(corrected) else written

    @property
    def corrected(self) -> pl.DataFrame:
        """`image_id` and `landmark_id` of the images that were removed or whose label was changed."""
        return effective_corrections(self.corrections)

    def as_fetched(self) -> pl.DataFrame:
        """Return `images` as `images.parquet` holds it: without corrections."""
        return read_table(self.folder / "images.parquet", IMAGES)

    def split(self, name: str) -> pl.DataFrame:
        """Return the images of one split, or of `"all"`, sorted by id and with their `label` (null: nothing known)."""
        # Only the rows needed are copied: a split of the whole archive takes a large part of memory.
        images = self.images if name == "all" else self.images.filter(self._is_in(name))
        labels = images.select("landmark_id").join(
            self.labels.select("landmark_id", "label"), on="landmark_id", how="left", maintain_order="left"
        )
        images = images.with_columns(labels["label"])
        return images if images["image_id"].is_sorted() else images.sort("image_id")

    def count(self, name: str) -> int:
        """Return the number of images in one split, or in `"all"`."""
        return len(self.images) if name == "all" else int(self._is_in(name).sum())

    def _is_in(self, name: str) -> pl.Series:
        """Return a mask of the `images` in a split."""
        require_split(name)
        if self.splits is None:
            raise LandmarksError(
                f"{self.folder} has no splits yet", way_out=f"divide it with: landmarks split {in_shell(self.folder)}"
            )
        in_split = self.splits["split"] == name
        if self.splits["image_id"].equals(self.images["image_id"]):  # both are kept sorted
            return in_split
        return self.images["image_id"].is_in(self.splits["image_id"].filter(in_split).implode())

    def path_of(self, shard: str) -> Path:
        """Return the path of a shard, or of an image imported by reference."""
        return place_of_shard(self.folder, shard, folder_of_images(self.folder, self.record))

    @property
    def images_in(self) -> Path | None:
        """The folder that holds all images imported by reference; None if all images are in shards."""
        return folder_of_images(self.folder, self.record)

    @functools.cached_property
    def address(self) -> str | None:
        """The address at which the shards lie; None if they are on disk."""
        return address_of_images(self.folder, self.record)

    @property
    def origin(self) -> str:
        """The address of the images, or the absolute path of the folder, to show to people."""
        return self.address or str(self.folder.absolute())

    def place_of(self, shard: str) -> str:
        """Return the path or the address of a shard, to show to people."""
        return f"{self.address}/shards/{shard}" if self.address else str(self.path_of(shard))

    def names_of(self, labels: Sequence[int]) -> list[str]:
        """Return the landmark names of `labels`."""
        return self.labels.sort("label")["name"].gather(list(labels)).to_list()

    def _repr_html_(self) -> str:
        return _as_html(self)


def require_split(name: str) -> None:
    """Raise `UsageError` unless `name` is a split, or `"all"`."""
    known = (*SPLITS, "all")
    if name not in known:
        raise UsageError(f'no split "{name}"', expected=f"one of {', '.join(known)}", way_out=did_you_mean(name, known))


def _way_out_of_file(file: Path) -> str:
    """Return advice for a file that was given for the folder of a dataset; empty if there is none."""
    if (file.parent / "dataset.json").is_file():
        return f"name the folder: {file.parent}"
    return {
        ".csv": f"make a dataset of the images that it lists with: landmarks import {in_shell(file)} -o DATA",
        ".parquet": f"were it a selection: landmarks fetch {in_shell(file)} -o DATA",
        ".onnx": "it is an export; name a dataset",
    }.get(file.suffix.lower(), "")


def open_dataset(folder: Place) -> Dataset:
    """Open a dataset folder and check its tables (see `trust`).

    Raises `LandmarksError` if it is no dataset, is unfinished or damaged, or was written by a newer version.
    """
    if "://" in (address := as_given(Path(folder))):
        raise LandmarksError(
            f"the dataset at {without_secrets(address)} cannot be opened there",
            way_out="bring its tables here, and its images when they are needed: "
            "landmarks join ADDRESS -o DATA --by-reference",
        )
    folder = Path(folder)
    if folder.is_file():
        raise LandmarksError(f"{folder} is a file, and no dataset's folder", way_out=_way_out_of_file(folder))
    if not folder.is_dir():
        raise LandmarksError(f"there is no folder {folder}", way_out="make a dataset with: landmarks fetch, or import")
    require_text(folder)
    if not (folder / "dataset.json").exists():
        if (folder / "run.json").is_file():
            raise LandmarksError(
                f"{folder} is a run, and no dataset",
                way_out="name the dataset: landmarks import, fetch and join make one",
            )
        unfinished = any((folder / name).exists() for name in (".parts", ".import"))
        raise LandmarksError(
            f"{folder} is no dataset: there is no dataset.json in {folder}",
            way_out="run the command again that began to make it"
            if unfinished
            else f"make one of the images in it with: landmarks import {in_shell(folder)} -o DATA",
        )
    record = read_record(folder / "dataset.json")
    require_own_folders(folder)
    images, labels = read_table(folder / "images.parquet", IMAGES), read_table(folder / "labels.parquet", LABELS)
    require_matching_record(folder, record, images=len(images), landmarks=len(labels))
    require_sound_images(folder, images, record)
    require_sound_labels(folder, labels)
    split, corrections = folder / SPLIT_FILE, stored_corrections(folder)
    splits, metadata = read_with_metadata(split, SPLIT) if split.exists() else (None, {})
    if splits is not None:
        require_sound_splits(split, splits, SPLITS)
    if place := address_of_images(folder, record) or folder_of_images(folder, record):
        _note_once(f"the images of {folder} lie in {place}, from where they are read")
    return Dataset(
        folder=folder,
        record=record,
        images=with_corrections(images, corrections),
        labels=labels,
        splits=splits,
        split_metadata=metadata,
        corrections=corrections,
    )


@functools.cache
def _note_once(text: str) -> None:
    note(text)


def stored_corrections(folder: Path) -> pl.DataFrame:
    """Return the corrections in a dataset's folder, an empty table if there are none."""
    path = folder / CORRECTIONS_FILE
    if not path.exists():
        return pl.DataFrame(schema=CORRECTIONS)
    schema = dict(CORRECTIONS)
    if "removed" not in read_table(path).columns:  # written by an earlier version
        del schema["removed"]
    corrections = read_table(path, schema)
    if "removed" not in schema:
        corrections = corrections.with_columns(removed=pl.lit(False))
    corrections = corrections.with_columns(pl.col("removed").fill_null(False))
    require_sound_corrections(path, corrections)
    return corrections


def with_corrections(images: pl.DataFrame, corrections: pl.DataFrame) -> pl.DataFrame:
    """Return `images` with corrected labels and without the removed images.

    A corrected label replaces all landmarks of the image.
    """
    if corrections.is_empty():
        return images
    images = images.join(corrections.filter("removed"), on="image_id", how="anti", maintain_order="left")
    decided = corrections.select("image_id", corrected="landmark_id", decided=pl.lit(True))
    joined = images.join(decided, on="image_id", how="left", maintain_order="left")
    changed = pl.col("decided").fill_null(False) & pl.col("landmark_id").ne_missing(pl.col("corrected"))
    return joined.with_columns(
        landmark_id=pl.when(changed).then("corrected").otherwise("landmark_id"),
        landmarks=pl.when(changed).then(None).otherwise("landmarks"),
    ).select(images.columns)


def effective_corrections(corrections: pl.DataFrame) -> pl.DataFrame:
    """Return `image_id` and `landmark_id` of the corrections that change a label or remove an image."""
    differs = pl.col("landmark_id").ne_missing(pl.col("fetched_landmark_id"))
    return corrections.filter(differs | pl.col("removed")).select("image_id", "landmark_id")


def _with_schema(table: pl.DataFrame, schema: dict[str, Any]) -> pl.DataFrame:
    return table.select(pl.col(name).cast(kind) for name, kind in schema.items())


DIGESTED = ("image_id", "landmark_id", "length", "width", "height")
"""Columns of `images.parquet` whose values are in a dataset's digest."""


def digest_of_rows(table: pl.DataFrame) -> str:
    """Return a digest of a table's rows, 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for rows in table.iter_slices(100_000):  # as text, millions of rows are gigabytes
        digest.update(rows.write_csv(include_header=False).encode())
    return digest.hexdigest()


def write_dataset(
    folder: Path,
    *,
    verb: str,
    images: pl.DataFrame,
    labels: pl.DataFrame,
    rejected: pl.DataFrame,
    record: dict[str, Any],
    inputs: str = "",
    split: tuple[pl.DataFrame, dict[str, object]] | None = None,
) -> Dataset:
    """Write a dataset's tables, then the `dataset.json` that makes the folder a dataset, and open it.

    `record` says where the images come from (`set`, `origin`, `rule`, `max_side`); counts and the digest of images
    and labels are added to it. `inputs` is the digest of what the dataset was made from. `split` holds the table
    `splits.parquet` (columns of `SPLIT`) and its metadata.
    """
    images = _with_schema(images, IMAGES).sort("image_id")
    labels = _with_schema(labels, LABELS).sort("label")
    duplicates = images.filter(pl.col("image_id").is_duplicated())
    if len(duplicates):
        raise LandmarksError(
            f"{len(duplicates)} images share an id", received=f'"{duplicates["image_id"][0]}" more than once'
        )
    rejected = _with_schema(rejected, REJECTED).sort("image_id", "why")
    write_table(folder / "images.parquet", images)
    write_table(folder / "labels.parquet", labels)
    write_table(folder / "rejected.parquet", rejected)
    if split is not None:
        write_table(folder / SPLIT_FILE, _with_schema(split[0], SPLIT).sort("image_id"), **split[1])
    digest = digest_of(digest_of_rows(images.select(DIGESTED)), labels["landmark_id"].to_list())
    counts = {"images": len(images), "landmarks": len(labels), "rejected": len(rejected)}
    write_record(folder / "dataset.json", {**record, **counts, "digest": digest}, verb=verb, inputs=inputs)
    return open_dataset(folder)


# ── In a notebook: a table of the splits, and a few images ──────────────────────────────────────────────────────────


IMAGES_SHOWN = 6
"""Number of images shown, each of another landmark."""

SHOWN_SIDE = 112
"""Longer side of the images shown, in pixels."""


def _as_html(dataset: Dataset) -> str:
    """Return self-contained HTML with a table of the splits and a row of small images."""
    images = dataset.split("all")
    known = images.filter(pl.col("label").is_not_null())
    rows = [("all", len(images), known["label"].n_unique(), len(images) - len(known))]
    for name in SPLITS if dataset.splits is not None else ():
        chosen = dataset.split(name)
        labels = chosen["label"].drop_nulls()
        rows.append((name, len(chosen), labels.n_unique(), len(chosen) - len(labels)))
    table = html_table(["split", "images", "landmarks", "of anything else"], rows, str(dataset.folder))
    few = known.unique("label", keep="first", maintain_order=True).head(IMAGES_SHOWN)
    return table + "".join(_figure(dataset, row) for row in few.iter_rows(named=True))


def _figure(dataset: Dataset, row: Mapping[str, Any]) -> str:
    from landmarks.dataset.images import ImageError, data_uri, decode, encode, shrink
    from landmarks.dataset.shards import ImageReader  # opens datasets itself

    (name,) = dataset.names_of([row["label"]])
    try:
        data = ImageReader(dataset).read(row["shard"], row["offset"], row["length"])
        small = encode(shrink(decode(data, min_side=SHOWN_SIDE), SHOWN_SIDE), quality=80)
    except (ImageError, OSError) as error:
        return f"<p>{escape(name)}: {escape(str(error))}</p>"
    return (
        '<figure style="display:inline-block;margin:4px;text-align:center">'
        f'<img src="{data_uri(small)}" alt="{escape(name)}"><figcaption>{escape(name)}</figcaption></figure>'
    )
