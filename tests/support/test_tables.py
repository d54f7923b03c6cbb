from __future__ import annotations

import csv
import io
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.tables import csv_text, read_metadata, read_table, refuse_other_csv, unescaped, write_table


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
    with pytest.raises(LandmarksError, match="lacks the column split; received image_id"):
        read_table(tmp_path / "t.parquet", {"image_id": pl.String, "split": pl.String})


def test_a_damaged_table_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(LandmarksError, match="cannot be read as parquet") as caught:
        read_table(tmp_path / "t.parquet")
    assert "\n" not in str(caught.value)
    with pytest.raises(LandmarksError, match="there is no table"):
        read_table(tmp_path / "none.parquet")


CELLS = st.text(st.sampled_from(list("=+-@\t\r'\"a1,\n;")) | st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(CELLS, min_size=1, max_size=5))
def test_no_cell_of_a_csv_is_a_formula_and_what_was_written_comes_back(cells: list[str]) -> None:
    text = csv_text(pl.DataFrame({"name": cells, "number": [-1.5] * len(cells)}))
    read = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert not any(row[0].startswith(("=", "+", "-", "@", "\t", "\r")) for row in read)
    assert all(row[1] == "-1.5" for row in read)
    table = pl.DataFrame({"name": [row[0] for row in read]}, schema={"name": pl.String})
    assert unescaped(table)["name"].to_list() == cells


def test_a_written_address_holds_no_password(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", pl.DataFrame({"id": ["a"]}), mirror="http://me:s3c/ret@host/x")
    assert b"s3c" not in (tmp_path / "t.parquet").read_bytes()


@pytest.mark.parametrize("kind", ["list", "text"])
def test_values_of_a_wrong_kind_are_one_line(kind: str, tmp_path: Path) -> None:
    value = [[1]] if kind == "list" else ["many"]
    write_table(tmp_path / "t.parquet", pl.DataFrame({"label": value}))
    with pytest.raises(LandmarksError, match=r"t\.parquet"):
        read_table(tmp_path / "t.parquet", {"label": pl.UInt32})


def test_a_table_cut_at_any_place_is_one_line(tmp_path: Path) -> None:
    write_table(tmp_path / "whole.parquet", pl.DataFrame({"id": [f"{n:016x}" for n in range(200)]}))
    whole = (tmp_path / "whole.parquet").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.parquet").write_bytes(whole[:length])
        with pytest.raises(LandmarksError):
            read_table(tmp_path / "cut.parquet", {"id": pl.String})


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="is a folder, and no table"):
        read_table(tmp_path)


def test_a_csv_of_other_columns_is_not_taken_for_the_one_to_write(tmp_path: Path) -> None:
    columns = ("image_id", "name")
    refuse_other_csv(tmp_path / "new.csv", columns)
    for name, content in {
        "a.csv": "image_id,name\n1,x\n",
        "b.txt": '\ufeff"image_id";"name"\n',
        "empty.csv": "",
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        refuse_other_csv(tmp_path / name, columns)
    (tmp_path / "train.csv").write_text("id,url,landmark_id\n")
    message = (
        "train.csv is there already and is another table; received columns id, url, landmark_id; expected image_id, "
    )
    with pytest.raises(UsageError, match=message):
        refuse_other_csv(tmp_path / "train.csv", columns)
    (tmp_path / "notes.txt").write_bytes(b"\xffmine\n")
    with pytest.raises(UsageError, match="another table"):
        refuse_other_csv(tmp_path / "notes.txt", columns)
