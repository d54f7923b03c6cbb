"""What a setting may be: its kind from the field's annotation, its limits from what stands beside it there.

A field of a record that is filled from outside is written once: `epochs: Annotated[int, Within(0, 1000)] = 10`.
`require` checks one value, `require_fields` a whole record; both raise `UsageError` and nothing else.
"""

from __future__ import annotations

import functools
import types
import typing
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any

from landmarks.support.errors import UsageError, did_you_mean

LONGEST = 80
"""Characters of a refused value that are shown."""


@dataclass(frozen=True)
class Within:
    """Limits of a number, which are allowed themselves unless `above` or `below` is set; never NaN or infinite."""

    least: float
    most: float
    above: bool = False  # more than `least`
    below: bool = False  # less than `most`
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        enough = value > self.least if self.above else value >= self.least
        return enough and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        least = f"more than {self.least:,}" if self.above else f"{self.least:,} or more"
        most = f"below {self.most:,}" if self.below else f"at most {self.most:,}"
        return f"{self.unit}, {least}, {most}".removeprefix(", ")


@dataclass(frozen=True)
class OneOf:
    """The words that a setting may be."""

    words: tuple[str, ...]


def require_fields(record: object, what: str) -> None:
    """Raise `UsageError` for the first field of the dataclass `record` that is not what its annotation allows."""
    for name, annotation in annotations_of(type(record)).items():  # type: ignore[arg-type]  # it is a class
        require(f"{what} {name}", getattr(record, name), annotation)


@functools.cache
def annotations_of(kind: type[Any]) -> dict[str, Any]:
    """Return the annotations of the fields of the dataclass `kind`, limits included."""
    return typing.get_type_hints(kind, include_extras=True)


def require(what: str, value: Any, annotation: Any) -> None:
    """Raise `UsageError` unless `value` is of the kind, and within the limits, that `annotation` names."""
    kind, limit, nullable = _parts(annotation)
    if value is None and nullable:
        return
    if isinstance(limit, OneOf) and isinstance(value, str) and value not in limit.words:
        raise UsageError(
            f"{what} cannot be {shown(value)}",
            expected=", ".join(limit.words),
            way_out=did_you_mean(value, limit.words),
        )
    if not _is(value, kind) or (isinstance(limit, Within) and value not in limit):
        limits = f" ({limit})" if isinstance(limit, Within) else " (a line, not empty)" if kind is str else ""
        expected = f"{getattr(kind, '__name__', kind)}{limits}{' or null' if nullable else ''}"
        raise UsageError(f"{what} cannot be used", received=shown(value), expected=expected)


def _parts(annotation: Any) -> tuple[Any, object, bool]:
    """Return kind, limit (None where there is none), and whether None is allowed."""
    nullable = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = (each for each in typing.get_args(annotation) if each is not type(None))
        nullable = True
    if typing.get_origin(annotation) is Annotated:
        kind, limit = typing.get_args(annotation)[:2]
        return kind, limit, nullable
    return annotation, None, nullable


def _is(value: object, kind: Any) -> bool:
    """Whether `value` is of `kind`: a bool is no number, a whole number is a float, a text is one line."""
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and value != "" and not any(unicodedata.category(c) == "Cc" for c in value)
    return isinstance(value, typing.get_origin(kind) or kind)


def shown(value: object) -> str:
    """Return `value` as an error shows it: in one short line, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in a list in a list …
        return f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
