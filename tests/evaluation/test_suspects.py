from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from landmarks.cli.main import run as landmarks
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.pictures import decode
from landmarks.dataset.shards import PhotoReader
from landmarks.dataset.split import split
from landmarks.evaluation.rejection import directions
from landmarks.evaluation.sheet import CAPTION, COLUMNS, HEAD, MARGIN, MOST, TILE, write_sheet
from landmarks.evaluation.suspects import SUSPECTS, cross_validated, disagreements, suspects
from landmarks.support.errors import UsageError
from landmarks.training.run import Run


def test_falsified_labels_are_found() -> None:
    random = np.random.default_rng(0)
    true = np.arange(600) % 6
    features = random.gamma(1.0, size=(6, 30))[true] + random.gamma(1.0, 0.25, (600, 30))
    labels = true.copy()
    wrong = random.choice(600, 20, replace=False)
    labels[wrong] = (labels[wrong] + random.integers(1, 6, 20)) % 6
    probabilities = cross_validated(directions(features), labels, np.full(600, -1), 6)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(600))
    suspect, suggested, _ = disagreements(probabilities, labels)
    found = np.flatnonzero(suspect)
    assert len(set(found) & set(wrong)) >= 17
    assert len(set(found) & set(wrong)) / len(found) > 0.85
    assert np.mean(suggested[wrong] == true[wrong]) > 0.85


def test_a_photograph_is_not_judged_by_its_own_group() -> None:
    random = np.random.default_rng(1)
    photos = directions(random.gamma(1.0, size=(60, 20)))
    photos[1::2] = photos[::2]
    labels = np.arange(60) // 2 % 3
    alone = cross_validated(photos, labels, np.full(60, -1), 3)
    grouped = cross_validated(photos, labels, np.arange(60) // 2, 3)
    own = np.arange(60), labels
    assert np.mean(alone[own]) > 0.6
    assert np.mean(grouped[own]) < 0.45


def test_confident_learning_worked_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.05, 0.95], [0.45, 0.55]])
    labels = np.array([0, 0, 1, 1, 0, 0])
    suspect, suggested, suspicion = disagreements(probabilities, labels)
    # label 1 is 0.85 likely for its own photographs on average: a lead of 0.9 is more than 0.68, one of 0.1 is not
    assert suspect.tolist() == [False, False, False, False, True, False]
    assert suggested[4] == 1
    assert suspicion[4] == pytest.approx(0.9)


def test_the_verb_writes_a_csv_to_correct_and_changes_nothing(
    run: Run, own_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_twins(own_data)
    before = own_data.folder.joinpath("photos.parquet").read_bytes()
    out = tmp_path / "wrong.csv"
    assert landmarks(["evaluate", str(run.folder), "--part", "train", "--suspects", str(out)]) == 0
    table = pl.read_csv(out, schema_overrides={"id": pl.String})
    assert table.columns == list(SUSPECTS)
    twins = table.filter(pl.col("why").str.starts_with("the same picture as"))
    assert sorted(twins["id"]) == ["0000000000000001", "0000000000000011"]
    assert "nothing was changed" in capsys.readouterr().out
    assert open_dataset(own_data.folder).folder.joinpath("photos.parquet").read_bytes() == before


def with_twins(data: Dataset) -> None:
    same = pl.when(pl.col("id").str.ends_with("1")).then(pl.lit(7, pl.UInt64)).otherwise("phash")
    data.photos.with_columns(phash=same).write_parquet(data.folder / "photos.parquet")


def test_the_sheet_shows_the_listed_photographs(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    with_twins(own_data)
    table = suspects(run.folder, tmp_path / "wrong.csv")
    with Image.open(tmp_path / "wrong.jpg") as sheet:
        columns = min(COLUMNS, len(table))
        assert sheet.width == MARGIN + columns * (TILE + MARGIN)
        pixels = np.asarray(sheet)
    photo = own_data.photos.filter(pl.col("id") == table["id"][0]).row(0, named=True)
    expected = decode(PhotoReader(own_data).read(photo["shard"], photo["offset"], photo["length"]))
    top, left = HEAD + (TILE - expected.shape[0]) // 2, MARGIN + (TILE - expected.shape[1]) // 2
    found = pixels[top : top + expected.shape[0], left : left + expected.shape[1]]
    assert np.abs(found.astype(int) - expected).mean() < 15


def test_a_sheet_ends_after_forty_photographs(own_data: Dataset, tmp_path: Path) -> None:
    ids = [own_data.photos["id"][number % 30] for number in range(50)]
    table = pl.DataFrame(
        {"id": ids, "name": "Łódź", "suggested_name": "京都", "probability": 0.5, "why": "", "landmark_id": 1}
    )
    write_sheet(own_data, table, tmp_path / "many.jpg")
    with Image.open(tmp_path / "many.jpg") as sheet:
        assert sheet.height == HEAD + MOST // COLUMNS * (TILE + CAPTION + MARGIN)


def test_what_a_person_decided_is_not_listed_again(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    with_twins(own_data)
    out = tmp_path / "wrong.csv"
    first = suspects(run.folder, out)
    first.with_columns(correct_landmark_id=pl.col("landmark_id").cast(pl.String)).write_csv(out)
    split(own_data.folder, corrections=out)
    assert not set(suspects(run.folder, tmp_path / "again.csv", part="all")["id"]) & set(first["id"])


def test_pictures_without_structure_are_no_twins(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    own_data.photos.with_columns(phash=pl.lit(0, pl.UInt64)).write_parquet(own_data.folder / "photos.parquet")
    assert not suspects(run.folder, tmp_path / "wrong.csv")["why"].str.starts_with("the same").any()


def test_a_table_cannot_be_called_a_picture(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.csv"):
        suspects(run.folder, tmp_path / "wrong.jpg")
