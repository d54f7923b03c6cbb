from __future__ import annotations

import csv
from pathlib import Path

import polars as pl
import pytest

from landmarks.cli.main import run
from landmarks.dataset.credits import CREDITS, by_license, credits_as_text
from landmarks.dataset.credits import credits as list_credits
from landmarks.dataset.manifest import IMAGES, LABELS, REJECTED, write_dataset
from landmarks.support.errors import UsageError

COMMONS = "http://commons.wikimedia.org/wiki/Category:Colosseum_(Rome)"

ROWS = [
    ("a", 5, "Zoë", "CC BY 2.0", "File:Arch.jpg"),
    ("b", 5, "Ann", "CC BY-SA 3.0", "File:\x1b[31mRed\n.jpg"),
    ("c", 5, " ", None, None),
    ("d", None, None, None, None),
    ("e", 5, "Ann", "CC BY 2.0", 'File:With, "quotes".jpg'),
    ("f", 5, "Ann", "CC BY 2.0", None),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    columns = ("image_id", "landmark_id", "author", "license", "title")
    images = pl.DataFrame(ROWS, schema={name: IMAGES[name] for name in columns}, orient="row")
    images = images.with_columns(
        pl.lit(None, dtype=kind).alias(name) for name, kind in IMAGES.items() if name not in columns
    )
    labels = pl.DataFrame([(0, 5, "Colosseum (Rome)", COMMONS, 5)], schema=LABELS, orient="row")
    write_dataset(
        tmp_path / "data",
        verb="test",
        images=images,
        labels=labels,
        rejected=pl.DataFrame(schema=REJECTED),
        record={},
    )
    return tmp_path / "data"


def test_every_image_is_credited_and_those_without_author_come_last(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = list_credits(data)
    assert listed.columns == list(CREDITS)
    assert listed["image_id"].to_list() == ["e", "f", "b", "a", "c", "d"]
    assert "2 of 6 images have no known author" in capsys.readouterr().err


def test_a_csv_is_read_back_by_the_standard_library(data: Path, tmp_path: Path) -> None:
    listed = list_credits(data, tmp_path / "credits.csv")
    with open(tmp_path / "credits.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{name: cell or "" for name, cell in row.items()} for row in listed.rows(named=True)]


def test_a_csv_of_other_columns_is_not_replaced(data: Path, tmp_path: Path) -> None:
    list_credits(data, tmp_path / "credits.csv")
    list_credits(data, tmp_path / "credits.csv")  # its own may be written again
    (tmp_path / "labels.csv").write_text("path,label\na.jpg,Arch\n")
    with pytest.raises(UsageError, match="is there already and is another table"):
        list_credits(data, tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_text() == "path,label\na.jpg,Arch\n"


def test_the_text_names_author_licence_title_and_source_on_lines_of_their_own(data: Path, tmp_path: Path) -> None:
    list_credits(data, tmp_path / "CREDITS.txt")
    assert (tmp_path / "CREDITS.txt").read_text(encoding="utf-8") == (
        "Ann, CC BY 2.0\n"
        f'  "File:With, "quotes".jpg" (e), {COMMONS}\n'
        f'  "Colosseum (Rome)" (f), {COMMONS}\n'
        "\n"
        "Ann, CC BY-SA 3.0\n"
        f'  "File: [31mRed .jpg" (b), {COMMONS}\n'
        "\n"
        "Zoë, CC BY 2.0\n"
        f'  "File:Arch.jpg" (a), {COMMONS}\n'
        "\n"
        "unknown author\n"
        f'  "Colosseum (Rome)" (c), {COMMONS}\n'
        '  "untitled" (d)\n'
    )


def test_the_screen_counts_licences_and_says_what_an_unknown_one_means(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert by_license(list_credits(data)).rows() == [
        ("CC BY 2.0", 3, 2),
        ("unknown licence", 2, 0),
        ("CC BY-SA 3.0", 1, 1),
    ]
    capsys.readouterr()
    assert run(["credits", str(data)]) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) < 10 and "File:Arch" not in output.out
    assert "2 of 6 images have no known licence: nothing says that they may be passed on" in output.err
    assert run(["credits", str(data), "-o", "-"]) == 0
    assert capsys.readouterr().out == credits_as_text(list_credits(data))
