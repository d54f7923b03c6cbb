"""How numbers and names read on the page: the same number looks the same everywhere."""

from __future__ import annotations

import contextlib
import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

import polars as pl

MAX_NAME = 120
"""Characters of a name or title that the page shows; the tables beside the page hold all of it."""


def readable(text: object, longest: int = MAX_NAME) -> str:
    """Return a stranger's text on one line: no control or direction-changing characters, cut with an ellipsis."""
    clean = str(text)
    if not clean.isprintable():
        clean = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") else c for c in clean)
    clean = " ".join(clean.split())
    return clean if len(clean) <= longest else clean[: longest - 1].rstrip() + "…"


TITLES = {
    "auroc": "AUROC",
    "auroc_chosen": "AUROC where chosen",
    "ece": "ECE",
    "ece_before_temperature": "ECE before temperature",
    "gap": "GAP",
    "gap_of_usage": "GAP of usage",
    "gmacs": "GMACs",
    "lost": "Landmarks lost",
    "rejected": "Unknown rejected",
    "top1": "Top-1",
    "top5": "Top-5",
}
"""What stands over a number on the page, where its name alone does not read well."""


def titled(name: str) -> str:
    """Return the heading of a number, the same over its column and over its definition."""
    plain = readable(name.replace("_", " "), 40)
    return TITLES.get(name, plain[:1].upper() + plain[1:])


def number(value: Any) -> float | None:
    """Return the number in `value`, which is one, or a record with a "value", or nothing."""
    if isinstance(value, Mapping):
        value = value.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if math.isnan(value) else float(value)


def bounds(value: Any) -> tuple[float, float] | None:
    """Return `(low, high)` of a record that has both."""
    if not isinstance(value, Mapping):
        return None
    low, high = number(value.get("low")), number(value.get("high"))
    return None if low is None or high is None else (low, high)


def percent(value: Any, digits: int = 1) -> str:
    """Return a share as `93.8 %`, or a dash when it was not measured."""
    share = number(value)
    return "–" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def interval(value: Any, digits: int = 1) -> str:
    """Return the bounds of a share as `91.7–95.4 %`, or an empty text when it has none."""
    pair = bounds(value)
    return "" if pair is None else f"{100 * pair[0]:.{digits}f}–{100 * pair[1]:.{digits}f}\N{NO-BREAK SPACE}%"


def decimal(value: Any, digits: int = 3) -> str:
    """Return a number with `digits` decimals, or a dash."""
    amount = number(value)
    if amount is None:
        return "–"
    text = f"{amount:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def count(value: Any) -> str:
    """Return a whole number with commas, or a dash."""
    amount = number(value)
    return "–" if amount is None else f"{round(amount):,}"


def plural(amount: int, one: str, many: str = "") -> str:
    """Return `1 image` or `1,200 images`."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def millions(value: Any) -> str:
    """Return a count of parameters as `25.6 M` (below ten thousand as it is)."""
    amount = number(value)
    if amount is None or amount < 1e4:
        return count(amount)
    return f"{amount / 1e6:.{2 if amount < 1e7 else 1}f}\N{NO-BREAK SPACE}M"


def duration(seconds: Any) -> str:
    """Return a time as `41 s`, `12 min 05 s` or `3 h 20 min`."""
    amount = number(seconds)
    if amount is None:
        return "–"
    if amount < 10:
        return f"{amount:.1f} s"
    minutes, rest = divmod(round(amount), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def display_names(labels: pl.DataFrame) -> list[str]:
    """Return one readable name per label, in the order of `label`; equal or missing names get their landmark id."""
    labels = labels.sort("label")
    ids = labels["landmark_id"].to_list()
    names = labels["name"].to_list() if "name" in labels.columns else [None] * len(ids)
    clean = [readable(name) if name else "" for name in names]
    seen: dict[str, int] = {}
    for name in clean:
        seen[name] = seen.get(name, 0) + 1
    return [
        f"landmark {id}" if not name else name if seen[name] == 1 else f"{name} ({id})"
        for name, id in zip(clean, ids, strict=True)
    ]


def in_words(value: Any) -> str:
    """Return any value of a record as one short readable text."""
    if value is None or isinstance(value, bool):
        text = {None: "none", True: "yes", False: "no"}[value]
    elif isinstance(value, int):
        text = f"{value:,}" if abs(value) >= 10_000 else str(value)
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, Mapping):
        text = ", ".join(f"{key} {in_words(one)}" for key, one in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(in_words(one) for one in value)
    else:
        text = str(value)
    return readable(text, 400)


def facts(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a record as readable (name, value) pairs; a nested record's name stands before its own."""
    pairs: list[tuple[str, str]] = []
    for key, told in record.items():
        name, value = f"{prefix}{key}", _unpacked(told)
        if isinstance(value, Mapping) and value:
            pairs += facts(value, f"{name} ")
        else:
            pairs.append((readable(name), in_words(value)))
    return pairs


def _unpacked(value: Any) -> Any:
    """Return what a text holds as JSON (the metadata of tables knows only texts), else the value as it is."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value
