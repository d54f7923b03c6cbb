"""Names of splits and of CSV columns in the spellings that people use."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPLIT_WORDS = {
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
_AFFIX = r"(?:sets?|data|split|part|images?|imgs?|photos?|pictures?|folder|dir|[0-9]{4})"

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
"""Column → the names it may have in a CSV; the first takes precedence over the others."""

FALLBACKS = {
    "path": ("image_id", "imageid", "id"),
    "label": ("landmark_id", "class_id", "label_id", "category_id", "class_index", "label_index"),
}
"""Column → names that are taken for it only if the CSV has none of the names in `COLUMNS`."""


def parse_split(name: str) -> str | None:
    """Return train, val or test for names such as `Training Set`, `valid` and `test_images`; None for any other."""
    word = re.sub(r"[\s_.-]+", "", name).casefold()
    for bare in (word, re.sub(f"{_AFFIX}+$", "", word), re.sub(f"^{_AFFIX}+", "", word)):
        for split, words in _SPLIT_WORDS.items():
            if bare in words:
                return split
    return None


def split_in_words(name: str) -> str | None:
    """Return the split among the words of a name (`X_train`, `test1`); None if there is none or more than one."""
    splits = {split for word in words_of(name) if (split := parse_split(word))}
    return parse_split(name) or (splits.pop() if len(splits) == 1 else None)


def words_of(name: str) -> list[str]:
    """Return the words of a name, in its own case, without numbers and separators."""
    return re.findall(r"[^\W\d_]+", name)


def column_key(name: str) -> str:
    """Return a column's name for comparison: lower case, words joined by `_`, stripped."""
    return re.sub(r"[\s-]+", "_", name.strip().strip("\ufeff").strip().casefold())


def find_columns(names: Sequence[str], wanted: str) -> list[int]:
    """Return the positions in a header of the column `wanted`; more than one if it is ambiguous.

    Words may be joined by `_` or by nothing: `ClassId` is `class_id`.
    """
    keys = [column_key(name).replace("_", "") for name in names]
    exact = [place for place, key in enumerate(keys) if key == COLUMNS[wanted][0]]
    if exact:
        return exact
    synonyms = [place for place, key in enumerate(keys) if key in _joined(COLUMNS[wanted])]
    if synonyms:
        return synonyms
    for fallback in _joined(FALLBACKS.get(wanted, ())):
        if fallback in keys:
            return [place for place, key in enumerate(keys) if key == fallback]
    return []


def is_fallback(name: str, wanted: str) -> bool:
    """Return whether a column of this name is taken for `wanted` only if there is no better one."""
    return column_key(name).replace("_", "") in _joined(FALLBACKS.get(wanted, ()))


def _joined(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.replace("_", "") for name in names))


def may_be_split_column(name: str) -> bool:
    """Return whether a column of this name may hold the split in another form: `is_valid`, `fold`."""
    return re.sub(r"^is", "", column_key(name).replace("_", "")) in _SPLIT_COLUMNS


_SPLIT_COLUMNS = frozenset(
    {*(word for words in _SPLIT_WORDS.values() for word in words), "fold", "folds", "kfold", "cvfold"}
)
