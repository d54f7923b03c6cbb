from __future__ import annotations

import csv
import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.archive.csv_tables import (
    ATTRIBUTION,
    LANDMARK_DETAILS,
    TRAIN,
    collect,
    invalid_row_error,
    lines_of,
    not_landmarks,
    readable_name,
    scan,
    with_details,
    with_names,
)
from landmarks.support.errors import LandmarksError

HEADER = "id,url,landmark_id\n"
GOOD = "0123456789abcdef,http://x/a.jpg,5\n"


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "train.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    "text",
    [
        HEADER + GOOD,
        (HEADER + GOOD).replace("\n", "\r\n"),
        "\ufeff" + HEADER + GOOD,
        HEADER + GOOD.rstrip(),
        HEADER + "\n" + GOOD + "\n\n",
        "landmark_id,id,more,url\n5,0123456789abcdef,x,http://x/a.jpg\n",
        '"id","url","landmark_id"\n"0123456789abcdef","http://x/a.jpg","5"\n',
    ],
)
def test_a_csv_is_read_whatever_wrote_it(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, text)
    assert collect(scan(TRAIN, file), TRAIN, file).rows() == [("0123456789abcdef", "http://x/a.jpg", 5)]


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        (GOOD + "0123456789abcdef,http://x,seven\n", 3, 'landmark_id "seven"'),
        (GOOD + "0123456789abcdef,http://x,\n", 3, 'landmark_id ""'),
        (GOOD + "0123456789abcdef,http://x,-4\n", 3, 'landmark_id "-4"'),
        (GOOD + "\n" + "0123,http://x,4\n", 4, 'id "0123"'),
        ("0123456789ABCDEF,http://x,4\n" + GOOD, 2, "lower case"),
        (GOOD + "0123456789abcdef,http://x\n", 3, "2 cells; expected 3"),
        (GOOD + "0123456789abcdef,http://a,b,7\n", 3, "4 cells; expected 3"),
        (GOOD + '"two\nlines",http://x,4\n' + GOOD, 3, "id"),
        (GOOD + '0123456789abcdef,"http://x,4\n', 3, "unexpected end"),
    ],
)
def test_an_invalid_row_is_named_by_its_file_and_line(tmp_path: Path, rows: str, line: int, message: str) -> None:
    file = written(tmp_path, HEADER + rows)
    error = invalid_row_error(TRAIN, file)
    assert str(error).startswith(f"{file} line {line} is invalid; received ")
    assert message in str(error)
    assert "\n" not in str(error)


def test_bytes_that_are_not_utf8_are_named_by_their_line(tmp_path: Path) -> None:
    file = written(tmp_path, (HEADER + GOOD).encode() + b"0123456789abcdef,http://\xff,5\n")
    with pytest.raises(LandmarksError, match="line 3 is invalid; received bytes that are not UTF-8"):
        collect(scan(TRAIN, file), TRAIN, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns id, url, landmark_id"),
        ("id,url\na,b\n", "lacks the column landmark_id"),
        (b"\xff\xfe\x00", "is not a CSV file"),
    ],
)
def test_a_file_without_the_columns_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(LandmarksError, match=message):
        scan(TRAIN, written(tmp_path, text))


def test_a_cell_too_many_is_noticed_although_the_columns_before_it_are_whole(tmp_path: Path) -> None:
    file = written(tmp_path, HEADER + GOOD + "0123456789abcdef,http://x,5,7\n")
    with pytest.raises(LandmarksError, match="line 3 is invalid; received 4 cells"):
        collect(scan(TRAIN, file).select("id"), TRAIN, file)


def test_the_lines_of_a_image_are_found_below_cells_of_several_lines(tmp_path: Path) -> None:
    file = written(tmp_path, HEADER + GOOD + 'x,"two\nlines",5\n' + GOOD)
    assert lines_of(file, "0123456789abcdef") == [2, 5]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=8))
def test_any_text_in_an_attribution_is_read_as_the_standard_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str, str]]
) -> None:
    file = tmp_path_factory.mktemp("csv") / "attribution.csv"
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "url", "author", "license", "title"])
        writer.writerows((f"{number:016x}", "http://x", *row) for number, row in enumerate(cells))
    rows = collect(scan(ATTRIBUTION, file), ATTRIBUTION, file)
    expected = [tuple(cell or None for cell in row) for row in cells]
    assert [row[1:] for row in rows.rows()] == expected


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
