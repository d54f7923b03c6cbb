from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from landmarks.cli.main import run as landmarks
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.audit import split_features
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.subsets import (
    distribution,
    held_out,
    learning_curves,
    percentile_rank,
    subset_accuracies,
    subsets,
)
from landmarks.recognition.vectors import directions
from landmarks.reporting.run_files import read_run_files
from landmarks.support.errors import UsageError
from landmarks.support.files import read_record
from landmarks.training.ridge import PENALTY, ridge_scores
from landmarks.training.run import Run


def made_up(landmarks: int = 30, each: int = 30, width: int = 12, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(landmarks), each)
    return random.normal(0, spread, (landmarks, width))[labels] + random.normal(0, 1, (len(labels), width)), labels


def test_the_closed_form_is_scikit_learns_ridge_regression() -> None:
    x, y = made_up(4, 20)
    x_test = x[::3] + 0.1
    centred = x - x.mean(axis=0)
    penalty = PENALTY * np.trace(centred.T @ centred) / x.shape[1]
    expected = Ridge(alpha=penalty).fit(x, 2 * np.eye(4)[y] - 1).predict(x_test)
    assert ridge_scores(x, y, x_test, 4) == pytest.approx(expected)


def test_features_without_any_difference_give_an_answer_all_the_same() -> None:
    assert np.isfinite(ridge_scores(np.ones((4, 3)), np.array([0, 0, 1, 1]), np.ones((2, 3)), 2)).all()


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    features, labels = made_up()
    first = subset_accuracies(features, labels, landmarks=5, draws=10, seed=1)
    assert (first == subset_accuracies(features, labels, landmarks=5, draws=10, seed=1)).all()
    assert (first != subset_accuracies(features, labels, landmarks=5, draws=10, seed=2)).any()


def test_the_order_of_the_images_of_a_draw_does_not_reach_beyond_it() -> None:
    features, labels = made_up()
    assert (
        subset_accuracies(features, labels, landmarks=5, draws=3)
        == subset_accuracies(features, labels, landmarks=5, draws=9)[:3]
    ).all()


def test_clear_landmarks_are_always_told_apart_and_noise_never() -> None:
    features, labels = made_up(spread=20)
    assert subset_accuracies(features, labels, landmarks=10, draws=5).min() == 1.0
    noise = np.random.default_rng(0).normal(size=features.shape)
    assert subset_accuracies(noise, labels, landmarks=10, draws=20).mean() == pytest.approx(0.1, abs=0.03)


def copied(landmarks: int, originals: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise that tells nothing of its landmark, every image of it four times over, and the images as groups."""
    labels = np.repeat(np.arange(landmarks), 4 * originals)
    groups = np.arange(len(labels)) // 4
    random = np.random.default_rng(0)
    noise = random.normal(size=(landmarks * originals, 64))[groups] + random.normal(0, 0.02, (len(labels), 64))
    return noise, labels, groups


def test_near_copies_do_not_make_noise_look_like_knowledge() -> None:
    features, labels, groups = copied(landmarks=30, originals=8)
    assert subset_accuracies(features, labels, landmarks=10, draws=20).mean() > 0.6  # what it looks like without groups
    assert subset_accuracies(features, labels, groups, landmarks=10, draws=20).mean() == pytest.approx(0.1, abs=0.04)
    curves = learning_curves(features, labels, groups, images=(20,), landmarks=(10,), fixed_landmarks=10, draws=20)
    assert curves["mean"].to_list() == pytest.approx([0.1, 0.1], abs=0.04)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 9)), min_size=1, max_size=40), st.integers(0, 3))
def test_no_group_is_on_both_sides_and_a_third_of_each_landmark_is_held_out(
    rows: list[tuple[int, int]], seed: int
) -> None:
    labels, groups = (np.array(column) for column in zip(*rows, strict=True))
    out = held_out(labels, groups, seed)
    for group in set(groups.tolist()) - {-1}:
        assert len(set(out[groups == group].tolist())) == 1
    for label in set(labels.tolist()):
        own, sizes = labels == label, np.unique(groups[labels == label], return_counts=True)[1]
        if (groups[own] == -1).all():
            assert out[own].sum() == max(1, round(own.sum() / 3)) if own.sum() > 1 else not out[own].any()
        if len(rows) == own.sum() and len(sizes) > 1 and -1 not in groups:
            assert 0 < out.sum() < len(rows)


def test_a_landmark_of_one_group_cannot_be_drawn() -> None:
    features, labels, groups = copied(landmarks=4, originals=3)
    groups = np.where(labels == 3, 999, groups)
    assert len(subset_accuracies(features, labels, groups, landmarks=3, draws=2)) == 2
    with pytest.raises(UsageError, match="received 4; expected 2 to 3"):
        subset_accuracies(features, labels, groups, landmarks=4, draws=2)


def test_where_too_few_landmarks_can_be_drawn_it_says_why() -> None:
    features, labels, _ = copied(landmarks=3, originals=3)
    each_shown_once = labels + 100
    each_shown_once[labels == 0] = -1
    with pytest.raises(UsageError, match="received 1 such of 3; expected 2 or more; name a dataset"):
        subset_accuracies(features, labels, each_shown_once, landmarks=2, draws=2)


def test_more_images_help_and_more_landmarks_hurt() -> None:
    features, labels = made_up()
    curves = learning_curves(
        features, labels, images=(1, 5, 20, 500), landmarks=(5, 10, 30, 99), fixed_landmarks=10, draws=5
    )
    grown = curves.filter(varied="images")
    fallen = curves.filter(varied="landmarks")
    assert grown["value"].to_list() == [1, 5, 20]
    assert grown["mean"].is_sorted()
    assert fallen["value"].to_list() == [5, 10, 30]
    assert fallen["mean"].is_sorted(descending=True)


def test_where_one_draw_lies() -> None:
    accuracies = np.array([0.8, 0.85, 0.9, 0.9])
    assert percentile_rank(0.9, accuracies) == 0.75
    assert percentile_rank(0.7, accuracies) == 0.0
    assert distribution(accuracies)["q50"] == pytest.approx(0.875)


def test_more_landmarks_than_there_are_cannot_be_drawn() -> None:
    features, labels = made_up(3)
    with pytest.raises(UsageError, match="2 to 3"):
        subset_accuracies(features, labels, landmarks=20)


def test_the_record_holds_every_draw_and_where_the_run_lies(run: Run, own_data: Dataset) -> None:
    numbers = subsets(run.folder, 2, draws=12, seed=4).record
    images, features = split_features(run, own_data, "train")
    labels, groups = (images[name].cast(pl.Int64).to_numpy() for name in ("label", "group"))
    drawn = subset_accuracies(directions(features), labels, groups, landmarks=2, draws=12, seed=4)
    assert numbers["accuracies"] == drawn.tolist()
    assert (numbers["landmarks"], numbers["of"], numbers["draws"], numbers["own"]) == (2, 3, 12, None)
    judged = evaluate(run.folder).record["top1"]["value"]
    own = subsets(run.folder, 2, draws=12, seed=4).record["own"]
    assert own == {"accuracy": judged, "landmarks": 3, "place": percentile_rank(judged, drawn)}
    assert read_record(run.folder / "metrics" / "test.subsets.json")["own"] == own


def test_a_record_of_subsets_is_no_evaluation_to_the_report(run: Run) -> None:
    evaluate(run.folder)
    subsets(run.folder, 2, draws=3)
    (files,) = read_run_files([run.folder])
    assert [one.name for one in files.evaluations] == ["test"]
    assert [one["draws"] for one in files.subsets] == [3]


def test_draws_from_another_dataset_are_named_by_its_folder(run: Run, test_data: Dataset) -> None:
    numbers = subsets(run.folder, 2, data=test_data.folder, draws=3).record
    assert (numbers["name"], numbers["split"], numbers["of"]) == ("elsewhere", "all", 3)
    assert (run.folder / "metrics" / "elsewhere.subsets.json").exists()


def test_more_landmarks_than_there_are_cannot_be_drawn_from_a_run(run: Run) -> None:
    with pytest.raises(UsageError, match="2 to 3"):
        subsets(run.folder, 20)


def test_the_verb_prints_the_distribution(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(run.folder)
    capsys.readouterr()
    assert landmarks(["subsets", str(run.folder), "--landmarks", "2"]) == 0
    printed = capsys.readouterr().out
    assert "200 draws of 2 of 3 landmarks" in printed
    assert "95th percentile" in printed
    assert "on 3 landmarks, is above that of" in printed
    assert landmarks(["subsets", str(run.folder), "--landmarks", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["accuracies"]) == 200
