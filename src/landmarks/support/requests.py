"""Requests to a mirror: how often they are tried, how long the waits between are, and how many run at once.

obstore transfers the bytes and could retry by itself, but its retries ignore `Retry-After` (measured with version
0.12.1: a 503 with `Retry-After: 2` is repeated after 0.1 s), and if a mirror asks for a pause, all workers must pause.
So obstore's own retries are off, and every request goes through `Host.send`.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
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

from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.places import in_shell, parse_address, without_query, without_secrets
from landmarks.support.systems import require_text

T = TypeVar("T")

_BUSY = ("429", "503")
"""Status codes that ask for a pause, of this worker and all others."""

_RETRIED = ("408", "425", *_BUSY)
"""Status codes below 500 (and 503) after which a request is retried; it also is after all others from 500 on."""


NOTED_TRY = 3
"""The failure of one request after which a note says what is being waited for."""


class MirrorError(LandmarksError):
    """A mirror did not answer a request, also after retries."""


class AbsentError(MirrorError):
    """A mirror has no such file."""


class RefusedError(MirrorError):
    """A mirror requires credentials, or refuses these."""


class RangesRefusedError(MirrorError):
    """A mirror answers byte ranges with the whole file, or compresses: it can only be streamed."""


class BrokenAnswerError(Exception):
    """One response was unusable, and the request is retried; only raised within `support`."""


@dataclass(frozen=True)
class Patience:
    """Limits of requests to a mirror: tries, waits in seconds (doubled each time), connections at once."""

    tries: int = 7
    first_wait: float = 0.2
    longest_wait: float = 20.0
    longest_pause: float = 600.0  # a `Retry-After` beyond this ends the work with an error
    connect_seconds: float = 10.0
    stall_seconds: float = 30.0  # a response is given up after this time without a byte
    connections: int = 64


class Host:
    """One mirror's server: the limit of its connections, and the pause that it asked for.

    `requested_pause(path)` returns the seconds of the current `Retry-After` (0 if there is none). It is called after a
    response that asks for a pause, because obstore does not return the headers of such responses.
    """

    def __init__(self, place: str, patience: Patience, requested_pause: Callable[[str], float]) -> None:
        self.place = place
        self.patience = patience
        self.requests = 0
        self.retries = 0
        self._requested_pause = requested_pause
        self._connections = threading.BoundedSemaphore(patience.connections)
        self._pause = threading.Lock()
        self._not_before = 0.0
        self._noted = False

    def send(self, path: str, request: Callable[[], T]) -> T:
        """Return what `request()` returns, with retries after errors that may be temporary.

        Raises:
            MirrorError: the error is permanent, or all tries are spent; names the place and the path.
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
        """Wait after failure number `tried` of a request that began at `started`; raise if a retry is of no use."""
        what = f"{self.place}/{path}"
        _raise_if_final(what, error)
        if tried >= self.patience.tries:
            raise MirrorError(f"{what}: {reason_of(error)}, after {tried} tries") from error
        self.retries += 1
        if tried == NOTED_TRY and not self._noted:  # once: a request of every worker may fail at the same time
            self._noted = True
            note(f"{what}: {reason_of(error)}; it is tried again, up to {self.patience.tries} times")
        seconds = self._seconds_before_try(tried + 1)
        if _status(error) not in _BUSY:
            time.sleep(seconds)
            return
        with self._pause:
            if self._not_before > started:  # another worker has set the pause since this request began
                return
            pause = self._requested_pause(path)
            if pause > self.patience.longest_pause:
                raise MirrorError(
                    f"{what}: the mirror asks for a pause of {pause:.0f} s",
                    way_out="run the same command again later",
                ) from error
            self._not_before = time.monotonic() + max(pause, seconds)

    def rest(self, tried: int) -> None:
        """Wait as after failure number `tried` of a request, before a successful answer is asked for again."""
        self.retries += 1
        time.sleep(self._seconds_before_try(tried + 1))

    def _seconds_before_try(self, number: int) -> float:
        longest = min(self.patience.longest_wait, self.patience.first_wait * 2.0 ** (number - 2))
        return longest * random.uniform(0.5, 1.0)  # random, so that workers do not all retry at once

    def _wait_out_the_pause(self) -> None:
        while (seconds := self._not_before - time.monotonic()) > 0:
            time.sleep(seconds)


def retry_after_seconds(retry_after: str | None) -> float:
    """Return the seconds of a `Retry-After` header (a number or a date; RFC 9110 section 10.2.3); 0 if it has none."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ArithmeticError, LookupError, TypeError, ValueError):  # no date, or one beyond all years
        return 0.0


def reason_of(error: Exception) -> str:
    """Return a short reason for an error of a request; addresses are shown without user, password and query."""
    text = str(error)
    status = re.search(r"status code: (\d+[^:\n]*)", text)
    if status:
        return f"the mirror answered {status.group(1).strip()}"
    reasons = {
        "TimedOut": "no byte arrived in time",
        "IncompleteBody": "the connection was dropped",
        "ConnectionReset": "the connection was dropped",
        "Broken pipe": "the connection was dropped",
        "IncompleteMessage": "the connection was dropped",
        "kind: Body": "the connection was dropped",
        "UnexpectedRange": "a wrong range was sent",
        "Wanted range": "a wrong range was sent",
        "TooLarge": "the answer's headers are too large",
        "Parse(": "the answer is no valid HTTP",
        "TooManyRedirects": "it redirects in a circle",
        "BareRedirect": "it redirects to nowhere",
        "Content-Length Header missing": "the mirror does not say how long the file is (is there a proxy on the way?)",
        "builder error": "it leads to an address that is not http(s)",
        "Connect": "no connection could be made",
    }
    for sign, reason in reasons.items():
        if sign in text:
            return reason
    # What obstore puts in front repeats the address, and says how long it took, which would be another text each time.
    line = re.sub(r"^Generic \w+ error: (Error performing \w+ \S+ in \S+ - )?", "", text.partition("\n")[0])
    return without_query(without_secrets(line)) or type(error).__name__


def _status(error: Exception) -> str:
    found = re.search(r"status code: (\d+)", str(error))
    return found.group(1) if found else ""


def _raise_if_final(what: str, error: Exception) -> None:
    status = _status(error)
    if isinstance(error, FileNotFoundError | obstore.exceptions.NotFoundError) and status in ("", "404"):
        raise AbsentError(f"{what} is not there") from error
    if isinstance(error, obstore.exceptions.NotSupportedError) or "CONTENT_RANGE" in str(error):
        raise RangesRefusedError(f"{what}: the mirror does not answer byte ranges") from error
    no_entry = PermissionError | obstore.exceptions.PermissionDeniedError | obstore.exceptions.UnauthenticatedError
    if isinstance(error, no_entry):
        raise RefusedError(f"{what}: {reason_of(error)}") from error
    final = isinstance(error, obstore.exceptions.InvalidPathError | obstore.exceptions.PreconditionError)
    final = final or "LocalFileSystem" in str(error)  # retrying does not help with a disk
    if final or (status[:1] in ("3", "4") and status not in _RETRIED):
        raise MirrorError(f"{what}: {reason_of(error)}") from error


# Opening obstore's store for an address: backend, credentials, time limits and pauses.


def open_store(address: str, patience: Patience) -> tuple[obstore.store.ObjectStore, Path | None]:
    """Return the store of a path or an address, and its folder if it is a local one.

    Raises:
        LandmarksError: there is no such folder.
        UsageError: the scheme of the address is not supported.
    """
    scheme = urllib.parse.urlsplit(address).scheme if "://" in address else ""
    options: Any = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=patience.connect_seconds),
        "read_timeout": timedelta(seconds=patience.stall_seconds),
        "timeout": timedelta(days=1),  # a TAR may take hours; `read_timeout` notices a stalled one
    }
    retries: Any = {"max_retries": 0}
    if scheme in ("", "file"):
        root = Path(urllib.request.url2pathname(address.removeprefix("file://")) if scheme else address)
        with contextlib.suppress(RuntimeError):  # "~somebody" without a home: taken as the name of a folder
            root = root.expanduser()
        require_text(root)
        if not root.is_dir():
            is_selection = root.suffix.lower() == ".parquet" and root.is_file()
            raise LandmarksError(
                f"there is no mirror at {root}",
                expected="a folder, or an http(s):// or s3:// address",
                way_out=f"what a selection chose is fetched with: landmarks fetch {in_shell(root)} -o DATA"
                if is_selection
                else "",
            )
        return obstore.store.LocalStore(prefix=root.resolve()), root.resolve()
    if scheme in ("http", "https"):
        bare = parse_address(address).bare
        options["default_headers"] = authorization(address)
        return obstore.store.HTTPStore.from_url(bare, client_options=options, retry_config=retries), None
    if scheme in ("s3", "s3a"):
        credentials = _s3_credentials()
        store = obstore.store.S3Store.from_url(address, client_options=options, retry_config=retries, **credentials)
        return store, None
    if scheme in ("gs", "az", "abfs", "abfss"):
        return obstore.store.from_url(address, client_options=options, retry_config=retries), None
    known = "a folder, or an http(s)://, s3://, gs:// or az:// address"
    raise UsageError(f"no way to read {scheme}://", expected=known)


def authorization(address: str) -> dict[str, str]:
    """Return the header of HTTP's basic authentication for the user in an address or in `~/.netrc`, if any."""
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


def requested_pause(address: str, patience: Patience, path: str) -> float:
    """Return the seconds of pause that an HTTP mirror asks for now, by one HEAD request; 0 for other mirrors."""
    if not address.startswith(("http://", "https://")):
        return 0.0
    bare = f"{parse_address(address).bare}/{path}"
    request = urllib.request.Request(bare, method="HEAD", headers=authorization(address))
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=patience.connect_seconds) as answer:
            return retry_after_seconds(answer.headers.get("Retry-After"))
    except urllib.error.HTTPError as error:
        return retry_after_seconds(error.headers.get("Retry-After"))
    except (OSError, http.client.HTTPException):  # the latter where the answer is no HTTP
        return 0.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _s3_credentials() -> dict[str, Any]:
    """Return options for the credentials: obstore's own from the environment, else boto3's, else no signature."""
    variables = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS")
    if any(name.startswith(variables) for name in os.environ):
        return {}
    with contextlib.suppress(ImportError):
        session = importlib.import_module("boto3").Session()
        if session.get_credentials() is not None:
            boto3_auth = importlib.import_module("obstore.auth.boto3")
            return {"credential_provider": boto3_auth.Boto3CredentialProvider(session)}
    return {"skip_signature": True}
