"""Names as people spell them: of splits, of the columns of CSVs, and of landmarks, where these raise doubts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from landmarks.dataset.naming import UNKNOWN, normalised_name

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


# ── Names of landmarks that may not be meant as they stand ──────────────────────────────────────────────────────────


_NOTHING = frozenset(
    {
        "unknown", "unknowns", "none", "nan", "null", "na", "n/a", "nothing", "unlabeled", "unlabelled", "no label",
        "not a landmark", "no landmark", "non landmark", "undefined", "background", "other", "others", "negative",
        "negatives", "distractor", "distractors", "clutter", "background google",
    }
)  # fmt: skip
"""What people call images that show nothing known, in the form that `_key` returns."""

_SHOWN = 3


def remarks_about_names(names: Iterable[str]) -> list[str]:
    """Return remarks about names of landmarks that the user should check; all are taken as they are."""
    names = sorted(set(names))
    return [
        *_spellings(names),
        *_nothing(names),
        *_numbers(names),
        *_shortened(names),
        *_several(names),
        *_lists(names),
    ]


def remarks_about_folders(folders: Iterable[str]) -> list[str]:
    """Return a remark about folders that are one landmark although their names differ, such as `cat` and `cat `."""
    folders_of: dict[str, set[str]] = {}
    for folder in folders:
        folders_of.setdefault(normalised_name(folder), set()).add(folder)
    several = [sorted(same) for same in folders_of.values() if len(same) > 1]
    if not several:
        return []
    some = _some(" = ".join(f'"{name}"' for name in same) for same in several)
    return [f"folders that differ by spaces around their names, or by the form of Unicode, are one landmark: {some}"]


def integer_labels(names: Iterable[str]) -> dict[str, str]:
    """Return name → `3` for names such as `3.0`, if all names are such numbers; else an empty dict.

    Tables with gaps write integers in this form. If two names would become one, such as `3.0` and `3.00`, all stay.
    """
    found = {name: re.fullmatch(r"([0-9]{1,18})\.0+", name) for name in set(names)}
    integers = {name: number[1] for name, number in found.items() if number is not None}
    return integers if len(set(integers.values())) == len(found) else {}


def alike_names(names: Iterable[str]) -> list[list[str]]:
    """Return the names that hardly differ from another one, such as `Cat` and `cat`, together with it."""
    names_of: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        names_of.setdefault(_key(name), []).append(name)
    return [same for same in names_of.values() if len(same) > 1]


def _spellings(names: list[str]) -> list[str]:
    several = alike_names(names)
    if not several:
        return []
    some = _some(" and ".join(f'"{name}"' for name in same) for same in several)
    return [f"names that hardly differ are taken as different landmarks: {some}"]


def _nothing(names: list[str]) -> list[str]:
    found = [name for name in names if _key(name).strip("_") in _NOTHING]
    if not found:
        return []
    some = _some(f'"{name}"' for name in found)
    return [f"{some} is taken as a landmark; were it images of nothing known: call it {UNKNOWN}"]


def _numbers(names: list[str]) -> list[str]:
    odd = [name for name in names if not (name.isascii() and name.isdigit())]
    if not odd or 2 * len(odd) >= len(names):
        return []
    return [f'landmark ids are positions of the sorted names and not the numbers in them, as "{odd[0]}" is none']


def _shortened(names: list[str]) -> list[str]:
    found = [name for name in names if re.fullmatch(r"[0-9]+(?:[.,][0-9]+)?[eE]\+[0-9]+", name)]
    if not found:
        return []
    return [
        f'"{found[0]}" is a number that a spreadsheet shortened: several labels may have become one; save them as text'
    ]


def _several(names: list[str]) -> list[str]:
    known = set(names)
    for separator in "|;,/+& ":
        for name in names:
            parts = [normalised_name(part) for part in name.split(separator)]
            if len(parts) > 1 and known.issuperset(parts):
                return [f'"{name}" is taken as one landmark, although {" and ".join(parts)} are landmarks too']
    return []


_QUOTES = "'\"\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb"


def _lists(names: list[str]) -> list[str]:
    found = [name for name in names if re.fullmatch(r"""[\[({]\s*(["']).*\1\s*,?\s*[\])}]""", name, re.DOTALL)]
    if not found:
        return []
    return [f"{found[0]} is taken as one landmark, and looks like a list as programs write it: write the label alone"]


def _key(name: str) -> str:
    """Return a key that is equal for names a person takes for the same.

    It ignores case, separators, invisible letters and quotes around the name; 3, 3.0 and 03 are the same.
    """
    visible = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    key = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", visible.casefold().strip().strip(_QUOTES)) or name
    number = re.fullmatch(r"0*([0-9]+?)(?:\.0+)?", key)
    return number[1] if number else key


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
