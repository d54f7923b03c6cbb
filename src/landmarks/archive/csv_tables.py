"""Read the archive's CSV files: four million rows in a second, with errors that name the file and the line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import polars as pl

from landmarks.dataset.csv_text import SEPARATORS
from landmarks.support.errors import LandmarksError
from landmarks.support.systems import require_text

ID = "[0-9a-f]{16}"
NUMBER = "[0-9]{1,18}"


@dataclass(frozen=True)
class CsvColumn:
    """One column: the regular expression that a whole cell matches, its description for messages, and its type."""

    pattern: str
    meaning: str
    dtype: type[pl.DataType] = pl.String


IMAGE = CsvColumn(ID, "16 hexadecimal digits in lower case")
IMAGES = CsvColumn(f"{ID}( +{ID})*", "image ids separated by spaces")
LANDMARK = CsvColumn(NUMBER, "a landmark id, an integer from 0 on", pl.Int64)
LANDMARKS = CsvColumn(f"( *{NUMBER})* *|None", "landmark ids separated by spaces, or nothing")
USAGE = CsvColumn("Public|Private|Ignored", "Public, Private or Ignored")
TEXT = CsvColumn("(?s:.*)", "any text")


@dataclass(frozen=True)
class CsvTable:
    """One CSV of the archive: its path in a mirror, and the columns that are read."""

    path: str
    columns: Mapping[str, CsvColumn]


TRAIN = CsvTable("metadata/train.csv", {"id": IMAGE, "url": TEXT, "landmark_id": LANDMARK})
CLEAN = CsvTable("metadata/train_clean.csv", {"landmark_id": LANDMARK, "images": IMAGES})
ATTRIBUTION = CsvTable("metadata/train_attribution.csv", {"id": IMAGE, "author": TEXT, "license": TEXT, "title": TEXT})
CATEGORY = CsvTable("metadata/train_label_to_category.csv", {"landmark_id": LANDMARK, "category": TEXT})
HIERARCHY = CsvTable(
    "metadata/train_label_to_hierarchical.csv",
    {"landmark_id": LANDMARK, "supercategory": TEXT, "hierarchical_label": TEXT, "natural_or_human_made": TEXT},
)
SOLUTION = CsvTable("ground_truth/recognition_solution_v2.1.csv", {"id": IMAGE, "landmarks": LANDMARKS, "Usage": USAGE})


def scan(table: CsvTable, file: Path) -> pl.LazyFrame:
    """Return the table's columns, with `id` renamed to `image_id` and blank lines left out.

    Raises `LandmarksError` when the file lacks one of the columns.
    """
    require_text(file)
    header = _header(file)
    missing = [name for name in table.columns if name not in header]
    if missing:
        received = ",".join(header)[:200].replace("\t", "\\t")
        raise LandmarksError(
            f"{file} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            received=f'the header "{received}"' if header else "an empty file",
            expected=",".join(table.columns),
            way_out="save it with commas between the cells" if _other_separator(header) else "",
        )
    dtypes = {name: column.dtype for name, column in table.columns.items()}
    rows = pl.scan_csv(file, schema_overrides=dtypes, infer_schema=False, glob=False, low_memory=True)
    # The condition is on all columns because polars checks a row's number of cells only when it reads the last column.
    rows = rows.filter(~pl.all_horizontal(pl.all().is_null())).select(list(table.columns))
    return rows.rename({"id": "image_id"}) if "id" in table.columns else rows


def collect(rows: pl.LazyFrame, table: CsvTable, file: Path) -> pl.DataFrame:
    """Compute `rows`, a query on `scan(table, file)`; raise an error that names the line of an unreadable row."""
    try:
        return rows.collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise invalid_row_error(table, file, reason=str(error).splitlines()[0]) from error


def read_checked(table: CsvTable, file: Path) -> pl.DataFrame:
    """Return a CSV's rows as text; raise an error that names the first line whose cells do not match the patterns."""
    text_columns = {name: CsvColumn(column.pattern, column.meaning) for name, column in table.columns.items()}
    as_text = CsvTable(table.path, text_columns)
    rows = collect(scan(as_text, file), as_text, file)
    matches = [
        pl.col("image_id" if name == "id" else name).fill_null("").str.contains(f"^(?:{column.pattern})$")
        for name, column in table.columns.items()
    ]
    if not rows.select(pl.all_horizontal(matches).all()).item():
        raise invalid_row_error(as_text, file)
    return rows


def invalid_row_error(table: CsvTable, file: Path, *, reason: str = "") -> LandmarksError:
    """Return an error that names the first row whose cells do not match the table's columns.

    The file is read again, slowly. `reason` is given when every row matches, yet the file could not be read.
    """
    patterns = {name: re.compile(column.pattern) for name, column in table.columns.items()}
    header = _header(file)
    for line, cells, problem in _rows(file):
        if problem:
            return LandmarksError(f"{file} line {line} is invalid", received=problem)
        if len(cells) != len(header):
            return LandmarksError(
                f"{file} line {line} is invalid", received=f"{len(cells)} cells", expected=len(header)
            )
        row = dict(zip(header, cells, strict=True))
        for name, pattern in patterns.items():
            if not pattern.fullmatch(row[name]):
                meaning = table.columns[name].meaning
                return LandmarksError(
                    f"{file} line {line} is invalid", received=f'{name} "{row[name][:80]}"', expected=meaning
                )
    return LandmarksError(f"{file} cannot be read as CSV", received=reason)


def lines_of(file: Path, image_id: str) -> list[int]:
    """Return the numbers of the lines with this image id."""
    position = _header(file).index("id")
    return [line for line, cells, _ in _rows(file) if cells[position : position + 1] == [image_id]]


def _rows(file: Path) -> Iterator[tuple[int, list[str], str]]:
    """Yield the line number, the cells and the problem, if any, of every row below the header that is not blank."""
    with _open(file) as stream:
        reader = csv.reader(stream, strict=True)
        next(reader, None)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield line, [], str(error)
                return
            if cells is None:
                return
            if cells:
                yield line, cells, "" if _is_utf8(cells) else "bytes that are not UTF-8"


def _other_separator(header: list[str]) -> bool:
    return len(header) == 1 and any(mark in header[0] for mark in SEPARATORS)


def _is_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:  # a surrogate, which stands for a byte that could not be decoded
        return False
    return True


def _header(file: Path) -> list[str]:
    if file.is_dir():
        raise LandmarksError(f"{file} is a folder", expected="a CSV file")
    try:
        with _open(file) as stream:
            header = next(csv.reader(stream), [])
    except FileNotFoundError as error:
        raise LandmarksError(f"there is no {file}") from error
    except csv.Error as error:
        raise LandmarksError(f"{file} is not a CSV file", received="a first line that cannot be read") from error
    if not _is_utf8(header):
        raise LandmarksError(f"{file} is not a CSV file", received="a first line that is not UTF-8")
    return header


def _open(file: Path) -> TextIO:
    return open(file, encoding="utf-8-sig", newline="", errors="surrogateescape")
