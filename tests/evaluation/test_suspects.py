from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from scipy.special import softmax
from sklearn.linear_model import Ridge

from landmarks.cli.main import run as landmarks
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.pictures import decode
from landmarks.dataset.shards import PhotoReader
from landmarks.dataset.split import split
from landmarks.evaluation import suspects as module
from landmarks.evaluation.closed_form import PENALTY
from landmarks.evaluation.intervals import group_places
from landmarks.evaluation.rejection import NEIGHBOURS, WARMTH, directions
from landmarks.evaluation.sheet import CAPTION, COLUMNS, HEAD, MARGIN, MOST, TILE, write_sheet
from landmarks.evaluation.suspects import (
    FOLDS,
    SHARPNESS,
    SUSPECTS,
    Estimates,
    cross_validated,
    disagreements,
    suspects,
)
from landmarks.support.errors import UsageError
from landmarks.support.seeds import generator
from landmarks.training import ridge
from landmarks.training.run import Run


def test_falsified_labels_are_found() -> None:
    random = np.random.default_rng(0)
    true = np.arange(600) % 6
    features = random.gamma(1.0, size=(6, 30))[true] + random.gamma(1.0, 0.25, (600, 30))
    labels = true.copy()
    wrong = random.choice(600, 20, replace=False)
    labels[wrong] = (labels[wrong] + random.integers(1, 6, 20)) % 6
    estimates = cross_validated(directions(features), labels, np.full(600, -1), 6)
    suspect, _ = disagreements(estimates, labels)
    found = np.flatnonzero(suspect)
    assert len(set(found) & set(wrong)) >= 17
    assert len(set(found) & set(wrong)) / len(found) > 0.85
    assert np.mean(estimates.likeliest[wrong] == true[wrong]) > 0.85


def test_a_photograph_is_not_judged_by_its_own_group() -> None:
    random = np.random.default_rng(1)
    photos = directions(random.gamma(1.0, size=(60, 20)))
    photos[1::2] = photos[::2]
    labels = np.arange(60) // 2 % 3
    alone = cross_validated(photos, labels, np.full(60, -1), 3)
    grouped = cross_validated(photos, labels, np.arange(60) // 2, 3)
    assert np.mean(alone.own) > 0.6
    assert np.mean(grouped.own) < 0.45


def dense(photos: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int) -> np.ndarray:
    """The definition, written down for small numbers: every probability (N, K) of every photograph at once."""
    places = group_places(groups, len(labels))
    fold = generator(0, "suspects").permutation(int(places.max()) + 1)[places] % FOLDS
    cosines = np.where(places[:, None] == places[None], -np.inf, photos @ photos.T)
    votes = np.full((len(labels), classes), 1e-6)
    for row, nearest in enumerate(np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]):
        np.add.at(votes[row], labels[nearest], np.exp((cosines[row, nearest] - 1) / WARMTH))
    probabilities = votes / votes.sum(axis=1, keepdims=True)
    for number in range(FOLDS):
        inside, others = fold == number, fold != number
        x = photos[others].astype(np.float64)
        penalty = PENALTY * np.square(x - x.mean(axis=0)).sum() / x.shape[1]
        fitted = Ridge(alpha=penalty).fit(x, 2 * np.eye(classes)[labels[others]] - 1)
        probabilities[inside] += softmax(SHARPNESS * fitted.predict(photos[inside]), axis=1)
    return probabilities / 2


@pytest.mark.parametrize("compared", [7, 64, 8192])
@pytest.mark.parametrize("block_bytes", [1, 8 * 1024 * 3, 1 << 25])
@pytest.mark.parametrize("classes", [9, 40])
def test_blocks_give_what_the_definition_gives_all_at_once(
    monkeypatch: pytest.MonkeyPatch, compared: int, block_bytes: int, classes: int
) -> None:
    random = np.random.default_rng(2)
    labels = random.integers(0, 9, 150)  # with 40 classes most are shown by nothing
    photos = directions(random.gamma(1.0, size=(9, 16))[labels] + random.gamma(1.0, 0.6, (150, 16)))
    groups = random.integers(-1, 40, 150)
    monkeypatch.setattr(module, "COMPARED", compared)
    monkeypatch.setattr(ridge, "BLOCK_BYTES", block_bytes)
    found = cross_validated(photos, labels, groups, classes)
    expected = dense(photos, labels, groups, classes)
    assert found.own == pytest.approx(expected[np.arange(150), labels], abs=1e-6)
    assert found.highest == pytest.approx(expected.max(axis=1), abs=1e-6)
    assert (found.likeliest == expected.argmax(axis=1)).all()


def test_all_labels_of_the_archive_take_no_more_memory_than_a_block() -> None:
    random = np.random.default_rng(3)
    labels = np.arange(400) % 40 * 5000
    photos = directions(random.gamma(1.0, size=(40, 24))[np.arange(400) % 40] + random.gamma(1.0, 0.3, (400, 24)))
    tracemalloc.start()
    found = cross_validated(photos, labels, np.full(400, -1), 203_094)
    suspect, _ = disagreements(found, labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.mean(found.likeliest == labels) > 0.8 and not suspect.all()
    assert peak < 150e6  # photographs × landmarks are 650 MB, several times over


def test_confident_learning_worked_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.05, 0.95], [0.45, 0.55]])
    labels = np.array([0, 0, 1, 1, 0, 0])
    estimates = Estimates(probabilities[np.arange(6), labels], probabilities.max(axis=1), probabilities.argmax(axis=1))
    suspect, suspicion = disagreements(estimates, labels)
    # label 1 is 0.85 likely for its own photographs on average: a lead of 0.9 is more than 0.68, one of 0.1 is not
    assert suspect.tolist() == [False, False, False, False, True, False]
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
