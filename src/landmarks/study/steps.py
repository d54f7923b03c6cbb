"""Steps of a walk, each printed as the command that does the same."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from landmarks.support.console import note


def step(words: Sequence[object], function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Print the command of a step, do it, and return what it returns."""
    say("$ " + shlex.join(["landmarks", *map(str, words)]))
    return function(*arguments, **named)


def options(settings: Mapping[str, object]) -> list[str]:
    """Return settings as the options of a command: `{"image_size": 96}` as `--image-size 96`."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def say(line: str) -> None:
    """Print one line with an empty one before it."""
    note(f"\n{line}")
