"""The archive as people have unpacked it: images in folders of their ids' first digits, and the CSV that labels them.

    archive/metadata/train.csv
    archive/train/0/0/c/00cba0067c078490.jpg

The CSV may also lie in `archive` or `archive/train`, and each TAR have a folder of its own (`images_000/0/0/c/…`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from landmarks.dataset.sources import folders_in
from landmarks.support.places import in_shell

SETS = ("train", "index", "test")

_DIGITS = "[0-9a-f]/[0-9a-f]/[0-9a-f]"


@dataclass
class UnpackedArchive:
    """Finds images of the archive by their ids, around a CSV in `folder`."""

    folder: Path
    _by_digits: dict[str, dict[str, Path]] = field(default_factory=dict)  # first digits → file → its folder

    @functools.cached_property
    def folders(self) -> list[Path]:
        """The folders that hold 0 to f; none if nothing was unpacked here."""
        here = self.folder.absolute()
        return _with_digits([self.folder, *([here.parent] if here.name == "metadata" else [])])

    def find(self, image_id: str) -> Path | None:
        """Return the file of an image, or None; each folder is listed once, however many images are asked for."""
        digits, name = image_id[:3], f"{image_id}.jpg"
        if digits not in self._by_digits:
            self._by_digits[digits] = {}
            for folder in (each.joinpath(*digits) for each in self.folders):
                with contextlib.suppress(OSError):  # it has no such folder
                    for file in os.listdir(folder):  # noqa: PTH208 (there are millions)
                        self._by_digits[digits].setdefault(file, folder)
        folder_of_image = self._by_digits[digits].get(name)
        path = None if folder_of_image is None else folder_of_image / name
        return path if path is not None and path.is_file() else None


def unpacked_example(folder: Path) -> Path | None:
    """Return an unpacked image of the archive below `folder`, or None if there is none."""
    for holder in _with_digits([folder]):
        for image in holder.glob(f"{_DIGITS}/*.jpg"):
            if re.fullmatch("[0-9a-f]{16}", image.stem) and image.parts[-4:-1] == tuple(image.stem[:3]):
                return image
    return None


def way_to_import(folder: Path) -> str:
    """Return how to import the unpacked images of the archive's training set in `folder`, or in the folder above it."""
    if folder.absolute().name == "index":
        return "the index set is taken from its TARs"
    if folder.absolute().name == "test":
        return "the test set is taken from its TARs, with what it shows: landmarks select MIRROR --set test, then fetch"
    near = [folder, folder / "metadata", folder / "train"]
    above = folder.absolute().parent
    near += [above, above / "metadata"] if folder.absolute().name == "train" else []
    csv = next((place / "train.csv" for place in near if (place / "train.csv").is_file()), None)
    if csv is None:
        missing = in_shell(folder / "train.csv")
        return f"bring the archive's train.csv, which knows what they show, to {missing}; landmarks import takes that"
    return (
        f"landmarks import {in_shell(csv)} -o DATA --by-reference makes a dataset of all of them where they lie, from"
        " which landmarks select chooses"
    )


def _with_digits(bases: list[Path]) -> list[Path]:
    """Return those of `bases`, of the sets' folders in them and of the TARs' in these, that hold 0 to f."""
    places = [place for base in bases for place in (base, *(base / set for set in SETS))]
    tars = (tar for place in places for tar in folders_in(place) if re.fullmatch("images_[0-9]{3}", tar.name))
    return [place for place in (*places, *tars) if next(place.glob(_DIGITS), None) is not None]
