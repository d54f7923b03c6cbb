from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from landmarks.cli.main import run as landmarks
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.lottery import lottery, place_of
from landmarks.evaluation.luck import luck
from landmarks.evaluation.rejection import directions
from landmarks.evaluation.trunk import features_of
from landmarks.report.pieces import read_pieces
from landmarks.support.errors import UsageError
from landmarks.support.files import read_record
from landmarks.training.run import Run


def test_the_record_holds_every_draw_and_where_the_run_lies(run: Run, own_data: Dataset) -> None:
    numbers = luck(run.folder, 2, draws=12, seed=3)
    photos, features = features_of(run, own_data, "train")
    labels, groups = (photos[name].cast(pl.Int64).to_numpy() for name in ("label", "group"))
    drawn = lottery(directions(features), labels, groups, landmarks=2, draws=12, seed=3)
    assert numbers["accuracies"] == drawn.tolist()
    assert (numbers["landmarks"], numbers["of"], numbers["draws"], numbers["own"]) == (2, 3, 12, None)
    judged = evaluate(run.folder)["top1"]["value"]
    own = luck(run.folder, 2, draws=12, seed=3)["own"]
    assert own == {"accuracy": judged, "landmarks": 3, "place": place_of(judged, drawn)}
    assert read_record(run.folder / "metrics" / "test.lottery.json")["own"] == own


def test_a_lottery_is_no_evaluation_to_the_report(run: Run) -> None:
    evaluate(run.folder)
    luck(run.folder, 2, draws=3)
    (pieces,) = read_pieces([run.folder])
    assert [one.name for one in pieces.evaluations] == ["test"]
    assert [one["draws"] for one in pieces.lotteries] == [3]


def test_draws_from_another_dataset_are_named_by_its_folder(run: Run, test_data: Dataset) -> None:
    numbers = luck(run.folder, 2, data=test_data.folder, draws=3)
    assert (numbers["name"], numbers["part"], numbers["of"]) == ("elsewhere", "all", 3)
    assert (run.folder / "metrics" / "elsewhere.lottery.json").exists()


def test_more_landmarks_than_there_are_cannot_be_drawn(run: Run) -> None:
    with pytest.raises(UsageError, match="2 to 3"):
        luck(run.folder, 20)


def test_the_verb_prints_the_distribution(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(run.folder)
    capsys.readouterr()
    assert landmarks(["evaluate", str(run.folder), "--lottery", "2"]) == 0
    printed = capsys.readouterr().out
    assert "200 draws of 2 of 3 landmarks" in printed
    assert "95th percentile" in printed
    assert "on 3 landmarks, is above that of" in printed
    assert landmarks(["evaluate", str(run.folder), "--lottery", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["accuracies"]) == 200
