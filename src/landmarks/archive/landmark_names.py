"""What the archive tells of its landmarks: readable names from their categories, kinds, and what is no landmark."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from landmarks.archive.csv_tables import CATEGORY, HIERARCHY, CsvTable, collect, scan

TOLD = ("category", "supercategory", "hierarchical_label", "natural_or_human_made")
"""What the archive's files tell about a landmark; null where they say nothing."""


def readable_name(category: str) -> str:
    """Return the words of a category's URL: `…/Category:Saint_Peter%27s_Basilica` reads "Saint Peter's Basilica"."""
    words = unquote(category.rsplit("Category:", 1)[-1], errors="replace").replace("_", " ")
    return " ".join("".join(letter for letter in words if letter.isprintable()).split())


def with_told(landmarks: pl.DataFrame, category_file: Path | None, hierarchy_file: Path | None) -> pl.DataFrame:
    """Add the columns `TOLD` to a table with a `landmark_id`, from whichever of the two files is there."""
    for table, file in ((CATEGORY, category_file), (HIERARCHY, hierarchy_file)):
        if file is not None:
            landmarks = landmarks.join(_one_row_each(table, file), on="landmark_id", how="left")
    missing = [pl.lit(None, dtype=pl.String).alias(name) for name in TOLD if name not in landmarks.columns]
    return landmarks.with_columns(missing)


def with_names(landmarks: pl.DataFrame) -> pl.DataFrame:
    """Add the readable `name` to a table with a `category`."""
    names = [None if category is None else readable_name(category) for category in landmarks["category"]]
    return landmarks.with_columns(name=pl.Series(names, dtype=pl.String))


def holds(text: pl.Expr, pattern: str) -> pl.Expr:
    """Return the condition that `text` holds `pattern` as it stands or as a regular expression, in either case."""
    plain = text.str.to_lowercase().str.contains(pattern.lower(), literal=True)
    return plain | text.str.contains(f"(?i){pattern}") if _is_expression(pattern) else plain


def named(pattern: str) -> pl.Expr:
    """Return the condition that a landmark's readable name or its category holds `pattern` (see `holds`)."""
    return holds(pl.concat_str(pl.col("name"), pl.col("category"), separator="\n", ignore_nulls=True), pattern)


def not_landmarks() -> pl.DataFrame:
    """Return the shipped list of categories that are no landmark: `landmark_id`, `category`, `why`."""
    with resources.files("landmarks.archive").joinpath("not_landmarks.csv").open("rb") as file:
        return pl.read_csv(file)


def _is_expression(pattern: str) -> bool:
    try:
        pl.select(pl.lit("").str.contains(f"(?i){pattern}"))
    except pl.exceptions.PolarsError:  # "Colosseum (Rome" is no expression, but may well stand in a name
        return False
    return True


def _one_row_each(table: CsvTable, file: Path) -> pl.DataFrame:
    rows = collect(scan(table, file), table, file).filter(pl.col("landmark_id").is_not_null())
    return rows.unique("landmark_id", keep="first", maintain_order=True)
