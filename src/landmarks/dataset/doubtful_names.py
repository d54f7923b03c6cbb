"""Remarks about doubtful names of landmarks: two spellings of one, numbers, and words for no landmark."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from landmarks.dataset.naming import UNKNOWN, normalised_name

_NOTHING = frozenset(
    {
        "unknown", "unknowns", "none", "nan", "null", "na", "n/a", "nothing", "unlabeled", "unlabelled", "no label",
        "not a landmark", "no landmark", "non landmark", "undefined", "background", "other", "others", "negative",
        "negatives", "distractor", "distractors", "clutter",
    }
)  # fmt: skip
"""What people call images that show nothing known, in the form that `_key` returns."""

_SHOWN = 3


def remarks_about_names(names: Iterable[str]) -> list[str]:
    """Return remarks about names of landmarks that the user should check; all are taken as they are."""
    names = sorted(set(names))
    return [*_spellings(names), *_nothing(names), *_numbers(names), *_several(names)]


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


def _spellings(names: list[str]) -> list[str]:
    names_of: dict[str, list[str]] = {}
    for name in names:
        names_of.setdefault(_key(name), []).append(name)
    several = [same for same in names_of.values() if len(same) > 1]
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


def _several(names: list[str]) -> list[str]:
    known = set(names)
    for separator in "|;,/+& ":
        for name in names:
            parts = [normalised_name(part) for part in name.split(separator)]
            if len(parts) > 1 and known.issuperset(parts):
                return [f'"{name}" is taken as one landmark, although {" and ".join(parts)} are landmarks too']
    return []


def _key(name: str) -> str:
    """Return a key that is equal for names a person takes for the same.

    It ignores case, separators and invisible letters; 3, 3.0 and 03 are the same.
    """
    visible = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    key = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", visible.casefold().strip()) or name
    number = re.fullmatch(r"0*([0-9]+?)(?:\.0+)?", key)
    return number[1] if number else key


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
