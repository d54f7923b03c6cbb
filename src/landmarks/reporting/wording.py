"""Format numbers and names for the page, the same way everywhere."""

from __future__ import annotations

import contextlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

MAX_NAME = 120
"""Characters of a name or title that the page shows; the CSVs beside the page hold all of them."""


def one_line(text: object, longest: int = MAX_NAME) -> str:
    """Return untrusted text on one line, cut with an ellipsis, without control or direction-changing characters."""
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
"""Headings of numbers on the page whose names alone do not read well."""


def heading(name: str) -> str:
    """Return the heading of the number called `name`, for its column and for its definition."""
    plain = one_line(name.replace("_", " "), 40)
    return TITLES.get(name, plain[:1].upper() + plain[1:])


def number(value: Any) -> float | None:
    """Return `value` as a number, or its entry "value" if it is a record; None if there is none."""
    if isinstance(value, Mapping):
        value = value.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if math.isnan(value) else float(value)


def bounds(value: Any) -> tuple[float, float] | None:
    """Return `(low, high)` of a record, or None if it does not have both."""
    if not isinstance(value, Mapping):
        return None
    low, high = number(value.get("low")), number(value.get("high"))
    return None if low is None or high is None else (low, high)


def percentage(value: Any, digits: int = 1) -> str:
    """Return a share as `93.8 %`, or a dash if it was not measured."""
    share = number(value)
    return "–" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def interval(value: Any, digits: int = 1) -> str:
    """Return the bounds of a share as `91.7–95.4 %`, or an empty string if it has none."""
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


def millions(value: Any) -> str:
    """Return a count of parameters as `25.6 M`, or in full below ten thousand."""
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
    """Return a unique name per label, in the order of `label`: repeated and missing names get their landmark id."""
    labels = labels.sort("label")
    ids = labels["landmark_id"].to_list()
    names = labels["name"].to_list() if "name" in labels.columns else [None] * len(ids)
    clean = [one_line(name) if name else "" for name in names]
    counts = Counter(clean)
    return [
        f"landmark {id}" if not name else name if counts[name] == 1 else f"{name} ({id})"
        for name, id in zip(clean, ids, strict=True)
    ]


def format_value(value: Any) -> str:
    """Return any value of a record as a short text on one line."""
    if value is None or isinstance(value, bool):
        text = {None: "none", True: "yes", False: "no"}[value]
    elif isinstance(value, int):
        text = f"{value:,}" if abs(value) >= 10_000 else str(value)
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, Mapping):
        text = ", ".join(f"{key} {format_value(inner)}" for key, inner in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(format_value(inner) for inner in value)
    else:
        text = str(value)
    return one_line(text, 400)


def facts(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a record as (name, value) pairs of text; names of nested records are prefixed with their parents'."""
    pairs: list[tuple[str, str]] = []
    for key, raw in record.items():
        name, value = f"{prefix}{key}", _parsed(raw)
        if isinstance(value, Mapping) and value:
            pairs += facts(value, f"{name} ")
        else:
            pairs.append((one_line(name), format_value(value)))
    return pairs


def _parsed(value: Any) -> Any:
    """Return a string that holds JSON as what it holds (table metadata are all strings), any other value as it is."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value
