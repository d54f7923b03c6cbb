from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from landmarks.support.errors import LandmarksError
from landmarks.support.tables import read_metadata, read_table, write_table


def test_a_table_comes_back_with_its_metadata(tmp_path: Path) -> None:
    table = pl.DataFrame({"image_id": ["a", "b"], "landmark_id": [1, None]})
    write_table(tmp_path / "t.parquet", table, rule="all", seed=0)
    assert read_table(tmp_path / "t.parquet").equals(table)
    metadata = read_metadata(tmp_path / "t.parquet")
    assert (metadata["rule"], metadata["seed"]) == ("all", "0")


def test_columns_are_cast_to_the_schema_and_others_are_kept(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", pl.DataFrame({"label": [1], "more": ["x"]}))
    table = read_table(tmp_path / "t.parquet", {"label": pl.UInt32})
    assert table.schema == {"label": pl.UInt32, "more": pl.String}


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", pl.DataFrame({"image_id": ["a"]}))
    with pytest.raises(LandmarksError, match="lacks the column split; received id"):
        read_table(tmp_path / "t.parquet", {"image_id": pl.String, "split": pl.String})


def test_a_damaged_table_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(LandmarksError, match="cannot be read as parquet") as caught:
        read_table(tmp_path / "t.parquet")
    assert "\n" not in str(caught.value)
    with pytest.raises(LandmarksError, match="there is no table"):
        read_table(tmp_path / "none.parquet")
