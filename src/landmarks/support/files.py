"""Writing files atomically, records that say what wrote them, and locks for one process per folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from landmarks import __version__
from landmarks.support.console import note
from landmarks.support.disk import (
    ASIDE,
    UNSUPPORTED,
    can_write,
    exclusive_aside,
    flush_file,
    flush_folder,
    is_leftover,
    make_folder,
    remove_leftovers,
    require_local_path,
    why_not_written,
    write_error,
)
from landmarks.support.errors import BusyError, LandmarksError, UsageError
from landmarks.support.places import Place, without_secrets
from landmarks.support.systems import readable, require_text

FORMAT = 3
"""The layout of records and tables that this version writes and reads."""

LOCK = ".lock"
"""The file in a folder that is locked by the process that writes there."""

MAX_RECORD_BYTES = 1 << 26
"""Larger records are not read."""


@contextlib.contextmanager
def written_whole(path: Place, *, tidy: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; if the block succeeds, it is flushed to disk and renamed to `path`.

    If the block fails or the process is killed, there is no file at `path`, or the earlier one is unchanged. Errors of
    the disk become a `LandmarksError`; any other error of the block passes through. With `tidy`, the half-written files
    of killed writers of `path` are removed, for folders that no process holds. A device or a pipe at `path` is refused.
    """
    path = Path(path)
    require_local_path(path)
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}{ASIDE}"
    try:
        with contextlib.suppress(FileExistsError):  # raised where a file stands in the folder's place
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.is_dir():
            raise write_error(path, f"{readable(path.parent)} is no folder")
        if path.is_dir():
            raise write_error(path, "it is a folder")
        if path.exists() and not path.is_file():  # or /dev/null would be replaced by a file, for all programs
            raise write_error(path, "it is no plain file")
    except OSError as error:
        raise write_error(path, error.strerror) from error
    try:
        try:
            with exclusive_aside(path, aside) if tidy else contextlib.nullcontext():
                yield aside
        except Exception as error:
            why = why_not_written(error, aside)
            if why is None:
                raise
            raise write_error(path, why) from error
        try:
            flush_file(aside)
            _apply_umask(aside)
            aside.replace(path)
        except OSError as error:
            raise write_error(path, error.strerror) from error
        flush_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # raised on a read-only disk even if there is no such file
            aside.unlink(missing_ok=True)


_KNOWN_ENDINGS = frozenset(
    {
        ".jpg", ".jpeg", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".mp4",
        ".svg", ".pdf", ".zip", ".tar", ".gz", ".json", ".parquet", ".safetensors", ".onnx", ".npy", ".npz", ".pt",
        ".pth", ".csv", ".tsv", ".xlsx", ".html", ".htm", ".txt", ".md", ".py", ".ipynb", ".toml", ".yaml", ".yml",
    }
)  # fmt: skip
"""Endings that say what kind of file it is; other endings may mean anything."""


def refuse_other_kind(path: Place, *endings: str, begins: bytes | None = None) -> None:
    """Raise an error if `path` is a folder, or exists and is of another kind by its name than the `endings` to write.

    Otherwise `--csv *.jpg` would replace the first image, and `--csv RUN/run.json` destroy a run. A file that begins
    with the bytes `begins` may have any name.
    """
    path = Path(path)
    require_local_path(path)
    if path.is_dir():
        raise write_error(path, "it is a folder")
    if path.suffix.lower() in _KNOWN_ENDINGS.difference(endings) and path.is_file() and not _begins(path, begins):
        raise UsageError(
            f"{readable(path)} is there already and is not {endings[0]} by its name",
            expected=" or ".join(f"NAME{ending}" for ending in endings),
            way_out="choose another name, or remove it first",
        )


def require_writable(path: Place) -> None:
    """Raise an error, before long work, if its result cannot be written to `path` because of the folder's permissions.

    Folders are not made, and a missing one is judged by the one that it would be made in.
    """
    folder = Path(path).absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise write_error(Path(path), f"no file can be made in {readable(folder)}")


def _begins(path: Path, begins: bytes | None) -> bool:
    if begins is None:
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(len(begins)) == begins
    return False


def _apply_umask(aside: Path) -> None:
    """Give a file that only its owner may read, as safetensors writes it, the mode of other new files."""
    if os.name == "nt" or aside.stat().st_mode & 0o777 != 0o600:
        return
    new = aside.with_name(f"{aside.name}{ASIDE}")
    new.touch(exist_ok=False)  # the umask itself can only be read by changing it for all threads
    try:
        with contextlib.suppress(PermissionError):  # every file has another owner: vfat, a shared folder of a host
            aside.chmod(new.stat().st_mode & 0o777)
    finally:
        new.unlink()


def write_record(path: Place, record: dict[str, Any], *, verb: str, inputs: str = "") -> None:
    """Write `record` as JSON, with `format`, the `verb` and version that wrote it, and the digest of its `inputs`."""
    content = {"format": FORMAT, "verb": verb, "version": __version__, "inputs": inputs, **record}
    text = without_secrets(json.dumps(content, indent=2, ensure_ascii=False)) + "\n"
    with written_whole(path) as aside:  # bytes of a path that are not valid UTF-8 are escaped
        aside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


class Record(dict[str, Any]):
    """A record that was read. Asking for an entry that it lacks raises `LandmarksError`, which names the file."""

    def __init__(
        self, entries: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), path: Place = "a record", way_out: str = ""
    ) -> None:
        """Take the entries read from `path`; `dataclasses.asdict` makes copies from entries alone."""
        super().__init__(entries)
        self.path, self.way_out = path, way_out

    def __missing__(self, name: str) -> Any:
        raise LandmarksError(f'{self.path} lacks "{name}"', way_out=self.way_out)


def read_record(path: Place, *, way_out: str = "") -> Record:
    """Return a record that `write_record` wrote; raise `LandmarksError` if it is missing, damaged or newer.

    `way_out` is the advice for a damaged one.
    """
    path = Path(path)
    require_text(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_RECORD_BYTES:
            raise LandmarksError(
                f"{path} cannot be a record",
                received=f"{status.st_size:,} bytes" if stat.S_ISREG(status.st_mode) else "no plain file",
                expected=f"a file of at most {MAX_RECORD_BYTES:,} bytes",
            )
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LandmarksError(f"there is no {path.name} in {path.parent}") from error
    except RecursionError as error:
        raise LandmarksError(
            f"{path} cannot be read as JSON (brackets within brackets without end)", way_out=way_out
        ) from error
    except (OSError, ValueError) as error:
        raise LandmarksError(f"{path} cannot be read as JSON ({error})", way_out=way_out) from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise LandmarksError(
            f"{path} is not one of our records", expected='an object with an integer "format"', way_out=way_out
        )
    refuse_other_formats(path, record["format"])
    return Record(record, path, way_out)


def refuse_other_formats(path: Path, format_number: int) -> None:
    """Raise `LandmarksError` if `format_number`, the format of `path`, is not that of this version."""
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
def held(folder: Place) -> Iterator[Path]:
    """Create `folder` if needed and lock it for this process; a second process gets `BusyError` and changes nothing."""
    folder = make_folder(Path(folder))
    with _locked(folder / LOCK, folder):
        remove_leftovers(folder)
        yield folder


@contextlib.contextmanager
def held_beside(path: Place) -> Iterator[Path]:
    """Lock one file for this process, by a lock beside it, for files in folders that no process holds.

    A second process gets `BusyError` and changes nothing.
    """
    path = Path(path)
    require_text(path)
    with _locked(path.parent / f".{path.name}{LOCK}", path):
        yield path


@contextlib.contextmanager
def _locked(mark: Path, what: Path) -> Iterator[None]:
    if mark.is_symlink() or (mark.exists() and not mark.is_file()):
        raise LandmarksError(f"{mark} is no plain file", received="a link or a pipe", way_out="remove it")
    lock = FileLock(mark, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"{what} is being written by another process", way_out="wait for it to end, or choose another folder"
        ) from error
    except (OSError, NotImplementedError) as error:  # the latter on systems without locks
        if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOLCK, *UNSUPPORTED):
            raise LandmarksError(
                f"{what} cannot be written ({getattr(error, 'strerror', None) or error})",
                way_out="choose a folder in which files can be made, or copy this one there",
            ) from error
        note(f"this disk knows no locks: see to it that nothing else writes {readable(what)} meanwhile")
    try:
        yield
    finally:
        lock.release()  # does nothing if it was not acquired


def cache_folder() -> Path:
    """Return the folder for files that can be computed again: `$XDG_CACHE_HOME/landmarks`, or `~/.cache/landmarks`.

    It is created if needed. Raises `LandmarksError` if it cannot be written.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "landmarks"
    except RuntimeError as error:  # the user has no home folder
        raise LandmarksError("there is no home folder to keep copies in", way_out=_OTHER_CACHE) from error
    if not can_write(folder):
        raise LandmarksError(f"{folder} cannot be written, where copies are kept", way_out=_OTHER_CACHE)
    return folder


_OTHER_CACHE = "name another folder in the environment: XDG_CACHE_HOME=FOLDER"


def digest_of(*parts: object) -> str:
    """Return 32 hex digits (BLAKE2b) of `parts`, written as canonical JSON."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def file_digest(path: Place) -> str:
    """Return 32 hex digits (BLAKE2b) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def refuse_foreign(out: Path, marks: tuple[str, ...], what: str, *, own: tuple[str, ...] = ()) -> None:
    """Raise `UsageError` if `out` is a file, or a folder that is not empty and has none of the files `marks`.

    `what` names what such a folder should hold. The lock and the half-written files that a killed process leaves do not
    count as contents, and neither do files named in `own`. Raises `BusyError` if another process holds the folder.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", way_out="choose another folder")
    try:
        if not out.exists() or any((out / mark).exists() for mark in marks):
            return
        names = sorted((entry.name for entry in out.iterdir()), key=lambda name: (name.startswith("."), name))
        contents = [name for name in names if name not in own and not is_leftover(name)]
    except OSError as error:
        raise LandmarksError(f"{out} cannot be looked into ({error.strerror})") from error
    if not contents:
        return
    if (out / LOCK).is_file():
        with held(out):  # raises if another process is at work that has not written its mark yet
            pass
    raise UsageError(f"{out} is not empty and holds no {what}", received=contents[0], way_out="choose another folder")
