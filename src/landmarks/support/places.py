"""Where something lies, as people name it: one path or several, what a verb returned, an address."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, TypeAlias

from landmarks.support.errors import UsageError
from landmarks.support.systems import readable

Place: TypeAlias = str | os.PathLike[str]
"""Where something lies: a path as text or `Path`, or what a verb has returned, such as a run or a dataset."""


def paths_of(places: Place | Iterable[Place], *, way_out: str = "") -> list[Place]:
    """Return what was given for one path or several as several; raise `UsageError` for what is no path."""
    given: list[Any]
    if isinstance(places, str | os.PathLike | bytes) or not isinstance(places, Iterable):
        given = [places]
    else:
        given = list(places)
    strange = [one for one in given if not isinstance(one, str | os.PathLike)]
    if strange:
        raise UsageError("that is no path of a file or folder", received=type(strange[0]).__qualname__, way_out=way_out)
    return given


def as_given(path: PurePath) -> str:
    """Return a path as text, an address with all of its slashes, of which a path keeps one."""
    posix = path.as_posix()
    slashes = r"\1:///" if posix.startswith("file:") else r"\1://"
    address, found = re.subn(r"^([a-z][a-z0-9+.-]+):/(?=[^/])", slashes, posix)
    return readable(address if found else path)
