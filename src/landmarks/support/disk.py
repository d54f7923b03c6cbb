"""What a disk refuses becomes one line: full, read-only, forbidden, broken, or a file where a folder should be."""

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
"""What the names of files end with that are still being written; they begin with a dot."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, *((39, 112) if os.name == "nt" else ())}
"""Numbers that only writing ends with: the disk, the user's share of it, or the largest file it can hold is full."""

LACKING = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Numbers that a disk answers which does not know what it is asked for: buckets and others' folders behind FUSE, 9p."""

_TOLD_BY_RUST = re.compile(r"(?P<why>[^: ][^:]*) \(os error (?P<number>\d+)\)")


def not_written(path: Path | str, why: str | None) -> LandmarksError:
    """Return the error for a file or folder that the disk did not take."""
    return LandmarksError(f"{readable(path)} could not be written ({why})", way_out="nothing was replaced")


def refusal(error: BaseException, aside: Path) -> str | None:
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


def of_the_disk(error: BaseException) -> LandmarksError | None:
    """Return the line for whatever a disk refused that nobody foresaw; None when `error` is of another kind."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    named = next((name for name in (error.filename2, error.filename) if isinstance(name, str | bytes)), None)
    if named is None and error.errno not in (*_FULL, errno.EROFS, errno.EIO):
        return None
    place = readable(os.fsdecode(named)) if named is not None else "a file"
    return LandmarksError(f"{place}: {error.strerror or error}", way_out="nothing was half-written")


def require_a_place_here(path: Path) -> None:
    """Raise `LandmarksError` for a path whose first folder would be called `~`, or as the scheme of an address."""
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
    """Make `folder`, and those above it, unless it is there; raise `LandmarksError` where the disk refuses."""
    require_a_place_here(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LandmarksError(
            f"{folder} cannot be made a folder ({error.strerror})", way_out="choose a place where folders can be made"
        ) from error
    return folder


def remove_file(path: Path) -> None:
    """Remove a file, or a link, unless it is gone already; raise `LandmarksError` where the disk refuses."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise LandmarksError(f"{readable(path)} cannot be removed ({error.strerror})") from error


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that it holds, unless it is gone; raise `LandmarksError` where the disk refuses.

    Of a link only the link is removed.
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
    """Return whether files can be made in `folder`, which is created if needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        attempt = folder / f".attempt{ASIDE}"  # one name: what a kill leaves here, the next attempt removes
        attempt.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):  # another process asks at this moment, and could write
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
    """Flush what `path` holds, without which a power failure can empty it; not where the disk knows no flushing."""
    with open(path, "rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in LACKING:
                raise


def flush_names(folder: Path) -> None:
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


# What killed processes leave half-written. In a folder that is held by one process all of it is nobody's; beside a file
# elsewhere another process may be writing the same file just now, so that each writer there locks what it writes aside.


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written in `folder` and in the folders directly in it.

    Call it only while holding the folder.
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
    """Return whether a file of this name in a folder is the lock or something half-written, and nobody's."""
    return name == ".lock" or (name.startswith(".") and name.endswith(ASIDE))


@contextlib.contextmanager
def alone(path: Path, aside: Path) -> Iterator[None]:
    """Remove what killed writers of `path` left beside it, and keep others from removing `aside` in the block.

    Windows needs no lock: there, nothing can remove a file that is open.
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
        _locked(descriptor)
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
        return _locked(descriptor)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Lock an open file for this process unless another one has; return whether that could be done."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
