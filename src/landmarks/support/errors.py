"""The errors a user sees: one line that says what is wrong, what was received, what was expected, and the way out.

    LandmarksError          exit code 1: the input is at fault, or the work was done in part
    ├── StaleError          something computed earlier no longer belongs to what it was computed from
    ├── BusyError           another process is working on the same output
    └── UsageError          exit code 2: the command was wrong
        └── MissingExtraError   an optional dependency is not installed

Anything else that reaches the shell is a bug.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class LandmarksError(Exception):
    """One line for a person: `what` is wrong, with what was received, what was expected and the way out."""

    exit_code = 1

    def __init__(self, what: str, *, received: object = None, expected: object = None, way_out: str = "") -> None:
        parts = [what]
        if received is not None:
            parts.append(f"received {received}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if way_out:
            parts.append(way_out)
        super().__init__(" ".join("; ".join(parts).split()))


class StaleError(LandmarksError):
    """Something computed earlier no longer belongs to what it was computed from."""


class BusyError(LandmarksError):
    """Another process is working on the same output."""


class UsageError(LandmarksError):
    """The command was wrong: an unknown name, an impossible value, options that contradict each other."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `did you mean "resnet50"?` for the closest of `choices`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else ""


def import_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or raise `MissingExtraError` that names the extra which holds it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"this needs the package {module}, which is not installed",
            way_out=f'install it with: pip install "landmarks[{extra}]"',
        ) from error
