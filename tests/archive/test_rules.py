from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.archive.rules import SelectionRule, landmark_ids, ranked_and_drawn
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.tables import write_table


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"set": "tests"}, 'no set "tests"; expected train or test; did you mean "test"?'),
        ({"set": "index"}, 'no set "index"'),
        ({"kind": "natrual"}, 'no kind of landmark "natrual"; expected natural or human-made'),
        ({"skip": -1}, "--skip -1 is impossible; expected 0 or more"),
        ({"choose": 0}, "--choose 0 is impossible"),
        ({"take": 10, "choose": 11}, "--choose 11 cannot be more than --take 10"),
        ({"min_images": 5, "max_images": 4}, "--min-images 5 is more than --max-images 4"),
        ({"unknown": 5}, "--unknown belongs to --set test"),
        ({"set": "test", "take": 5, "choose": 2}, "--take, --choose: only with --set train"),
    ],
)
def test_an_impossible_rule_is_refused_with_its_reason(rule: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        SelectionRule(**rule)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_a_rule_reads_as_its_command() -> None:
    assert str(SelectionRule()) == "--set train"
    assert str(SelectionRule(clean=True, name="St. Peter's", skip=49, take=100, choose=20)) == (
        "--set train --clean --name 'St. Peter'\"'\"'s' --skip 49 --take 100 --choose 20 --seed 0"
    )
    assert str(SelectionRule(set="test", landmarks=range(25))) == "--set test --landmarks 0,1,2,3,4,5,6,7,8,9,… (25)"


@given(
    st.dictionaries(st.integers(0, 10**6), st.integers(1, 5), min_size=1, max_size=40),
    st.integers(0, 5),
    st.integers(1, 40),
)
def test_ranking_is_by_images_and_then_by_landmark(images: dict[int, int], skip: int, take: int) -> None:
    landmarks = pl.DataFrame({"landmark_id": list(images), "images": list(images.values())})
    expected = sorted(images, key=lambda landmark: (-images[landmark], landmark))[skip : skip + take]
    if expected:
        assert ranked_and_drawn(SelectionRule(skip=skip, take=take), landmarks)["landmark_id"].to_list() == expected


def test_the_draw_of_seed_0_is_pinned() -> None:
    landmarks = pl.DataFrame({"landmark_id": range(100), "images": [1] * 100})
    assert ranked_and_drawn(SelectionRule(choose=5, seed=0), landmarks)["landmark_id"].to_list() == [16, 29, 36, 50, 78]


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
    ("content", "message"),
    [
        (b"5\nchurch\n", 'line 2 is invalid; received "church"'),
        (b"landmark_id\nx\n", 'landmark_id "x"'),
        (b"\n", "names no"),
        (b'landmark_id,name\n5,"a\n6,b\n', "cannot be read as a CSV: line 2: unexpected end"),
        (b"name,landmark_id\na,\xff\xfe\n", "cannot be read as a CSV: line 2 is not UTF-8"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(LandmarksError, match=message):
        landmark_ids(file)


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='no landmarks "colosseum"; expected ids separated by commas'):
        landmark_ids("colosseum")
    with pytest.raises(LandmarksError, match=r"has no labels\.parquet"):
        landmark_ids(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(LandmarksError, match="cannot be read as parquet"):
        landmark_ids(tmp_path / "bad.parquet")
