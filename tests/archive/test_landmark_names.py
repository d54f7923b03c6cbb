from __future__ import annotations

import csv
import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.archive.landmark_names import LANDMARK_DETAILS, not_landmarks, readable_name, with_details, with_names


@pytest.mark.parametrize(
    ("category", "name"),
    [
        ("http://commons.wikimedia.org/wiki/Category:Saint_Peter%27s_Basilica", "Saint Peter's Basilica"),
        ("http://commons.wikimedia.org/wiki/Category:Bro_kyrka,_Bohusl%C3%A4n", "Bro kyrka, Bohuslän"),
        ("http://commons.wikimedia.org/wiki/Category:100%25", "100%"),
        ("http://commons.wikimedia.org/wiki/Category:%FF_broken", "\ufffd broken"),
        ("Category:a%0Ab%1B[31m", "ab[31m"),
        ("", ""),
    ],
)
def test_a_category_reads_as_a_name(category: str, name: str) -> None:
    assert readable_name(category) == name


@given(st.text())
def test_no_category_makes_a_name_of_several_lines(category: str) -> None:
    assert readable_name(category).isprintable()


def test_without_files_all_details_are_null() -> None:
    table = with_names(with_details(pl.DataFrame({"landmark_id": [5]}), None, None))
    assert table.columns == ["landmark_id", *LANDMARK_DETAILS, "name"]
    assert table.row(0) == (5, None, None, None, None, None)


@pytest.mark.shared
def test_what_is_listed_as_no_landmark_is_so_called_in_the_archive(shared: Path) -> None:
    with gzip.open(shared / "gldv2/train_clean_label_to_category_81313.csv.gz", "rt", encoding="utf-8") as file:
        published = {int(row["landmark_id"]): row["category"] for row in csv.DictReader(file)}
    listed = not_landmarks()
    assert {row[0]: row[1] for row in listed.rows()}.items() <= published.items()
    assert listed["why"].null_count() == 0
