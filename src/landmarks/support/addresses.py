"""Parsing addresses, and removing the secrets of addresses from texts."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass

from landmarks.support.errors import UsageError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s\"<>]+)")
_SIGNATURE = re.compile(
    r"(?i)([?&](?:x-(?:amz|goog)-[a-z-]+|awsaccesskeyid|googleaccessid|signature|sig|se|sp|sv|token|access_token|key"
    r"|api_?key|password|secret)=)[^&\s\"'<>]+"
)


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
