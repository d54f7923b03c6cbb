"""Splits are known in any spelling; names that may not be meant as they stand are said, and taken all the same."""

from __future__ import annotations

import pytest

from landmarks.dataset.spelling import integer_labels, parse_split, remarks_about_folders, remarks_about_names


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, "train") for name in ("train", "Train", "TRAINING", "Training Set", "train_images", "trainset")),
        *((name, "val") for name in ("val", "Valid", "VALIDATION", "dev", "validation_data", "val2017", "eval")),
        *((name, "test") for name in ("test", "Testing", "TEST_SET", "images_test", "test.split", "tests")),
        *((name, None) for name in ("trainer", "value", "testament", "valley", "training camp", "set", "", "contest")),
    ],
)  # fmt: skip
def test_splits_are_known_by_what_people_call_them(name: str, split: str | None) -> None:
    assert parse_split(name) == split


@pytest.mark.parametrize(
    ("names", "remark"),
    [
        (["Cat", "cat", "dog"], '"Cat" and "cat"'),
        (["cat", "\u200bcat"], "hardly differ"),
        (["old town", "old_town", "Old  Town"], '"Old  Town" and "old town" and "old_town"'),
        (["3", "3.0", "03"], '"03" and "3" and "3.0"'),
        (["Unknown", "cat"], '"Unknown" is taken as a landmark; were it images of nothing known: call it _unknown'),
        (["_Unknown", "cat"], "call it _unknown"),
        (["nan", "cat"], '"nan" is taken as a landmark'),
        (["-1", "0", "1"], 'positions of the sorted names and not the numbers in them, as "-1" is none'),
        (["1.23E+05", "7"], '"1.23E+05" is a number that a spreadsheet shortened: several labels may have become one'),
        (["cat", "dog", "cat|dog"], '"cat|dog" is taken as one landmark, although cat and dog are landmarks too'),
        (["cat", "dog", "cat dog"], '"cat dog" is taken as one landmark, although cat and dog are landmarks too'),
        (["cat", "dog", "cat & dog"], "although cat and dog are landmarks too"),
        (["'cat'", "cat"], """"'cat'" and "cat\""""),
        (["\u201ccat\u201d", "cat"], "hardly differ"),
        (["['cat', 'dog']", "['cat']"], "['cat', 'dog'] is taken as one landmark, and looks like a list"),
    ],
)
def test_what_is_doubtful_is_one_remark(names: list[str], remark: str) -> None:
    assert remark in "; ".join(remarks_about_names(names))


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog"],
        ["001", "002", "010"],
        ["7", "8", "gate", "tower"],
        ["Saint Mary, Rome", "Saint Mary, Paris"],
        ["nanking", "noner"],
        ["...", "---", "_", "-"],
        ["[b]", "(old) tower", "d'Orsay", "'"],
        [],
    ],
)
def test_plain_names_raise_no_doubt(names: list[str]) -> None:
    assert remarks_about_names(names) == []


def test_many_doubts_are_counted() -> None:
    (remark,) = remarks_about_names([f"{letter}{number}" for letter in "aA" for number in range(10)])
    assert remark.endswith("and 7 more")


def test_folders_that_become_one_landmark_are_named() -> None:
    (remark,) = remarks_about_folders(["cat", "cat ", "dog", "\u00e9", "e\u0301"])
    assert '"cat" = "cat "' in remark
    assert remarks_about_folders(["cat", "dog"]) == []


def test_whole_numbers_are_found_where_all_are_and_none_become_one() -> None:
    assert integer_labels(["3.0", "12.0", "3.0"]) == {"3.0": "3", "12.0": "12"}
    for names in (["3.0", "12"], ["3.0", "3.00"], ["3.5"], ["003"], []):
        assert integer_labels(names) == {}
