"""What the value of a setting may be: the limits, choices and meaning that stand in its annotation."""

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
class Range:
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
    may_be = allowed(annotation)
    if value is None and may_be.nullable:
        return
    limit = may_be.limit
    if isinstance(limit, OneOf) and isinstance(value, str) and value not in limit.words:
        raise UsageError(
            f"{what} cannot be {short_repr(value)}",
            expected=", ".join(limit.words),
            way_out=did_you_mean(value, limit.words),
        )
    if not _is(value, may_be.kind) or (isinstance(limit, Range) and value not in limit):
        raise UsageError(f"{what} cannot be used", received=short_repr(value), expected=may_be)


@dataclass(frozen=True)
class Allowed:
    """What an annotation says of a setting."""

    kind: Any
    limit: Range | OneOf | None
    nullable: bool
    meaning: str

    def __str__(self) -> str:
        if isinstance(self.limit, OneOf):
            text = ", ".join(self.limit.words)
        else:
            text = WORDS.get(self.kind, getattr(self.kind, "__name__", str(self.kind)))
            text += f" ({self.limit})" if self.limit is not None else ""
        return f"{text}, or null" if self.nullable else text


WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a line of text"}
"""What a person calls the kinds."""


def allowed(annotation: Any) -> Allowed:
    """Return what `annotation` allows: `Annotated[kind, Range | OneOf, "meaning"]`, with None or without."""
    nullable, kind = False, annotation
    told: tuple[Any, ...] = ()
    while typing.get_origin(kind) in (Annotated, typing.Union, types.UnionType):
        if typing.get_origin(kind) is Annotated:
            kind, *more = typing.get_args(kind)
            told = (*more, *told)
        else:
            (kind,) = (each for each in typing.get_args(kind) if each is not type(None))
            nullable = True
    limit = next((one for one in told if isinstance(one, Range | OneOf)), None)
    return Allowed(kind, limit, nullable, next((one for one in told if isinstance(one, str)), ""))


def _is(value: object, kind: Any) -> bool:
    """Whether `value` is of `kind`: a bool is no number, a whole number is a float, a text is one line."""
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and value != "" and not any(unicodedata.category(c) == "Cc" for c in value)
    return isinstance(value, typing.get_origin(kind) or kind)


def short_repr(value: object) -> str:
    """Return `value` as an error shows it: in one short line, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in a list in a list …
        return f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
