"""Folders and files on disk, with errors of one line if a disk is full, read-only or broken, or access is denied."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from landmarks.support.errors import LandmarksError
from landmarks.support.places import as_given
from landmarks.support.systems import readable, require_text

ASIDE = ".part"
"""The ending of files that are still being written; their names begin with a dot."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, *((39, 112) if os.name == "nt" else ())}
"""Error numbers that only writing raises: the disk or the user's quota is full, or the file is too large for it."""

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Error numbers of file systems that do not support an operation: buckets and shared folders behind FUSE or 9p."""

_RUST_ERROR = re.compile(r"(?P<why>[^: ][^:]*) \(os error (?P<number>\d+)\)")


def write_error(path: Path | str, why: str | None) -> LandmarksError:
    """Return the error for a file or folder that could not be written."""
    return LandmarksError(f"{readable(path)} could not be written ({why})", way_out="nothing was replaced")


def why_not_written(error: BaseException, aside: Path) -> str | None:
    """Return why the disk refused to write `aside`; None if `error` is about anything else, such as another file."""
    if isinstance(error, LandmarksError):
        return None
    rust_error = _RUST_ERROR.search(str(error))  # polars and safetensors give the error number only in the message
    number = getattr(error, "errno", None)
    if number is None and rust_error is not None:
        number = int(rust_error["number"])
    why = getattr(error, "strerror", None) or (rust_error["why"] if rust_error is not None else str(error))
    named = getattr(error, "filename", None)
    if named is not None:
        return why if str(named) == str(aside) else None
    if isinstance(error, OSError) and str(aside) in str(error):
        return why
    return why if number in _FULL and (rust_error is not None or isinstance(error, OSError)) else None


def as_disk_error(error: BaseException) -> LandmarksError | None:
    """Return any other error of a disk as a `LandmarksError`; None if `error` is of another kind."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    named = next((name for name in (error.filename2, error.filename) if isinstance(name, str | bytes)), None)
    if named is None and error.errno not in (*_FULL, errno.EROFS, errno.EIO):
        return None
    place = readable(os.fsdecode(named)) if named is not None else "a file"
    return LandmarksError(f"{place}: {error.strerror or error}", way_out="nothing was half-written")


def require_local_path(path: Path) -> None:
    """Raise `LandmarksError` for a path that begins with a folder `~`, and for an address."""
    require_text(path)
    if path.parts[:1] == ("~",):
        raise LandmarksError(
            f"{path} would be made in a folder called ~", way_out=f'Path("{path}").expanduser() is at home'
        )
    if "://" in (address := as_given(path)):
        raise LandmarksError(
            f"nothing is written at an address: {address}", way_out="name a place here, and copy it there afterwards"
        )


def make_folder(folder: Path) -> Path:
    """Create `folder` and its parents if they do not exist; raise `LandmarksError` if that fails."""
    require_local_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LandmarksError(
            f"{folder} cannot be made a folder ({error.strerror})", way_out="choose a place where folders can be made"
        ) from error
    return folder


def remove_file(path: Path) -> None:
    """Remove a file or a link, if it exists; raise `LandmarksError` if that fails."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise LandmarksError(f"{readable(path)} cannot be removed ({error.strerror})") from error


def remove_folder(folder: Path) -> None:
    """Remove a folder and its contents, if it exists; raise `LandmarksError` if that fails.

    Of a link only the link itself is removed.
    """
    if folder.is_symlink():
        remove_file(folder)
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        if folder.exists():  # another process may have removed it meanwhile
            raise LandmarksError(f"{readable(folder)} cannot be removed ({error.strerror})") from error


def can_write(folder: Path) -> bool:
    """Return whether files can be created in `folder`, which is created if needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        attempt = folder / f".attempt{ASIDE}"  # always this name: the next attempt removes what a kill leaves
        attempt.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):  # another process tries at the same time, and succeeded
            attempt.touch(exist_ok=False)
        attempt.unlink(missing_ok=True)
    except OSError:
        return False
    return True


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


def flush_file(path: Path) -> None:
    """Flush the contents of `path`, which a power failure could otherwise empty, if the disk supports it."""
    with open(path, "rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise


def flush_folder(folder: Path) -> None:
    """Flush the entries of `folder`, so that a power failure cannot undo a rename, if the system supports it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno == errno.EIO:  # any other error: the file system cannot flush folders
            raise LandmarksError(f"{folder} may forget its newest files ({error.strerror})") from error
    finally:
        os.close(descriptor)


# Half-written files of killed processes. In a folder that this process holds all of them can be removed. In any other
# folder another process may be writing the same file at the moment, so each writer locks its half-written file.


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files of killed processes in `folder` and in the folders directly in it.

    The caller holds the folder.
    """
    for inside in (folder, *_folders_in(folder)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for aside in _asides_in(inside):
                remove_file(aside)


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [Path(entry) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _asides_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry) for entry in entries if entry.name.startswith(".") and entry.name.endswith(ASIDE)]


def is_leftover(name: str) -> bool:
    """Return whether a file of this name is the lock of a folder or half-written."""
    return name == ".lock" or (name.startswith(".") and name.endswith(ASIDE))


@contextlib.contextmanager
def exclusive_aside(path: Path, aside: Path) -> Iterator[None]:
    """Remove the half-written files of killed writers of `path`; in the block, keep others from removing `aside`.

    Windows needs no lock, because an open file cannot be removed there.
    """
    for other in _asides_in(path.parent):
        if re.fullmatch(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(ASIDE)}", other.name) and _is_free(other):
            with contextlib.suppress(OSError):
                other.unlink(missing_ok=True)
    if os.name == "nt":
        yield
        return
    descriptor = os.open(aside, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _try_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _is_free(path: Path) -> bool:
    if os.name == "nt":
        return True
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Lock an open file for this process; return False if another process has locked it."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
