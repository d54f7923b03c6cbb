from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from landmarks.cli.main import run as landmarks
from landmarks.dataset.manifest import PHOTOS, Dataset, open_dataset, write_dataset
from landmarks.dataset.split import split
from landmarks.support.errors import LandmarksError
from landmarks.support.files import file_digest
from landmarks.support.tables import read_metadata


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Thirty photographs of the landmarks 7, 8 and 9, the first of them showing 7 and 8."""
    hashes = np.random.default_rng(0).integers(1, 2**63, 30)
    known: dict[str, object] = {
        "id": [f"{number:016x}" for number in range(30)],
        "landmark_id": [7 + number % 3 for number in range(30)],
        "phash": pl.Series(hashes, dtype=pl.UInt64),
        "landmarks": pl.Series([[7, 8]] + [None] * 29, dtype=pl.List(pl.Int64)),
    }
    photos = pl.DataFrame(known).with_columns(
        pl.lit(None).cast(kind).alias(name) for name, kind in PHOTOS.items() if name not in known
    )
    labels = pl.DataFrame(
        {"label": [0, 1, 2], "landmark_id": [7, 8, 9], "name": list("abc"), "category": [None] * 3, "images": [10] * 3}
    )
    rejected = pl.DataFrame(schema={"id": pl.String, "where": pl.String, "why": pl.String})
    folder = tmp_path / "data"
    folder.mkdir()
    return write_dataset(folder, verb="test", photos=photos, labels=labels, rejected=rejected, record={"set": "test"})


def csv(folder: Path, answers: dict[int | str, str], name: str = "suspects.csv") -> Path:
    """A file as `evaluate --suspects` writes it, its last column filled in."""
    rows = [f"{id:016x}" if isinstance(id, int) else id for id in answers]
    lines = [f'{id},7,"a, or b",8,b,0.9,why,{answer}' for id, answer in zip(rows, answers.values(), strict=True)]
    head = "id,landmark_id,name,suggested_landmark_id,suggested_name,suspicion,why,correct_landmark_id"
    path = folder / name
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def shown(folder: Path, number: int) -> tuple[int | None, list[int] | None]:
    return open_dataset(folder).photos.row(number)[1], open_dataset(folder).photos.row(number)[-1]


def test_corrections_hold_from_there_on_and_the_files_keep_what_was_fetched(data: Dataset, tmp_path: Path) -> None:
    before = split(data.folder)
    kept = {name: (data.folder / name).read_bytes() for name in ("labels.parquet", "dataset.json")}
    file = csv(tmp_path, {0: "9", 1: "none", 2: "", 3: "7"})
    after = split(data.folder, corrections=file)
    assert shown(data.folder, 0) == (9, None)
    assert shown(data.folder, 1) == (None, None)
    assert shown(data.folder, 2) == (9, None)
    labels = after.part("all").sort("id")["label"].to_list()
    assert labels[:4] == [2, None, 2, 0]
    assert after.as_fetched()["landmark_id"].to_list() == before.photos["landmark_id"].to_list()
    assert after.as_fetched()["landmarks"][0].to_list() == [7, 8]
    assert {name: (data.folder / name).read_bytes() for name in kept} == kept
    assert after.corrections.rows() == [
        ("0000000000000000", 9, 7, file_digest(file)),
        ("0000000000000001", None, 8, file_digest(file)),
        ("0000000000000003", 7, 7, file_digest(file)),  # confirmed
    ]


def test_the_digest_changes_with_corrections_but_not_with_confirmations(data: Dataset, tmp_path: Path) -> None:
    before = split(data.folder)
    confirmed = split(data.folder, corrections=csv(tmp_path, {0: "7"}))
    assert confirmed.digest == before.digest
    assert shown(data.folder, 0) == (7, [7, 8])
    corrected = split(data.folder, corrections=csv(tmp_path, {0: "8"}))
    assert corrected.content_digest != before.content_digest == before.record["digest"]
    assert corrected.digest != before.digest
    assert split(data.folder, keep_corrections=False).digest == before.digest


def test_corrections_are_added_to_earlier_ones_until_they_are_taken_back(
    data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    split(data.folder, corrections=csv(tmp_path, {0: "9", 1: "9"}))
    split(data.folder, corrections=csv(tmp_path, {1: "none", 2: "8"}, "more.csv"))
    assert open_dataset(data.folder).photos["landmark_id"].to_list()[:3] == [9, None, 8]
    split(data.folder, seed=1)
    assert open_dataset(data.folder).photos["landmark_id"].to_list()[:3] == [9, None, 8]
    assert read_metadata(data.folder / "split.parquet")["corrected"] == "3"
    assert "3 labels corrected, 0 confirmed" in capfd.readouterr().err
    again = split(data.folder, corrections=csv(tmp_path, {5: "7"}, "new.csv"), keep_corrections=False)
    assert "3 earlier corrections taken back" in capfd.readouterr().err
    assert again.corrected.rows() == [("0000000000000005", 7)]
    split(data.folder, keep_corrections=False)
    assert not (data.folder / "corrections.parquet").exists()
    assert open_dataset(data.folder).photos["landmark_id"].to_list() == data.photos["landmark_id"].to_list()


def test_a_split_is_made_of_the_corrected_labels(data: Dataset, tmp_path: Path) -> None:
    all_but_one: dict[int | str, str] = {number: "7" for number in range(30) if number % 3 == 2 and number != 2}
    after = split(data.folder, corrections=csv(tmp_path, all_but_one))
    assert after.part("train").filter(pl.col("landmark_id") == 9)["id"].to_list() == ["0000000000000002"]


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({1: "8", "ffff": "8"}, 'row 3: .* holds no photograph "ffff"'),
        ({"1.1E+15": "8"}, "a spreadsheet turned the id into a number"),
        ({1: "", 2: "12"}, 'row 3: .* knows no landmark "12"; expected the landmark_id of one of its 3 landmarks'),
        ({2: "b"}, 'row 2: .* knows no landmark "b"'),
        ({2: "8", "0000000000000002 ": "9"}, 'row 3: the photograph "0000000000000002" is decided on twice'),
    ],
)
def test_what_cannot_be_meant_is_one_line_that_names_the_row(
    data: Dataset, tmp_path: Path, answers: dict[int | str, str], told: str
) -> None:
    split(data.folder, corrections=csv(tmp_path, {0: "9"}, "good.csv"))
    before = {path.name: path.read_bytes() for path in data.folder.glob("*.parquet")}
    with pytest.raises(LandmarksError, match=told) as caught:
        split(data.folder, corrections=csv(tmp_path, answers), keep_corrections=False)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in data.folder.glob("*.parquet")} == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"id;correct_landmark_id\n1;2\n", "lacks the column id"),
        (b"\xff\xfe\x00", "cannot be read as CSV|lacks the column"),
    ],
)
def test_what_is_no_such_csv_is_refused(data: Dataset, tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "strange.csv").write_bytes(content)
    with pytest.raises(LandmarksError, match=told):
        split(data.folder, corrections=tmp_path / "strange.csv")
    with pytest.raises(LandmarksError, match=r"nowhere\.csv"):
        split(data.folder, corrections=tmp_path / "nowhere.csv")


def test_the_verb_takes_corrections_and_tells_their_number(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = csv(tmp_path, {0: "9", 1: "NONE"})
    assert landmarks(["split", str(data.folder), "--corrections", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["corrected"] == 2
    assert landmarks(["split", str(data.folder), "--no-corrections", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["corrected"] == 0
