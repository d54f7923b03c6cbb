"""Tables and arrays in files: Parquet with metadata, CSV without formulas, and `.npy` arrays mapped into memory."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import DTypeLike, NDArray

from landmarks import __version__
from landmarks.support.disk import UNSUPPORTED
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import FORMAT, refuse_other_formats, refuse_other_kind, written_whole
from landmarks.support.places import Place, without_secrets
from landmarks.support.systems import readable, require_text

MAX_UNCHECKED_ROWS = 1_000_000
"""Up to this number of rows, a table is read whatever its size in bytes."""


def write_table(path: Place, table: pl.DataFrame, **metadata: object) -> None:
    """Write `table` as parquet atomically, with `metadata` as strings."""
    _write(Path(path), table, metadata, tidy=False)


def write_lone_table(path: Place, table: pl.DataFrame, **metadata: object) -> None:
    """Write a table as `write_table` does, in a folder that no process holds (see `written_whole`).

    Raises `UsageError` if there is a file of another kind by its name, or a table of other columns.
    """
    refuse_other_kind(path, ".parquet", begins=b"PAR1")
    _refuse_other_table(Path(path), table.columns)
    _write(Path(path), table, metadata, tidy=True)


def write_cached_table(path: Path, table: pl.DataFrame, **metadata: object) -> None:
    """Write a table that can be computed again, in a folder that no process holds, in place of whatever is there."""
    _write(path, table, metadata, tidy=True)


def _refuse_other_table(path: Path, columns: list[str]) -> None:
    """Raise `UsageError` if there is a table of other columns at `path`, such as `images.parquet` of a dataset."""
    if not path.is_file():
        return
    try:
        with open(path, "rb") as file:  # polars would take [1] in a path for a pattern
            present = list(pl.read_parquet_schema(file))
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):  # damaged: nothing is lost with it
        return
    if set(present) != set(columns):
        raise _other_table(path, present, columns)


def _other_table(path: Path, present: Iterable[str], columns: Iterable[str]) -> UsageError:
    return UsageError(
        f"{readable(path)} is there already and is another table",
        received=f"columns {', '.join(present)[:200]}",
        expected=", ".join(columns)[:200],
        way_out="choose another name, or remove it first",
    )


def _write(path: Path, table: pl.DataFrame, metadata: dict[str, object], *, tidy: bool) -> None:
    texts = {name: without_secrets(readable(str(value))) for name, value in metadata.items()}
    texts |= {"landmarks.format": str(FORMAT), "landmarks.version": __version__}
    with written_whole(path, tidy=tidy) as aside:
        table.write_parquet(aside, metadata=texts)


def read_table(path: Place, schema: dict[str, Any] | None = None) -> pl.DataFrame:
    """Return a parquet table; with `schema` (column → polars type), those columns are required and cast."""
    path = Path(path)
    read_metadata(path)
    return _read(path, path, schema)


def read_with_metadata(path: Path, schema: dict[str, Any]) -> tuple[pl.DataFrame, dict[str, str]]:
    """Return a small table and its metadata from the same file, even if another replaces it meanwhile."""
    _require_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LandmarksError(f"{path} cannot be read ({error.strerror})") from error
    metadata = _metadata(path, io.BytesIO(content))
    return _read(path, io.BytesIO(content), schema), metadata


def read_metadata(path: Place) -> dict[str, str]:
    """Return the metadata of a table; raise `LandmarksError` if the table is missing, damaged or newer."""
    path = Path(path)
    _require_file(path)
    return _metadata(path, path)


def _require_file(path: Path) -> None:
    require_text(path)
    if path.is_dir():
        raise LandmarksError(f"{path} is a folder, and no table", expected="a parquet file")
    if not path.is_file():
        raise LandmarksError(f"there is no table {path}")


def _metadata(path: Path, source: Path | io.BytesIO) -> dict[str, str]:
    with _as_landmarks_error(path):
        metadata = dict(pl.read_parquet_metadata(source))
    number = metadata.get("landmarks.format", "")  # missing in other programs' tables
    if number and not (number.isascii() and number.isdigit() and len(number) < 10):
        raise LandmarksError(f"{path} is not one of our tables", received=f"format {number[:20]!r}")
    if number:
        refuse_other_formats(path, int(number))
    return metadata


def _read(path: Path, source: Path | io.BytesIO, schema: dict[str, Any] | None) -> pl.DataFrame:
    """Return the table; raise `LandmarksError` if it is damaged or claims more rows than its bytes can hold."""
    with _as_landmarks_error(path):
        scanned = pl.scan_parquet(source, glob=False)
        columns = scanned.collect_schema().names()
        rows = scanned.select(pl.len()).collect().item()
    if rows > max(MAX_UNCHECKED_ROWS, 8 * path.stat().st_size):  # a valid row may take less than a byte
        raise LandmarksError(f"{path} claims {rows:,} rows in {path.stat().st_size:,} bytes")
    missing = [name for name in schema or () if name not in columns]
    if missing:
        raise LandmarksError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            received=", ".join(columns),
        )
    with _as_landmarks_error(path):
        table = pl.read_parquet(source, glob=False)
        return table.with_columns(pl.col(name).cast(kind) for name, kind in (schema or {}).items())


@contextlib.contextmanager
def _as_landmarks_error(path: Path) -> Iterator[None]:
    """Raise `LandmarksError` if the file that the block reads is no parquet, damaged, or of other types."""
    try:
        yield
    except pl.exceptions.InvalidOperationError as error:
        raise LandmarksError(f"{path} holds values of a wrong kind ({_first_line(error)})") from error
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise LandmarksError(f"{path} cannot be read as parquet ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


# CSV files: names come from strangers, and a spreadsheet takes cells that begin with one of these for formulas.


_FORMULA = r"^('*[=+\-@\t\r])"
_ESCAPED = r"^'('*[=+\-@\t\r])"


def csv_text(table: pl.DataFrame) -> str:
    """Return `table` as CSV in which no text can become a formula: `'` is put before =, +, -, @, a tab and a return.

    A text that already begins with such quotes gets one more, so that `unescaped` can undo it. Numbers are unchanged.
    """
    texts = [name for name, kind in table.schema.items() if kind == pl.String]
    return table.with_columns(pl.col(name).str.replace(_FORMULA, "'${1}") for name in texts).write_csv()


def unescaped(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table read from CSV without the quotes that `csv_text` puts before possible formulas."""
    texts = [name for name, kind in table.schema.items() if kind == pl.String]
    return table.with_columns(pl.col(name).str.replace(_ESCAPED, "${1}") for name in texts)


CSV_ENDINGS = (".csv", ".tsv", ".txt")

MAX_HEADER = 10_000
"""Characters of a CSV's first line that are read."""


def refuse_other_csv(path: Place, columns: Iterable[str]) -> None:
    """Raise `UsageError` where a CSV of `columns` would replace a file of another kind, or a table of other columns."""
    refuse_other_kind(path, *CSV_ENDINGS)
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            header = file.readline(MAX_HEADER).strip()
    except OSError:  # it is not there, or cannot be read, which writing it will tell
        return
    present = [cell.strip('"') for cell in re.split("[,;\t]", header)]
    if header and set(present) != set(columns):
        raise _other_table(Path(path), present, columns)


def write_csv(path: Place, table: pl.DataFrame) -> None:
    """Write `table` as `csv_text` atomically, in a folder that no process needs to hold.

    Raises `UsageError` if there is a file of another kind by its name.
    """
    refuse_other_kind(path, *CSV_ENDINGS)
    with written_whole(path, tidy=True) as aside:
        aside.write_text(csv_text(table), encoding="utf-8", newline="")


# ── Arrays, written row by row ──────────────────────────────────────────────────────────────────────────────────────


WriteRows = Callable[[NDArray[np.int64], NDArray[Any]], None]
"""`write(rows, values)` writes one of `values` to each of `rows`; rows that are never written hold zeros."""

_CANNOT_MAP = (errno.ENODEV, *UNSUPPORTED)
"""Errors of disks whose files cannot be mapped, or not shared between processes."""


@contextlib.contextmanager
def array_writer(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> Iterator[WriteRows]:
    """Create a `.npy` file of `shape` and yield a function that writes its rows.

    The file is not mapped: if the disk becomes full under a mapped file, a signal ends the process without a message.
    """
    kind = np.dtype(dtype)
    row_bytes = kind.itemsize * math.prod(shape[1:])
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + row_bytes * shape[0])

        def write(rows: NDArray[np.int64], values: NDArray[Any]) -> None:
            values = np.ascontiguousarray(values, kind)
            if values.shape != (len(rows), *shape[1:]):
                raise ValueError(f"values of shape {values.shape} for {len(rows)} rows of {shape[1:]}")
            ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
            first = 0
            for end in ends if len(rows) else ():  # consecutive rows are written at once
                file.seek(start + row_bytes * int(rows[first]))
                file.write(values[first:end].tobytes())
                first = end
            file.flush()

        yield write


def open_array(path: Path) -> NDArray[Any]:
    """Map a `.npy` file for reading; if the disk cannot, map it copy-on-write, or else read all of it.

    Raises `OSError` or `ValueError` for a file that is not there, or holds no whole array.
    """
    array: NDArray[Any]
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except EOFError as error:
        raise ValueError("it is empty") from error
    except OSError as error:
        if error.errno not in _CANNOT_MAP:
            raise
        try:
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except OSError:
            array = np.load(path, allow_pickle=False)
    array.flags.writeable = False
    return array
