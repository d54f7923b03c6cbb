"""Places: paths and addresses as users give them, addresses parsed, and texts without the secrets of addresses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeAlias

from landmarks.support.errors import UsageError
from landmarks.support.systems import readable

Place: TypeAlias = str | os.PathLike[str]
"""A path as text or `Path`, or the result of a verb, such as a run or a dataset."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s\"<>]+)")
_SIGNATURE = re.compile(
    r"(?i)([?&](?:x-(?:amz|goog)-[a-z-]+|awsaccesskeyid|googleaccessid|signature|sig|se|sp|sv|token|access_token|key"
    r"|api_?key|password|secret)=)[^&\s\"'<>]+"
)


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


# ── Addresses: only what is no secret may be shown, stored or requested ─────────────────────────────────────────────


@dataclass(frozen=True)
class Address:
    """The parts of an address; only `bare` may be shown, stored or requested."""

    scheme: str
    user: str  # decoded: @ instead of %40
    password: str  # decoded
    host: str  # with the port
    path: str  # with its leading slash, or empty
    query: str

    @property
    def bare(self) -> str:
        """The address without user, password and query."""
        return f"{self.scheme}://{self.host}{self.path}"


def parse_address(text: str) -> Address:
    """Return the parts of an address; a password may hold `@`, and also `/` if that is unambiguous.

    Raises `UsageError`, which shows nothing of the address but its scheme, if it is unclear which `@` ends the user
    and password.
    """
    scheme, _, rest = text.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    after = rest[len(authority) :]
    port = authority.rpartition("@")[2].rpartition(":")
    if "@" in after and ("@" in authority or port[1]):
        if after.count("@") > 1 or "@" in authority or port[2].isdigit() or port[2] == "":
            raise UsageError(
                f"an address ({scheme}://…) cannot be understood: it holds @ behind its first slash",
                way_out="write @ as %40 and / as %2F in user, password and path",
            )
        authority = rest[: re.search(r"[/?#]|$", rest[rest.index("@") :]).start() + rest.index("@")]  # type: ignore[union-attr]
        after = rest[len(authority) :]
    credentials, _, host = authority.rpartition("@")
    user, _, password = credentials.partition(":")
    path, _, query = after.partition("#")[0].partition("?")
    return Address(scheme, urllib.parse.unquote(user), urllib.parse.unquote(password), host, path, query)


def place_of(address: str) -> str:
    """Return a path, or an address without user, password and query: what may be shown and stored."""
    return parse_address(address).bare if "://" in address else address


def without_secrets(text: str) -> str:
    """Return `text` with users, passwords and signatures removed from all addresses in it."""
    if "://" not in text:
        return text
    return _SIGNATURE.sub(r"\1…", _ADDRESS.sub(_bare, text))


def without_query(text: str) -> str:
    """Return `text` with the queries of all addresses in it removed."""
    return _ADDRESS.sub(lambda found: found[1] + found[2].partition("?")[0], text)


def _bare(found: re.Match[str]) -> str:
    """Return an address in a text without user and password; what may be these is removed too."""
    scheme, rest = found[1], found[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" not in rest or not ("@" in authority or ":" in authority):
        return scheme + rest
    return scheme + rest.rpartition("@")[2]


def in_shell(*words: Place) -> str:
    """Return paths, addresses and other words of a command that is shown, as they can be copied into a shell."""
    return subprocess.list2cmdline(map(str, words)) if sys.platform == "win32" else shlex.join(map(str, words))
