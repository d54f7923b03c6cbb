from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from made_up_runs import make_dataset, make_run
from scipy.stats import binomtest

from landmarks.cli.main import run as landmarks
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.compare import compare, paired_test, verdict
from landmarks.evaluation.evaluate import evaluate
from landmarks.support.errors import LandmarksError
from landmarks.training.run import Run


def test_the_paired_test_worked_by_hand() -> None:
    first = np.array([True] * 6 + [False] * 4)
    second = np.array([True] * 4 + [False] * 2 + [True] * 3 + [False])
    result = paired_test(first, second)
    assert (result["only_first"], result["only_second"]) == (2, 3)
    assert result["difference"]["value"] == pytest.approx(0.1)
    assert result["p_value"] == binomtest(3, 5).pvalue
    assert not result["real"]


def test_a_clear_difference_is_real_and_none_is_not() -> None:
    random = np.random.default_rng(0)
    first = random.random(500) < 0.7
    second = first | (random.random(500) < 0.4)
    assert paired_test(first, second)["real"]
    same = paired_test(first, first)
    assert (same["p_value"], same["real"], same["difference"]["value"]) == (1.0, False, 0.0)
    assert same["difference"]["low"] < 0 < same["difference"]["high"]


def test_nothing_is_told_as_minus_zero() -> None:
    numbers = {"difference": {"value": -0.5, "low": -1.0, "high": 0.0}, "p_value": 0.5, "real": False, "images": 3}
    sentence = verdict({"first": "one", "second": "other"}, numbers)
    assert "(+50.0 points, 95 % interval +0.0 to +100.0, p = 0.5)" in sentence


def test_by_luck_alone_a_difference_is_called_real_in_at_most_about_5_of_100_cases() -> None:
    random = np.random.default_rng(1)
    called = [paired_test(random.random(200) < 0.8, random.random(200) < 0.8, seed=draw)["real"] for draw in range(150)]
    assert np.mean(called) < 0.09


def test_one_series_of_images_is_no_evidence() -> None:
    first, second = np.zeros(40, dtype=bool), np.zeros(40, dtype=bool)
    second[:10] = True
    assert paired_test(first, second)["real"]
    groups = np.where(np.arange(40) < 10, 0, np.arange(40))
    assert not paired_test(first, second, groups)["real"]


def test_two_runs_over_the_same_images(
    run: Run, own_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(tmp_path / "other", own_data, seed=1)
    evaluate(run.folder)
    evaluate(other.folder)
    result = compare(run.folder, other.folder).record
    assert (result["first"], result["second"], result["name"], result["images"]) == ("run", "other", "test", 6)
    table = pl.read_parquet(other.folder / "predictions" / "test.parquet")
    right = [row["label"][0] in row["truth"] for row in table.rows(named=True)]
    assert result["top1_second"] == pytest.approx(np.mean(right))
    assert landmarks(["compare", str(run.folder), str(other.folder)]) == 0
    assert "6 images" in capsys.readouterr().out


def test_runs_that_know_different_landmarks_share_the_images_both_can_answer(
    run: Run, test_data: Dataset, tmp_path: Path
) -> None:
    fewer = make_dataset(tmp_path / "fewer", [[22], [44]], splits=["train", "train"])
    other = make_run(tmp_path / "other", fewer)
    evaluate(run.folder, data=test_data.folder)
    evaluate(other.folder, data=test_data.folder)
    result = compare(run.folder, other.folder).record
    assert result["images"] == 15
    assert result["left_out"] == 15 + 15


def test_of_a_run_that_is_compared_with_itself_a_note_says_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(run.folder)
    capsys.readouterr()
    assert compare(run.folder, f"{run.folder}/").same_answer == 1
    assert "is compared with itself" in capsys.readouterr().err


def test_runs_without_shared_predictions_are_one_line(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", own_data)
    evaluate(run.folder)
    with pytest.raises(LandmarksError, match="do not share predictions"):
        compare(run.folder, other.folder)
    evaluate(other.folder)
    with pytest.raises(LandmarksError, match='did you mean "test"'):
        compare(run.folder, other.folder, name="tset")
