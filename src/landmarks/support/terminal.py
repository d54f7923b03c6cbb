"""Printing text safely: names come from strangers, and may hold characters that control a terminal.

Nothing heavy is imported here, because every command imports this module.
"""

from __future__ import annotations

import json
import re

from landmarks.support.addresses import without_secrets

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters (C0 and C1), line separators of Unicode, and marks that change the direction of text."""


def show(text: object) -> None:
    """Print one line of results to standard output, without markup and control characters."""
    print(safe_line(str(text)))


def show_lines(text: str) -> None:
    """Print several lines of results to standard output."""
    for line in text.splitlines():
        show(line)


def show_json(value: object, indent: int | None = 2) -> None:
    """Print `value` as JSON to standard output, with control characters escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    print(_CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], text))


def safe_line(text: str) -> str:
    """Return `text` on one line, without the secrets of addresses and with control characters escaped.

    Names of files, landmarks and authors come from strangers; an escape sequence in one of them is shown as `\\x1b`.
    """
    return _CONTROL.sub(_escape, without_secrets(text).replace("\n", " "))


def _escape(found: re.Match[str]) -> str:
    letter = found[0]
    return " " if letter in "\t\r" else letter.encode("unicode_escape").decode()
