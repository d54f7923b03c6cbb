"""From a mirror's address to an obstore store: which backend, whose credentials, which time limits, which pauses."""

from __future__ import annotations

import base64
import contextlib
import importlib
import netrc
import os
import urllib.error
import urllib.parse
import urllib.request
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore.store

from landmarks.archive.patience import Patience, seconds_of
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.text import require_text


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
        parts = urllib.parse.urlsplit(address)
        bare = urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
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
    parts = urllib.parse.urlsplit(address)
    user, password = urllib.parse.unquote(parts.username or ""), urllib.parse.unquote(parts.password or "")
    if not user:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            found = netrc.netrc(os.environ.get("NETRC")).authenticators(parts.hostname or "")
            user, password = (found[0], found[2] or "") if found else ("", "")
    if not user:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def pause_asked(address: str, patience: Patience, path: str) -> float:
    """Ask an HTTP mirror, once, for how many seconds it wants to be left alone (see `patience`); 0 elsewhere."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https"):
        return 0.0
    host = parts.netloc.rpartition("@")[2]
    bare = urllib.parse.urlunsplit((parts.scheme, host, f"{parts.path}/{path}", "", ""))
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
