"""Words as people spell them: names of splits and of a CSV's columns, in any case, with or without `set` and `_`."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MEANT = {
    "train": ("train", "training", "trn", "learn", "learning"),
    "val": (
        "val",
        "valid",
        "validation",
        "validate",
        "validating",
        "dev",
        "devel",
        "development",
        "eval",
        "evaluation",
    ),
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

STAND_IN = {
    "path": ("image_id", "imageid", "id"),
    "label": ("landmark_id", "class_id", "label_id", "category_id", "class_index", "label_index"),
}
"""What is meant where no column has any of these names."""


def split_meant(name: str) -> str | None:
    """Return train, val or test for what people call them (`Training Set`, `valid`, `test_images`); None for others."""
    word = re.sub(r"[\s_.-]+", "", name).casefold()
    for bare in (word, re.sub(f"{_BESIDE}+$", "", word), re.sub(f"^{_BESIDE}+", "", word)):
        for split, words in _MEANT.items():
            if bare in words:
                return split
    return None


def split_in(name: str) -> str | None:
    """Return the one split that a name tells in its words (`X_train`, `test1`); None for none and for several."""
    told = {split for word in words_of(name) if (split := split_meant(word))}
    return split_meant(name) or (told.pop() if len(told) == 1 else None)


def words_of(name: str) -> list[str]:
    """Return the words of a name, in its own case, without numbers and what stands between."""
    return re.findall(r"[^\W\d_]+", name)


def column_key(name: str) -> str:
    """Return a column's name as it is compared: lower case, words joined by `_`, nothing around it."""
    return re.sub(r"[\s-]+", "_", name.strip().strip("\ufeff").strip().casefold())


def columns_meant(names: Sequence[str], wanted: str) -> list[int]:
    """Return where in a header the column `wanted` stands; several places where that cannot be known.

    Words may be joined by `_` or by nothing: `ClassId` is `class_id`.
    """
    keys = [column_key(name).replace("_", "") for name in names]
    exact = [place for place, key in enumerate(keys) if key == COLUMNS[wanted][0]]
    if exact:
        return exact
    known = [place for place, key in enumerate(keys) if key in _joined(COLUMNS[wanted])]
    if known:
        return known
    for stand_in in _joined(STAND_IN.get(wanted, ())):
        if stand_in in keys:
            return [place for place, key in enumerate(keys) if key == stand_in]
    return []


def is_stand_in(name: str, wanted: str) -> bool:
    """Return whether a column of this name is taken for `wanted` only where no better one is there."""
    return column_key(name).replace("_", "") in _joined(STAND_IN.get(wanted, ()))


def _joined(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.replace("_", "") for name in names))


def may_be_split(name: str) -> bool:
    """Return whether a column is called as columns are that say the split in other words: `is_valid`, `fold`."""
    return re.sub(r"^is", "", column_key(name).replace("_", "")) in _SPLIT_COLUMNS


_SPLIT_COLUMNS = frozenset({*(word for words in _MEANT.values() for word in words), "fold", "folds", "kfold", "cvfold"})
