"""The archive's CSV files: four million rows in a second, errors that name the line, and the details of landmarks."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote

import polars as pl

from landmarks.dataset.csv_files import SEPARATORS
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
USAGE = CsvColumn("(?i) *(Public|Private|Ignored) *", "Public, Private or Ignored")
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
    if table.columns.get("Usage") is USAGE:
        rows = rows.with_columns(pl.col("Usage").str.strip_chars().str.to_titlecase())
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
        raise LandmarksError(
            f"{file} is not a CSV file", received="a first line that is not UTF-8", way_out="save it as CSV UTF-8"
        )
    return header


def _open(file: Path) -> TextIO:
    return open(file, encoding="utf-8-sig", newline="", errors="surrogateescape")


# ── The details of landmarks: readable names from their categories, kinds, and what is no landmark ──────────────────


LANDMARK_DETAILS = ("category", "supercategory", "hierarchical_label", "natural_or_human_made")
"""Columns about a landmark in the archive's files; null where they say nothing."""


def readable_name(category: str) -> str:
    """Return the name in a category's URL: `…/Category:Saint_Peter%27s_Basilica` gives "Saint Peter's Basilica"."""
    words = unquote(category.rsplit("Category:", 1)[-1], errors="replace").replace("_", " ")
    return " ".join("".join(letter for letter in words if letter.isprintable()).split())


def with_details(landmarks: pl.DataFrame, category_file: Path | None, hierarchy_file: Path | None) -> pl.DataFrame:
    """Add the columns `LANDMARK_DETAILS` to a table with a `landmark_id`, from whichever of the two files is given."""
    for table, file in ((CATEGORY, category_file), (HIERARCHY, hierarchy_file)):
        if file is not None:
            landmarks = landmarks.join(_one_row_each(table, file), on="landmark_id", how="left")
    missing = [name for name in LANDMARK_DETAILS if name not in landmarks.columns]
    return landmarks.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in missing)


def with_names(landmarks: pl.DataFrame) -> pl.DataFrame:
    """Add the readable `name` to a table with a `category`."""
    names = [None if category is None else readable_name(category) for category in landmarks["category"]]
    return landmarks.with_columns(name=pl.Series(names, dtype=pl.String))


def contains_pattern(text: pl.Expr, pattern: str) -> pl.Expr:
    """Return the condition that `text` contains `pattern`, literally or as a regular expression, ignoring case."""
    literal = text.str.to_lowercase().str.contains(pattern.lower(), literal=True)
    return literal | text.str.contains(f"(?i){pattern}") if _is_regular_expression(pattern) else literal


def name_contains(pattern: str) -> pl.Expr:
    """Return the condition that a landmark's readable name or category contains `pattern` (see `contains_pattern`)."""
    name_and_category = pl.concat_str(pl.col("name"), pl.col("category"), separator="\n", ignore_nulls=True)
    return contains_pattern(name_and_category, pattern)


def not_landmarks() -> pl.DataFrame:
    """Return the shipped list of categories that are no landmarks: `landmark_id`, `category`, `why`."""
    with resources.files("landmarks.archive").joinpath("not_landmarks.csv").open("rb") as file:
        return pl.read_csv(file)


def _is_regular_expression(pattern: str) -> bool:
    try:
        pl.select(pl.lit("").str.contains(f"(?i){pattern}"))
    except pl.exceptions.PolarsError:  # "Colosseum (Rome" is not a regular expression, but may be part of a name
        return False
    return True


def _one_row_each(table: CsvTable, file: Path) -> pl.DataFrame:
    rows = collect(scan(table, file), table, file).filter(pl.col("landmark_id").is_not_null())
    return rows.unique("landmark_id", keep="first", maintain_order=True)
