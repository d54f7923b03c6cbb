from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from landmarks.archive.wanted import landmark_ids
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.tables import write_table


@pytest.mark.parametrize("text", ["9,6051", "6051, 9", " 9 6051 ", "9,6051,9,"])
def test_ids_are_read_however_they_are_separated(text: str) -> None:
    assert landmark_ids(text) == [9, 6051]


def test_ids_are_taken_as_they_are() -> None:
    assert landmark_ids([5, 3, 5]) == [3, 5]


@pytest.mark.parametrize(
    "text",
    [
        "5\n3\n",
        "3, 5",
        "\ufeff5 # a church\n\n3\n",
        "landmark_id,why\n3,x\n5,y\n",
        '"name","landmark_id"\n"a,b",5\nc,3\n',
    ],
)
def test_a_text_or_csv_file_names_landmarks(tmp_path: Path, text: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(text, encoding="utf-8")
    assert landmark_ids(file) == [3, 5]


def test_a_selection_a_dataset_and_a_run_name_their_landmarks(tmp_path: Path) -> None:
    table = pl.DataFrame({"landmark_id": [5, None, 3, 5]}, schema={"landmark_id": pl.Int64})
    write_table(tmp_path / "s.parquet", table)
    assert landmark_ids(tmp_path / "s.parquet") == [3, 5]
    write_table(tmp_path / "run" / "labels.parquet", table)
    assert landmark_ids(str(tmp_path / "run")) == [3, 5]


def test_the_shipped_list_holds_the_largest_class_of_the_clean_set() -> None:
    assert 138982 in landmark_ids("not-landmarks")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("5\nchurch\n", 'line 2 is strange; received "church"'),
        ("landmark_id\nx\n", 'landmark_id "x"'),
        ("\n", "names no"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(text)
    with pytest.raises(LandmarksError, match=told):
        landmark_ids(file)


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='no landmarks "colosseum"; expected ids separated by commas'):
        landmark_ids("colosseum")
    with pytest.raises(LandmarksError, match=r"has no labels\.parquet"):
        landmark_ids(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(LandmarksError, match="cannot be read as parquet"):
        landmark_ids(tmp_path / "bad.parquet")
