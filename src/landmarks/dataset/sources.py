"""What lies in a folder of images, or in a CSV of paths and labels: files, names and splits, nothing opened yet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from landmarks.dataset.manifest import SPLITS
from landmarks.dataset.naming import LABELS_CSV, UNKNOWN, UNPACKED, Landmark, plain, read_labels_csv, safe_name
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.files import digest_of
from landmarks.support.systems import is_text, readable, require_text

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip
"""Files that call themselves images. Some cannot be decoded; they are rejected by name rather than overlooked."""

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Folders that are splits when nothing else lies beside them, `train` is there, and all of them hold folders."""

COLUMNS = ("path", "label", "id", "split", "author", "license", "title")
"""Columns of a CSV; the first two are required, the rest is used where it is there."""


@dataclass(frozen=True)
class Found:
    """One file that should become an image."""

    path: Path
    where: str  # relative to the source, with forward slashes
    name: str | None  # of the landmark; None: nothing known
    split: str | None = None
    id: str = ""
    author: str | None = None
    license: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Source:
    """Everything found at one place."""

    rule: str
    found: list[Found] = field(default_factory=list)  # sorted by `where`, each with its own id
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (where, why)
    others: int = 0  # files that do not call themselves images
    hidden: int = 0  # files and folders whose names begin with a dot
    listed: dict[str, Landmark] | None = None  # from labels.csv

    @property
    def has_splits(self) -> bool:
        """Whether the source says which split each image is in."""
        return bool(self.found) and self.found[0].split is not None


@dataclass(frozen=True)
class FolderImages:
    """What lies in a folder and below it, by name alone."""

    images: list[Path]  # sorted; links and things that are no files among them, so that they can be named
    linked_folders: list[Path]  # not followed
    others: list[Path]  # no images by name
    hidden: int  # files and folders whose names begin with a dot, nothing in such a folder counted


def images_in(folder: Path) -> FolderImages:
    """List the images in `folder` and in the folders below it, by the endings of their names (`SUFFIXES`)."""
    images: list[Path] = []
    linked: list[Path] = []
    others: list[Path] = []
    hidden = 0
    for here, folders, files in os.walk(folder):
        shown = sorted(name for name in folders if not name.startswith("."))
        hidden += len(folders) - len(shown) + sum(name.startswith(".") for name in files)
        folders[:] = shown
        linked += [path for path in (Path(here) / name for name in shown) if path.is_symlink()]
        for path in (Path(here) / name for name in files if not name.startswith(".")):
            (images if path.suffix.lower() in SUFFIXES else others).append(path)
    return FolderImages(sorted(images), linked, others, hidden)


def find_images(places: Sequence[Path | str]) -> list[Path]:
    """Return the files among `places` and the images in the folders among them, sorted by name in each folder.

    What is passed by in a folder is counted in a note. Raises `LandmarksError` when a place does not exist or is a
    folder without images.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            listed = images_in(place)
            images = [path for path in listed.images if path.is_file()]
            others = len(listed.others) + len(listed.linked_folders) + len(listed.images) - len(images)
            passed_by = passed_by_text(others, listed.hidden)
            if not images:
                received = passed_by or "an empty folder"
                raise LandmarksError(
                    f"the folder {place} holds no images", received=received, expected=" or ".join(SUFFIXES[:2])
                )
            if passed_by:
                note(f"{place}: passed by {passed_by}")
            found += images
        elif place.is_file():
            found.append(place)
        else:
            raise LandmarksError(f"there is no image {place}")
    return found


def passed_by_text(others: int, hidden: int) -> str:
    """Return `2 that are no images by name, 1 hidden`: what a folder holds beside images; empty for nothing."""
    counted = {"that are no images by name": others, "hidden": hidden}
    return ", ".join(f"{count:,} {what}" for what, count in counted.items() if count)


def list_source(source: Path) -> Source:
    """List a folder per class, train/val/test folders of classes, or a CSV of paths and labels."""
    if source.is_dir():
        listed = _list_folder(source)
    elif source.is_file():
        listed = _list_csv(source)
    else:
        raise LandmarksError(f"there is no folder or CSV {source}")
    found = sorted(listed.found, key=lambda one: one.where)
    return replace(listed, found=_with_ids(found), rejected=sorted(listed.rejected))


def _list_folder(source: Path) -> Source:
    splits = _split_folders(source)
    found, rejected = [], []
    inside = images_in(source)
    for path in inside.images + inside.linked_folders:
        relative = path.relative_to(source)
        where = readable(relative.as_posix())
        steps = relative.parts[:-1]
        if why := _unfit(path, source):
            rejected.append((where, why))
        elif splits and not steps:
            rejected.append((where, "it lies beside the folders of splits, in none of them"))
        else:
            split = splits[steps[0]] if splits else None
            classes = steps[1:] if splits else steps
            name = plain(classes[0]) if classes and classes[0] != UNKNOWN else None
            found.append(Found(path, where, name, split))
    rule = f"a folder per landmark in {', '.join(splits)}" if splits else "a folder per landmark"
    listed = source / LABELS_CSV
    ours = (listed, source / UNPACKED)
    return Source(
        rule,
        found,
        rejected,
        others=sum(path not in ours for path in inside.others),
        hidden=inside.hidden,
        listed=read_labels_csv(listed) if listed.is_file() else None,
    )


def _split_folders(source: Path) -> dict[str, str]:
    """Return folder → split, or nothing when the folders at the top are landmarks."""
    folders = [entry for entry in source.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    names = [folder.name for folder in folders]
    hold_folders = all(any(inner.is_dir() for inner in folder.iterdir()) for folder in folders)
    if "train" not in names or any(name not in SPLIT_FOLDERS for name in names) or not hold_folders:
        return {}
    return {name: SPLIT_FOLDERS[name] for name in sorted(names)}


def _unfit(path: Path, source: Path) -> str:
    """Return why a file is not even opened, or an empty string."""
    if not is_text(path.relative_to(source)):
        return "its name is not valid UTF-8"
    if path.is_symlink():
        if path.is_dir():
            return "a link to a folder"
        if not path.resolve().is_relative_to(source.resolve()):
            return "a link that leads outside the folder"
    return "" if path.is_file() else "not a file"


def _list_csv(source: Path) -> Source:
    require_text(source)
    try:
        table = pl.read_csv(source, infer_schema=False).fill_null("")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LandmarksError(f"{source} cannot be read as a CSV ({str(error).splitlines()[0]})") from error
    table = table.rename({name: name.strip().lower() for name in table.columns})
    if "split" not in table.columns:  # what the column was called before
        table = table.rename({"part": "split"}, strict=False)
    for required in COLUMNS[:2]:
        if required not in table.columns:
            raise UsageError(
                f'{source} has no column "{required}"',
                received=", ".join(table.columns),
                expected=", ".join(COLUMNS),
                way_out=did_you_mean(required, table.columns),
            )
    found: dict[str, Found] = {}
    rejected = []
    for row in table.select(name for name in COLUMNS if name in table.columns).iter_rows(named=True):
        one = _from_row(source, row)
        if one.where in found:
            rejected.append((one.where, "listed more than once"))
        elif not one.path.is_file():
            rejected.append((one.where, "there is no such file"))
        else:
            found[one.where] = one
    if len({one.split is None for one in found.values()}) > 1:
        raise UsageError(f"{source} gives a split to some images only", way_out="give one to all, or to none")
    return Source(f"the CSV {source.name}", list(found.values()), rejected)


def _from_row(source: Path, row: dict[str, str]) -> Found:
    split = row.get("split", "").strip().lower()
    if split and split not in SPLIT_FOLDERS:
        raise UsageError(f'{source} names the split "{split}"', expected=", ".join(SPLITS))
    label = plain(row["label"])
    return Found(
        path=source.parent / row["path"],
        where=row["path"],
        name=None if label in ("", UNKNOWN) else label,
        split=SPLIT_FOLDERS[split] if split else None,
        id=row.get("id", ""),
        author=row.get("author") or None,
        license=row.get("license") or None,
        title=row.get("title") or None,
    )


def _with_ids(found: list[Found]) -> list[Found]:
    """Return `found` with an id for each: the file's name where no other file has it, else with a digest of its path.

    So images keep their ids through `unpack` and `import`, and two files of one name stay two images.
    """
    stems = [Path(one.where).stem for one in found]
    often = Counter(plain(stem).casefold() for stem in stems)
    whole = []
    for one, stem in zip(found, stems, strict=True):
        mine = one.id or (stem if often[plain(stem).casefold()] == 1 else "")
        if not mine or mine != safe_name(mine):
            mine = f"{safe_name(mine or stem)}-{digest_of(one.where)[:12]}"
        whole.append(replace(one, id=mine))
    return whole


def refuse_foreign(out: Path, marks: tuple[str, ...], what: str) -> None:
    """Raise when `out` is a file, or a folder with contents that are none of ours."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", way_out="choose another folder")
    if not out.exists() or any((out / mark).exists() for mark in marks):
        return
    contents = sorted(entry.name for entry in out.iterdir() if entry.name != ".lock")
    if contents:
        raise UsageError(
            f"{out} is not empty and holds no {what}", received=contents[0], way_out="choose another folder"
        )
