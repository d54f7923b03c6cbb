"""Names of landmarks that may not be meant as they stand: two spellings of one, numbers, and words for no landmark."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from landmarks.dataset.naming import UNKNOWN, plain

_NOTHING = frozenset(
    {
        "unknown", "unknowns", "none", "nan", "null", "na", "n/a", "nothing", "unlabeled", "unlabelled", "no label",
        "not a landmark", "no landmark", "non landmark", "undefined", "background", "other", "others", "negative",
        "negatives", "distractor", "distractors", "clutter",
    }
)  # fmt: skip
"""What people call images that show nothing known, as `_alike` gives it."""

_TOLD = 3


def doubts_about(names: Iterable[str]) -> list[str]:
    """Return remarks about names of landmarks that a person should look at; they are all taken as they stand."""
    names = sorted(set(names))
    return [*_spellings(names), *_nothing(names), *_numbers(names), *_several(names)]


def one_landmark_of_several(folders: Iterable[str]) -> list[str]:
    """Return a remark about folders that are one landmark although they are called differently, `cat` and `cat `."""
    called: dict[str, set[str]] = {}
    for folder in folders:
        called.setdefault(plain(folder), set()).add(folder)
    several = [sorted(same) for same in called.values() if len(same) > 1]
    if not several:
        return []
    told = _some(" = ".join(f'"{name}"' for name in same) for same in several)
    return [f"folders that differ by spaces around their names, or by the form of Unicode, are one landmark: {told}"]


def whole_numbers(names: Iterable[str]) -> dict[str, str]:
    """Return `3` for each `3.0` where all names are such numbers, as a table with gaps writes whole ones; else nothing.

    Two that would become one, such as `3.0` and `3.00`, stay as they are.
    """
    found = {name: re.fullmatch(r"([0-9]{1,18})\.0+", name) for name in set(names)}
    whole = {name: number[1] for name, number in found.items() if number is not None}
    return whole if len(set(whole.values())) == len(found) else {}


def _spellings(names: list[str]) -> list[str]:
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_alike(name), []).append(name)
    several = [same for same in alike.values() if len(same) > 1]
    if not several:
        return []
    told = _some(" and ".join(f'"{name}"' for name in same) for same in several)
    return [f"names that hardly differ are taken as different landmarks: {told}"]


def _nothing(names: list[str]) -> list[str]:
    found = [name for name in names if _alike(name).strip("_") in _NOTHING]
    if not found:
        return []
    told = _some(f'"{name}"' for name in found)
    return [f"{told} is taken as a landmark; were it images of nothing known: call it {UNKNOWN}"]


def _numbers(names: list[str]) -> list[str]:
    odd = [name for name in names if not (name.isascii() and name.isdigit())]
    if not odd or 2 * len(odd) >= len(names):
        return []
    return [f'landmark ids are positions of the sorted names and not the numbers in them, as "{odd[0]}" is none']


def _several(names: list[str]) -> list[str]:
    known = set(names)
    for separator in "|;,/+& ":
        for name in names:
            parts = [plain(part) for part in name.split(separator)]
            if len(parts) > 1 and known.issuperset(parts):
                return [f'"{name}" is taken as one landmark, although {" and ".join(parts)} are landmarks too']
    return []


def _alike(name: str) -> str:
    """Return what is the same for names that a person takes for one: case, spaces, what is invisible, 3 = 3.0 = 03."""
    seen = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    seen = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", seen.casefold().strip()) or name
    number = re.fullmatch(r"0*([0-9]+?)(?:\.0+)?", seen)
    return number[1] if number else seen


def _some(told: Iterable[str]) -> str:
    told = list(told)
    return ", ".join(told[:_TOLD]) + (f" and {len(told) - _TOLD:,} more" if len(told) > _TOLD else "")
