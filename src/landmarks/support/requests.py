"""Patience with a mirror: how often a request is tried, how long is waited between, how many run at once.

obstore moves the bytes and could retry by itself, but its retries do not know `Retry-After` (measured with version
0.12.1: a 503 with `Retry-After: 2` is asked again after 0.1 s), and a mirror that asks for a pause must get one from
all workers together. So obstore's own retries are off, and every request goes through `Host.asked`.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import importlib
import netrc
import os
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import obstore.exceptions
import obstore.store

from landmarks.support.addresses import parse_address, without_query, without_secrets
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.systems import require_text

T = TypeVar("T")

_BUSY = ("429", "503")
"""Answers that ask for a pause, from this worker and from all others."""

_WORTH_REPEATING = ("408", "425", *_BUSY)
"""Answers of the 400s (and 503) that may be better next time; all other 500s are too."""


class MirrorError(LandmarksError):
    """A mirror did not give what it was asked for, after all patience."""


class AbsentError(MirrorError):
    """A mirror has no such file."""


class RefusedError(MirrorError):
    """A mirror wants to know who asks, or does not let this one in."""


class RangesRefusedError(MirrorError):
    """A mirror answers byte ranges with the whole file, or compresses: only streaming works there."""


class BrokenAnswerError(Exception):
    """One answer was unusable, but the next may be better; never leaves this room."""


@dataclass(frozen=True)
class Patience:
    """How a mirror is treated: tries per request, waits in seconds (doubled each time), connections at once."""

    tries: int = 7
    first_wait: float = 0.2
    longest_wait: float = 20.0
    longest_pause: float = 600.0  # a `Retry-After` beyond this ends the work with an error
    connect_seconds: float = 10.0
    stall_seconds: float = 30.0  # nothing arrived for so long: the answer is given up
    connections: int = 64


class Host:
    """One mirror's server: the connections it may be asked through, and the pause it asked for.

    `pause_asked(path)` returns the seconds of a `Retry-After` that stands now (0 without one); it is called after an
    answer that asks for a pause, because obstore does not hand out the headers of such answers.
    """

    def __init__(self, place: str, patience: Patience, pause_asked: Callable[[str], float]) -> None:
        self.place = place
        self.patience = patience
        self.requests = 0
        self.retries = 0
        self._pause_asked = pause_asked
        self._connections = threading.BoundedSemaphore(patience.connections)
        self._pause = threading.Lock()
        self._not_before = 0.0

    def asked(self, path: str, request: Callable[[], T]) -> T:
        """Return what `request()` returns, trying again where that can help.

        Raises:
            MirrorError: trying again cannot help, or all tries are spent; names the place and the path.
        """
        tried = 0
        while True:
            self._wait_out_the_pause()
            started = time.monotonic()
            try:
                with self._connections:
                    self.requests += 1
                    return request()
            except (obstore.exceptions.BaseError, OSError, BrokenAnswerError) as error:
                tried += 1
                self.wait(path, error, tried, started)

    def wait(self, path: str, error: Exception, tried: int, started: float) -> None:
        """Wait after the failure number `tried` of a request that began at `started`, or raise where that is no use."""
        what = f"{self.place}/{path}"
        _raise_unless_worth_repeating(what, error)
        if tried >= self.patience.tries:
            raise MirrorError(f"{what}: {reason_of(error)}, after {tried} tries") from error
        self.retries += 1
        longest = min(self.patience.longest_wait, self.patience.first_wait * 2 ** (tried - 1))
        seconds = longest * random.uniform(0.5, 1.0)  # apart from each other, so that workers do not return as one
        if _status(error) not in _BUSY:
            time.sleep(seconds)
            return
        with self._pause:
            if self._not_before > started:  # another worker has set the pause since this request began
                return
            asked = self._pause_asked(path)
            if asked > self.patience.longest_pause:
                raise MirrorError(
                    f"{what}: the mirror asks for a pause of {asked:.0f} s",
                    way_out="run the same command again later",
                ) from error
            self._not_before = time.monotonic() + max(asked, seconds)

    def _wait_out_the_pause(self) -> None:
        while (seconds := self._not_before - time.monotonic()) > 0:
            time.sleep(seconds)


def seconds_of(retry_after: str | None) -> float:
    """Read a `Retry-After` header (seconds, or a date; RFC 9110 section 10.2.3); 0 when there is none or it is odd."""
    if not retry_after:
        return 0.0
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0


def reason_of(error: Exception) -> str:
    """Say in a few words what went wrong; addresses are shown without user, password and query."""
    text = str(error)
    status = re.search(r"status code: (\d+[^:\n]*)", text)
    if status:
        return f"the mirror answered {status.group(1).strip()}"
    told = {
        "TimedOut": "no byte arrived in time",
        "IncompleteBody": "the connection was dropped",
        "ConnectionReset": "the connection was dropped",
        "Broken pipe": "the connection was dropped",
        "IncompleteMessage": "the connection was dropped",
        "kind: Body": "the connection was dropped",
        "UnexpectedRange": "a wrong range was sent",
        "Content-Length Header missing": "the mirror does not say how long the file is (is there a proxy on the way?)",
        "builder error": "it leads to an address that is not http(s)",
        "Connect": "no connection could be made",
    }
    for sign, words in told.items():
        if sign in text:
            return words
    return without_query(without_secrets(text.splitlines()[0]) if text else type(error).__name__)


def _status(error: Exception) -> str:
    found = re.search(r"status code: (\d+)", str(error))
    return found.group(1) if found else ""


def _raise_unless_worth_repeating(what: str, error: Exception) -> None:
    status = _status(error)
    if isinstance(error, FileNotFoundError | obstore.exceptions.NotFoundError) and status in ("", "404"):
        raise AbsentError(f"{what} is not there") from error
    if isinstance(error, obstore.exceptions.NotSupportedError) or "CONTENT_RANGE" in str(error):
        raise RangesRefusedError(f"{what}: the mirror does not answer byte ranges") from error
    no_entry = PermissionError | obstore.exceptions.PermissionDeniedError | obstore.exceptions.UnauthenticatedError
    if isinstance(error, no_entry):
        raise RefusedError(f"{what}: {reason_of(error)}") from error
    final = isinstance(error, obstore.exceptions.InvalidPathError | obstore.exceptions.PreconditionError)
    final = final or "LocalFileSystem" in str(error)  # a disk does not get better by asking again
    if final or (status[:1] in ("3", "4") and status not in _WORTH_REPEATING):
        raise MirrorError(f"{what}: {reason_of(error)}") from error


# From a mirror's address to an obstore store: which backend, whose credentials, which time limits, which pauses.


def open_store(address: str, patience: Patience) -> tuple[obstore.store.ObjectStore, Path | None]:
    """Open the store of a path or an address; the second value is the folder where it is a local one.

    Raises:
        LandmarksError: there is no such folder.
        UsageError: the address has a scheme that is not known.
    """
    scheme = urllib.parse.urlsplit(address).scheme if "://" in address else ""
    options: Any = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=patience.connect_seconds),
        "read_timeout": timedelta(seconds=patience.stall_seconds),
        "timeout": timedelta(days=1),  # a TAR may take hours on a thin line; a stall is noticed by `read_timeout`
    }
    retries: Any = {"max_retries": 0}
    if scheme in ("", "file"):
        root = Path(urllib.request.url2pathname(address.removeprefix("file://")) if scheme else address)
        with contextlib.suppress(RuntimeError):  # "~somebody" who has no home here: a folder of that name, then
            root = root.expanduser()
        require_text(root)
        if not root.is_dir():
            raise LandmarksError(
                f"there is no mirror at {root}", expected="a folder, or an http(s):// or s3:// address"
            )
        return obstore.store.LocalStore(prefix=root.resolve()), root.resolve()
    if scheme in ("http", "https"):
        bare = parse_address(address).bare
        options["default_headers"] = authorization(address)
        return obstore.store.HTTPStore.from_url(bare, client_options=options, retry_config=retries), None
    if scheme in ("s3", "s3a"):
        signed = _s3_credentials()
        return obstore.store.S3Store.from_url(address, client_options=options, retry_config=retries, **signed), None
    if scheme in ("gs", "az", "abfs", "abfss"):
        return obstore.store.from_url(address, client_options=options, retry_config=retries), None
    known = "a folder, or an http(s)://, s3://, gs:// or az:// address"
    raise UsageError(f"no way to read {scheme}://", expected=known)


def authorization(address: str) -> dict[str, str]:
    """Return the header that names the user of an address, or of `~/.netrc`, as HTTP's basic scheme wants it."""
    parts = parse_address(address)
    user, password = parts.user, parts.password
    if not user:
        host = urllib.parse.urlsplit(parts.bare).hostname or ""
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
            user, password = (found[0], found[2] or "") if found else ("", "")
    if not user:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def pause_asked(address: str, patience: Patience, path: str) -> float:
    """Ask an HTTP mirror, once, for how many seconds it wants to be left alone (see `patience`); 0 elsewhere."""
    if not address.startswith(("http://", "https://")):
        return 0.0
    bare = f"{parse_address(address).bare}/{path}"
    request = urllib.request.Request(bare, method="HEAD", headers=authorization(address))
    try:
        with urllib.request.build_opener(_StayHere).open(request, timeout=patience.connect_seconds) as answer:
            return seconds_of(answer.headers.get("Retry-After"))
    except urllib.error.HTTPError as error:
        return seconds_of(error.headers.get("Retry-After"))
    except OSError:
        return 0.0


class _StayHere(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _s3_credentials() -> dict[str, Any]:
    """Leave the environment to obstore, let boto3 (if installed) look into its files, else sign nothing."""
    given = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS")
    if any(name.startswith(given) for name in os.environ):
        return {}
    with contextlib.suppress(ImportError):
        session = importlib.import_module("boto3").Session()
        if session.get_credentials() is not None:
            boto3_auth = importlib.import_module("obstore.auth.boto3")
            return {"credential_provider": boto3_auth.Boto3CredentialProvider(session)}
    return {"skip_signature": True}
