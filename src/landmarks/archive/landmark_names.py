"""The archive's details about its landmarks: readable names from their categories, kinds, and what is no landmark."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from landmarks.archive.csv_tables import CATEGORY, HIERARCHY, CsvTable, collect, scan

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
