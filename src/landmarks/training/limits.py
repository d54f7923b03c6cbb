"""Validation of settings by their annotations, which hold type, limits or choices, and meaning."""

from __future__ import annotations

import functools
import types
import typing
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any

from landmarks.support.errors import UsageError, did_you_mean

LONGEST = 80
"""Characters of a refused value that an error shows."""


@dataclass(frozen=True)
class Range:
    """Limits of a number, inclusive unless `above` or `below` is set; never NaN or infinite."""

    minimum: float
    maximum: float
    above: bool = False  # must be greater than `minimum`
    below: bool = False  # must be less than `maximum`
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        enough = value > self.minimum if self.above else value >= self.minimum
        return enough and (value < self.maximum if self.below else value <= self.maximum)

    def __str__(self) -> str:
        minimum = f"more than {self.minimum:,}" if self.above else f"{self.minimum:,} or more"
        maximum = f"below {self.maximum:,}" if self.below else f"at most {self.maximum:,}"
        return f"{self.unit}, {minimum}, {maximum}".removeprefix(", ")


@dataclass(frozen=True)
class OneOf:
    """The words that a setting may have as its value."""

    words: tuple[str, ...]


def require_fields(record: object, what: str) -> None:
    """Raise `UsageError` for the first field of the dataclass `record` that its annotation does not allow."""
    for name, annotation in annotations_of(type(record)).items():  # type: ignore[arg-type]  # it is a class
        require(f"{what} {name}", getattr(record, name), annotation)


@functools.cache
def annotations_of(kind: type[Any]) -> dict[str, Any]:
    """Return the annotations of the fields of the dataclass `kind`, limits included."""
    return typing.get_type_hints(kind, include_extras=True)


def require(what: str, value: Any, annotation: Any) -> None:
    """Raise `UsageError` unless `value` has the type of `annotation` and is within its limits."""
    rule = allowed(annotation)
    if value is None and rule.nullable:
        return
    limit = rule.limit
    if isinstance(limit, OneOf) and isinstance(value, str) and value not in limit.words:
        raise UsageError(
            f"{what} cannot be {short_repr(value)}",
            expected=", ".join(limit.words),
            way_out=did_you_mean(value, limit.words),
        )
    if not _is(value, rule.kind) or (isinstance(limit, Range) and value not in limit):
        raise UsageError(f"{what} cannot be used", received=short_repr(value), expected=rule)


@dataclass(frozen=True)
class Allowed:
    """What an annotation allows, and what the setting means."""

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
"""Types in words."""


def allowed(annotation: Any) -> Allowed:
    """Return what `annotation` allows: `Annotated[kind, Range | OneOf, "meaning"]`, or a union of that with None."""
    nullable, kind = False, annotation
    metadata: tuple[Any, ...] = ()
    while typing.get_origin(kind) in (Annotated, typing.Union, types.UnionType):
        if typing.get_origin(kind) is Annotated:
            kind, *more = typing.get_args(kind)
            metadata = (*more, *metadata)
        else:
            (kind,) = (each for each in typing.get_args(kind) if each is not type(None))
            nullable = True
    limit = next((item for item in metadata if isinstance(item, Range | OneOf)), None)
    return Allowed(kind, limit, nullable, next((item for item in metadata if isinstance(item, str)), ""))


def _is(value: object, kind: Any) -> bool:
    """Return whether `value` is of `kind`: a bool is no number, an int is also a float, a str is one non-empty line."""
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and value != "" and not any(unicodedata.category(c) == "Cc" for c in value)
    return isinstance(value, typing.get_origin(kind) or kind)


def short_repr(value: object) -> str:
    """Return `repr(value)`, cut to one short line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer with too many digits, lists nested too deeply
        return f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
