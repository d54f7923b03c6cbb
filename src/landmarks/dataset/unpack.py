"""The verb `unpack`: write the images of a dataset as files in folders.

People, fastai, timm and Keras can use these folders, and `import` makes the same labels of them. Each is named by a
landmark's id, with leading zeros, and its name, so that they sort in the order of the labels. `labels.csv` beside them
holds the exact names.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.csv_files import read_text_columns
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.naming import (
    LABELS_CSV,
    UNKNOWN,
    UNPACKED,
    Landmark,
    folder_name,
    identified_by,
    landmarks_of,
    normalised_name,
    safe_name,
    with_digest,
)
from landmarks.dataset.shards import ImageReader, require_images
from landmarks.dataset.sources import SUFFIXES
from landmarks.dataset.storing import in_parallel
from landmarks.support.console import progress
from landmarks.support.disk import make_folder, remove_leftovers, require_free_disk
from landmarks.support.errors import LandmarksError, StaleError
from landmarks.support.files import held, read_record, refuse_foreign, write_record, written_whole
from landmarks.support.places import Place, in_shell
from landmarks.support.tables import write_csv

_LONGEST = 200  # bytes of a file name, which leave room for an ending on every file system


def unpack(data: Place, out: Place) -> Path:
    """Write every image of a dataset as a file, in folders per split and landmark: `out/train/<landmark>/<id>.jpg`.

    A dataset without splits gets no folders of splits. Images that show nothing known are in `_unknown`. An unpacking
    that was killed goes on where it stopped; a folder that holds something else is refused.
    """
    dataset, out = open_dataset(data), Path(out)
    refuse_foreign(out, (UNPACKED,), "unpacked dataset")
    with held(out):
        if (out / UNPACKED).exists() and read_record(out / UNPACKED)["inputs"] != dataset.digest:
            raise StaleError(f"{out} was unpacked from another dataset or split", way_out="choose another folder")
        record = {"data": str(dataset.folder), "identified_by": identified_by(dataset.record, dataset.labels)}
        write_record(out / UNPACKED, record, verb="unpack", inputs=dataset.digest)
        places = _places(dataset, out)
        missing = [(place, row) for place, row in places if not place.exists() or place.stat().st_size != row["length"]]
        require_images(dataset, [row["shard"] for _, row in missing], "unpack")
        require_free_disk(out, sum(row["length"] for _, row in missing))
        for folder in {place.parent for place, _ in missing}:
            make_folder(folder)
            remove_leftovers(folder)
        reader = ImageReader(dataset)

        def write(item: tuple[Path, dict[str, Any]]) -> None:
            place, row = item
            with written_whole(place) as aside:
                aside.write_bytes(reader.read(row["shard"], row["offset"], row["length"]))

        with progress("unpacking", total=len(places)) as advance:
            advance(len(places) - len(missing))
            for _ in in_parallel(write, missing):
                advance()
    return out


def _places(dataset: Dataset, out: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the path of each image's file, and its row; write `labels.csv`."""
    landmarks = landmarks_of(dataset.labels)
    digits = max((len(str(landmark.landmark_id)) for landmark in landmarks), default=1)
    folders = {landmark.landmark_id: folder_name(landmark, digits) for landmark in landmarks}
    _write_labels_csv(out / LABELS_CSV, {folders[landmark.landmark_id]: landmark for landmark in landmarks})
    images = dataset.images.select("image_id", "landmark_id", "shard", "offset", "length")
    if dataset.splits is not None:
        images = images.join(dataset.splits, on="image_id", how="left")
    places: dict[str, tuple[Path, dict[str, Any]]] = {}
    for row in images.iter_rows(named=True):
        inside = Path(row.get("split") or "", folders.get(row["landmark_id"], UNKNOWN))
        suffix = Path(row["shard"]).suffix.lower()
        suffix = suffix if suffix in SUFFIXES else ".jpg"  # an image in a shard, or of an unknown ending
        place = out / inside / f"{safe_name(row['image_id'], _LONGEST)}{suffix}"
        if _key(place) in places:  # the names differ by case only, or only where they were cut
            place = out / inside / f"{with_digest(row['image_id'], row['image_id'])}{suffix}"
        if places.setdefault(_key(place), (place, row))[1] is not row:
            raise LandmarksError(f'two images would be written to "{place}"', received=f'the id "{row["image_id"]}"')
    return list(places.values())


def _key(place: Path) -> str:
    """Return a key that is equal for paths that some file system takes for the same."""
    return unicodedata.normalize("NFC", str(place)).casefold()


# ── labels.csv: the exact names of the folders, which import reads again ────────────────────────────────────────────


def _write_labels_csv(path: Path, folders: dict[str, Landmark]) -> None:
    """Write folder → landmark, as `unpacked_labels` reads it."""
    rows = [(folder, landmark.landmark_id, landmark.name, landmark.category) for folder, landmark in folders.items()]
    columns = {"folder": pl.String, "landmark_id": pl.Int64, "name": pl.String, "category": pl.String}
    write_csv(path, pl.DataFrame(rows, schema=columns, orient="row"))


def unpacked_labels(source: Path) -> tuple[dict[str, Landmark] | None, list[str]]:
    """Return what `labels.csv` lists if `unpack` wrote it; a remark if it is somebody else's."""
    path = source / LABELS_CSV
    if not path.is_file():
        missing = f"{path} is missing, which landmarks unpack wrote: the folders' names are taken whole, with the ids"
        return None, [missing] if (source / UNPACKED).is_file() else []
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = [name.strip().strip('"').lower() for name in re.split("[,;\t]", file.readline(10_000))]
    if {"folder", "landmark_id"} <= set(header) or (source / UNPACKED).is_file():
        return _read_labels_csv(path), []
    columns = ", ".join(header)[:80]
    return None, [
        f"{path} ({columns}) is somebody else's and is passed by: the folders' names are the labels;"
        f" were it a list of paths and labels: landmarks import {in_shell(path)} -o DATA"
    ]


def _read_labels_csv(path: Path) -> dict[str, Landmark]:
    """Read the `labels.csv` that `unpack` wrote: folder → landmark."""
    way_out = f"landmarks unpack writes it; without it the folders are numbered by their sorted names: delete {path}"
    listed: dict[str, Landmark] = {}
    folder_of: dict[int, str] = {}
    rows = read_text_columns(path, ("folder", "landmark_id", "name", "category"), way_out)
    for line, listed_as, number, name, category in rows.iter_rows():
        integer = re.fullmatch(r"([0-9]{1,18})(?:\.0+)?", number)
        if integer is None:
            raise LandmarksError(f'{path} line {line} has the landmark_id "{number}"', expected="a whole number")
        folder, landmark_id = normalised_name(listed_as), int(integer[1])
        landmark = Landmark(landmark_id, name or str(landmark_id), category or None)
        if listed.setdefault(folder, landmark) != landmark:
            raise LandmarksError(f'{path} line {line} lists the folder "{folder}" again, as another landmark')
        if folder_of.setdefault(landmark_id, folder) != folder:
            raise LandmarksError(
                f'{path} line {line} gives the landmark_id {landmark_id} to the folder "{folder}"',
                received=f'the same for "{folder_of[landmark_id]}"',
                way_out="give each its own",
            )
    return listed
