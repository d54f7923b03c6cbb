"""Parquet tables with the metadata that says how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from landmarks import __version__
from landmarks.support.errors import LandmarksError
from landmarks.support.files import FORMAT, refuse_other_formats, written_whole
from landmarks.support.systems import readable, require_text


def write_table(path: Path | str, table: pl.DataFrame, **metadata: object) -> None:
    """Write `table` as parquet, whole or not at all, with `metadata` kept as strings beside the columns."""
    texts = {name: readable(str(value)) for name, value in metadata.items()}
    texts |= {"landmarks.format": str(FORMAT), "landmarks.version": __version__}
    with written_whole(path) as aside:
        table.write_parquet(aside, metadata=texts)


def read_table(path: Path | str, schema: dict[str, Any] | None = None) -> pl.DataFrame:
    """Read a parquet table; with `schema` (column → polars type) those columns must be there and are cast to it."""
    path = Path(path)
    read_metadata(path)
    table = pl.read_parquet(path, glob=False)  # a [1] in a name is no pattern
    if schema is None:
        return table
    missing = [name for name in schema if name not in table.columns]
    if missing:
        raise LandmarksError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            received=", ".join(table.columns),
        )
    return table.with_columns(pl.col(name).cast(kind) for name, kind in schema.items())


def read_metadata(path: Path | str) -> dict[str, str]:
    """Read the metadata that `write_table` kept; a missing, damaged or newer table is an error of one line."""
    path = Path(path)
    require_text(path)
    if not path.is_file():
        raise LandmarksError(f"there is no table {path}")
    try:
        metadata = dict(pl.read_parquet_metadata(path))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LandmarksError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]})") from error
    if "landmarks.format" in metadata:  # a table of somebody else's has none
        refuse_other_formats(path, int(metadata["landmarks.format"]))
    return metadata
