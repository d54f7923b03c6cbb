"""Words as people spell them: names of splits and of a CSV's columns, in any case, with or without `set` and `_`."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MEANT = {
    "train": ("train", "training", "trn", "learn", "learning"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"),
    "test": ("test", "testing", "tests", "tst"),
}
_BESIDE = r"(?:sets?|data|split|part|images?|imgs?|photos?|pictures?|folder|dir|[0-9]{4})"

COLUMNS = {
    "path": (
        "path", "file", "filename", "filepath", "file_name", "file_path", "image", "image_path", "image_file",
        "image_name", "fname", "imagepath", "imagename", "img", "img_path", "img_name", "image_filename", "photo",
        "picture", "filenames", "filepaths", "image_names", "image_paths", "paths",
    ),
    "label": (
        "label", "class", "class_name", "classname", "label_name", "landmark", "landmark_name", "category", "target",
        "labels", "cls", "species",
    ),
    "id": ("id", "image_id"),
    "split": ("split", "part", "subset", "partition", "set"),
    "author": ("author", "photographer", "creator", "artist"),
    "license": ("license", "licence"),
    "title": ("title",),
}  # fmt: skip
"""Column → the names under which it is known; where the first is there, it is meant."""

STAND_IN = {"path": ("image_id", "imageid", "id"), "label": ("landmark_id", "class_id", "label_id")}
"""What is meant where no column has any of these names."""


def split_meant(name: str) -> str | None:
    """Return train, val or test for what people call them (`Training Set`, `valid`, `test_images`); None for others."""
    word = re.sub(r"[\s_.-]+", "", name).casefold()
    for bare in (word, re.sub(f"{_BESIDE}+$", "", word), re.sub(f"^{_BESIDE}+", "", word)):
        for split, words in _MEANT.items():
            if bare in words:
                return split
    return None


def words_of(name: str) -> list[str]:
    """Return the words of a name, in its own case, without numbers and what stands between."""
    return re.findall(r"[^\W\d_]+", name)


def column_key(name: str) -> str:
    """Return a column's name as it is compared: lower case, words joined by `_`, nothing around it."""
    return re.sub(r"[\s-]+", "_", name.strip().strip("\ufeff").strip().casefold())


def columns_meant(names: Sequence[str], wanted: str) -> list[int]:
    """Return where in a header the column `wanted` stands; several places where that cannot be known."""
    keys = [column_key(name) for name in names]
    exact = [place for place, key in enumerate(keys) if key == COLUMNS[wanted][0]]
    if exact:
        return exact
    known = [place for place, key in enumerate(keys) if key in COLUMNS[wanted]]
    if known:
        return known
    for stand_in in STAND_IN.get(wanted, ()):
        if stand_in in keys:
            return [place for place, key in enumerate(keys) if key == stand_in]
    return []
