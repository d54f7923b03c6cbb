"""Paths and addresses as users give them: one or several, as text, `Path` or the result of a verb."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, TypeAlias

from landmarks.support.errors import UsageError
from landmarks.support.systems import readable

Place: TypeAlias = str | os.PathLike[str]
"""A path as text or `Path`, or the result of a verb, such as a run or a dataset."""


def paths_of(places: Place | Iterable[Place], *, way_out: str = "") -> list[Place]:
    """Return one path or several as a list; raise `UsageError`, with `way_out`, if one of them is no path."""
    paths: list[Any]
    if isinstance(places, str | os.PathLike | bytes) or not isinstance(places, Iterable):
        paths = [places]
    else:
        paths = list(places)
    invalid = [path for path in paths if not isinstance(path, str | os.PathLike)]
    if invalid:
        raise UsageError("that is no path of a file or folder", received=type(invalid[0]).__qualname__, way_out=way_out)
    return paths


def as_given(path: PurePath) -> str:
    """Return a path as text; an address gets back the slashes that `Path` has merged."""
    posix = path.as_posix()
    slashes = r"\1:///" if posix.startswith("file:") else r"\1://"
    address, found = re.subn(r"^([a-z][a-z0-9+.-]+):/(?=[^/])", slashes, posix)
    return readable(address if found else path)
