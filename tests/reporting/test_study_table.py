"""A reproduction on the page: what was reached, what the study published, and what is not known stays a dash."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from run_factory import make_dataset, make_run

from landmarks.cli.main import run as run_verb
from landmarks.reporting.page import report
from landmarks.reporting.study_table import study_lines, study_numbers, study_table
from landmarks.support.errors import LandmarksError
from landmarks.support.files import write_record

SPACE = "\N{NO-BREAK SPACE}"
NOTHING = dict.fromkeys(
    ("run", "parameters", "image_size", "epochs", "validation", "test", "test_set", "head", "seconds")
)
RECORD: dict[str, Any] = {
    "test_set": None,
    "protocols": {"study": "as it was", "corrected": "as it should be"},
    "notes": ["One was left out."],
    "rows": [
        {
            "network": "xception",
            "protocol": "study",
            "published": {"validation": 0.8595, "test": 0.8531},
            "changed": ["160 px, not 299", "3 epochs, not 10"],
            "why": "",
            "run": "study/xception",
            "parameters": 21_866_540,
            "image_size": 160,
            "epochs": [10, 3],
            "validation": {"value": 0.9, "low": 0.88, "high": 0.92},
            "test": {"value": 0.89, "low": 0.86, "high": 0.915},
            "test_set": None,
            "head": 0.84,
            "seconds": 725.0,
        },
        {
            "network": "resnet50",
            "protocol": "study",
            "published": {"validation": None, "test": None},
            "changed": ["160 px, not 224"],
            "why": "the Hub is out of reach",
            **NOTHING,
        },
    ],
}


def test_each_cell_of_the_table_says_what_the_record_holds() -> None:
    reached, missed = study_table(RECORD).rows
    assert [cell.text for cell in reached] == [
        *("xception", "study", f"21.9{SPACE}M", "10+3", f"90.0{SPACE}%", f"89.0{SPACE}%", f"84.0{SPACE}%"),
        *(f"85.31{SPACE}%", "160 px, not 299; 3 epochs, not 10"),
    ]
    assert [cell.note for cell in reached[2:8]] == [
        *("160 px", "12 min 05 s", f"88.0–92.0{SPACE}%", f"86.0–91.5{SPACE}%", "", f"85.95{SPACE}% on validation"),
    ]
    assert [cell.text for cell in missed] == ["resnet50", "study", *["–"] * 5, "not given here", "not done"]


def test_images_of_everyone_get_a_column_on_the_page_and_on_the_screen() -> None:
    record = copy.deepcopy(RECORD) | {"test_set": "holidays"}
    record["rows"][0]["test_set"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    assert [column.title for column in study_table(record).columns][6] == "Test on holidays"
    titles, lines = study_lines(record)
    assert titles[5] == "Test on holidays" and lines[0][5] == f"50.0{SPACE}%\n40.0–60.0{SPACE}%"
    assert {len(line) for line in lines} == {len(titles)}
    assert len(study_lines(RECORD)[0]) == len(titles) - 1


def test_the_numbers_are_shares_and_nothing_stays_nothing() -> None:
    numbers = study_numbers(RECORD)
    assert numbers["test"].to_list() == [0.89, None] and numbers["test_low"].to_list() == [0.86, None]
    assert numbers["published_test"].to_list() == [0.8531, None]
    assert numbers["why"].to_list() == [None, "the Hub is out of reach"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    return make_run(folder / "run", make_dataset(folder / "data", count=60, unknown=0), "resnet18", maps=0)


def test_the_page_shows_the_table_the_figure_and_the_notes(run: Path, tmp_path: Path) -> None:
    write_record(tmp_path / "study.json", RECORD, verb="reproduce")
    words = ["report", str(run), "-o", str(tmp_path / "page.html"), "--study", str(tmp_path / "study.json")]
    assert run_verb(words) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    split = text[text.index('<section id="study">') :]
    split = split[: split.index("</section>")]
    assert 'href="#study"' in text and "One was left out." in split and f"85.31{SPACE}%" in split
    assert "xception, published: 85.3" in split
    assert pl.read_csv(tmp_path / "figures" / "page-study.csv")["network"].to_list() == ["xception", "resnet50"]
    assert 'id="study"' in report(run, tmp_path / "page.html", study=tmp_path).read_text(encoding="utf-8")
    assert 'id="study"' not in report(run, tmp_path / "plain.html").read_text(encoding="utf-8")


def test_a_stranger_s_record_stays_text(run: Path, tmp_path: Path) -> None:
    record = copy.deepcopy(RECORD)
    hostile = "<script>alert(1)</script>\x1b"
    record["notes"] = record["rows"][0]["changed"] = [hostile]
    record["rows"][0]["network"] = record["rows"][0]["protocol"] = hostile
    write_record(tmp_path / "study.json", record, verb="reproduce")
    text = report(run, tmp_path / "page.html", study=tmp_path / "study.json").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in text and "\x1b" not in text and "&lt;script&gt;alert(1)" in text


def test_another_record_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match=r"no reproduction's record"):
        report(run, tmp_path / "page.html", study=run / "run.json")
    with pytest.raises(
        LandmarksError, match=r"there is no .*study\.json; expected study.json, from landmarks reproduce"
    ):
        report(run, tmp_path / "page.html", study=tmp_path)
    assert not (tmp_path / "page.html").exists()
