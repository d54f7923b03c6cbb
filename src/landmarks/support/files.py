"""Files that appear whole or not at all, records that say what wrote them, and one process at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from landmarks import __version__
from landmarks.support.errors import BusyError, LandmarksError
from landmarks.support.systems import require_text

FORMAT = 3
"""The newest layout of records and tables that this version writes and reads."""

_ASIDE = ".part"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, *((39, 112) if os.name == "nt" else ())}
"""Numbers that only writing ends with: the disk, the user's share of it, or the largest file it can hold is full."""

_TOLD_BY_RUST = re.compile(r"(?P<why>[^: ][^:]*) \(os error (?P<number>\d+)\)")


@contextlib.contextmanager
def written_whole(path: Path | str) -> Iterator[Path]:
    """Yield a path beside `path` to write to; when the block ends well it is flushed to disk and renamed to `path`.

    A block that fails, or a process that is killed, leaves no file at `path` (or the earlier one untouched). Only what
    the disk itself refuses becomes a `LandmarksError`; any other error of the block passes through unchanged.
    """
    path = Path(path)
    require_text(path)
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}{_ASIDE}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _about_the_disk(error.strerror, path) from error
    try:
        try:
            yield aside
        except Exception as error:
            why = _refusal_of_the_disk(error, aside)
            if why is None:
                raise
            raise _about_the_disk(why, path) from error
        try:
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError as error:
            raise _about_the_disk(error.strerror, path) from error
        _flush_names(path.parent)
    finally:
        with contextlib.suppress(OSError):  # a disk that may only be read refuses even that
            aside.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written directly in `folder`; call it only while holding the folder."""
    for aside in folder.glob(f".*{_ASIDE}"):
        aside.unlink(missing_ok=True)


def write_record(path: Path | str, record: dict[str, Any], *, verb: str, inputs: str = "") -> None:
    """Write `record` as JSON with `format`, the `verb` and version that wrote it and the digest of its `inputs`."""
    whole = {"format": FORMAT, "verb": verb, "version": __version__, "inputs": inputs, **record}
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    with written_whole(path) as aside:  # bytes of a path that are no UTF-8 are escaped as JSON escapes them
        aside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def read_record(path: Path | str) -> dict[str, Any]:
    """Read a record that `write_record` wrote; a missing, damaged or newer one is an error of one line."""
    path = Path(path)
    require_text(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LandmarksError(f"there is no {path.name} in {path.parent}") from error
    except (OSError, ValueError) as error:
        raise LandmarksError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise LandmarksError(f"{path} is not one of our records", expected='an object with an integer "format"')
    refuse_other_formats(path, record["format"])
    return record


def refuse_other_formats(path: Path, format_number: int) -> None:
    """Raise when `path` was written in another layout than this version's: a newer one, or one it no longer reads."""
    if format_number == FORMAT:
        return
    newer = format_number > FORMAT
    raise LandmarksError(
        f"{path} was written by {'a newer' if newer else 'an earlier'} version",
        received=f"format {format_number}",
        expected=f"format {FORMAT}",
        way_out="upgrade landmarks" if newer else "make it anew with this version",
    )


@contextlib.contextmanager
def held(folder: Path | str) -> Iterator[Path]:
    """Create `folder` if needed and hold it for this process; a second process gets `BusyError` and touches nothing."""
    folder = Path(folder)
    require_text(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LandmarksError(f"{folder} cannot be made a folder ({error.strerror})") from error
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"{folder} is being written by another process", way_out="wait for it to end, or choose another folder"
        ) from error
    except (OSError, NotImplementedError) as error:  # the latter where a disk knows no locks
        raise LandmarksError(
            f"{folder} cannot be written ({getattr(error, 'strerror', None) or error})",
            way_out="choose a folder in which files can be made, or copy this one there",
        ) from error
    try:
        remove_leftovers(folder)
        yield folder
    finally:
        lock.release()


def cache_folder() -> Path:
    """Return the folder for what can be made again and has no better place: `$XDG_CACHE_HOME/landmarks`.

    It is made if needed. Raises `LandmarksError` when nothing can be written there.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "landmarks"
    except RuntimeError as error:  # a user without a home
        raise LandmarksError("there is no home folder to keep copies in", way_out=_OTHER_CACHE) from error
    if not can_write(folder):
        raise LandmarksError(f"{folder} cannot be written, where copies are kept", way_out=_OTHER_CACHE)
    return folder


_OTHER_CACHE = "name another folder in the environment: XDG_CACHE_HOME=FOLDER"


def can_write(folder: Path) -> bool:
    """Return whether files can be made in `folder`, which is created if needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        attempt = folder / f".{uuid.uuid4().hex[:8]}{_ASIDE}"
        attempt.touch(exist_ok=False)
        attempt.unlink()
    except OSError:
        return False
    return True


def digest_of(*parts: object) -> str:
    """Return 32 hex digits (BLAKE2b) that change when any of `parts`, written as canonical JSON, changes."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def file_digest(path: Path | str) -> str:
    """Return 32 hex digits (BLAKE2b) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def require_free_disk(folder: Path, needed_bytes: int) -> None:
    """Raise unless the disk that holds `folder` has `needed_bytes` free."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise LandmarksError(
            f"the disk of {folder} is too small",
            received=f"{free_bytes / 1e9:.2f} GB free",
            expected=f"{needed_bytes / 1e9:.2f} GB",
            way_out="free some space, choose another folder, or select fewer images",
        )


def _about_the_disk(why: str | None, path: Path) -> Exception:
    return LandmarksError(f"{path} could not be written ({why})", way_out="nothing was replaced")


def _refusal_of_the_disk(error: Exception, aside: Path) -> str | None:
    """Return why the disk did not take `aside`; None when `error` is about anything else, another file included."""
    if isinstance(error, LandmarksError):
        return None
    told = _TOLD_BY_RUST.search(str(error))  # polars and safetensors have the system's number in their texts only
    number = getattr(error, "errno", None)
    if number is None and told is not None:
        number = int(told["number"])
    why = getattr(error, "strerror", None) or (told["why"] if told is not None else str(error))
    named = getattr(error, "filename", None)
    if named is not None:
        return why if str(named) == str(aside) else None
    if isinstance(error, OSError) and str(aside) in str(error):
        return why
    return why if number in _FULL and (told is not None or isinstance(error, OSError)) else None


def _flush_names(folder: Path) -> None:
    """Flush which names `folder` holds, without which a power failure can undo a rename; not where no system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno == errno.EIO:  # anything else: a file system that flushes no folders
            raise LandmarksError(f"{folder} may forget its newest files ({error.strerror})") from error
    finally:
        os.close(descriptor)
