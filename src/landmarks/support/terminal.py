"""Text on its way to a terminal: names come from strangers, and must not steer it.

Nothing heavy is imported here, because every command begins with it.
"""

from __future__ import annotations

import json
import re

from landmarks.support.addresses import without_secrets

_STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters of both kinds, line ends of Unicode, and marks that turn the direction of what follows."""


def show(text: object) -> None:
    """Print one line of results to standard output, as it is: no markup, nothing that steers a terminal."""
    print(shown(str(text)))


def show_lines(text: str) -> None:
    """Print several lines of results to standard output."""
    for line in text.splitlines():
        show(line)


def show_json(value: object, indent: int | None = 2) -> None:
    """Print `value` as JSON to standard output; what would steer a terminal is escaped as JSON escapes it."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    print(_STEERING.sub(lambda found: json.dumps(found[0])[1:-1], text))


def shown(text: str) -> str:
    """Return `text` on one line, without secrets of addresses and without letters that steer a terminal.

    Names of files, landmarks and authors come from strangers; an escape sequence in one of them is shown as `\\x1b`.
    """
    return _STEERING.sub(_spelt, without_secrets(text).replace("\n", " "))


def _spelt(found: re.Match[str]) -> str:
    letter = found[0]
    return " " if letter in "\t\r" else letter.encode("unicode_escape").decode()
