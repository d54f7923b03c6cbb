"""A name that looks like a pattern names one file, whoever reads it."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from landmarks.support.tables import read_metadata, read_table, write_table

SOURCES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))


@pytest.mark.parametrize("name", ["table[1].parquet", "t*ble.parquet", "{a,b}.parquet", "[2024]/table.parquet"])
def test_a_table_is_read_from_the_file_of_that_very_name(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / "table1.parquet", pl.DataFrame({"n": [0]}), who="another")
    write_table(tmp_path / name, pl.DataFrame({"n": [7]}), who="this")
    assert read_table(tmp_path / name)["n"].to_list() == [7]
    assert read_metadata(tmp_path / name)["who"] == "this"


def test_no_reader_of_polars_takes_a_name_for_a_pattern() -> None:
    calls = re.compile(r"pl\.(?:read|scan)_(?:csv|parquet)\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
    found = [(path.name, call) for path in SOURCES for call in calls.findall(path.read_text(encoding="utf-8"))]
    assert len(found) >= 8
    by_bytes = ("read_bytes()", "(file)")  # what is opened already has no name
    assert [one for one in found if "glob=False" not in one[1] and not any(what in one[1] for what in by_bytes)] == []
