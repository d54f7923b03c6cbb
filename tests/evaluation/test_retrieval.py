"""Retrieval's numbers against published examples, sklearn and loops over plain arrays; the files of a submission."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import image, make_dataset
from sklearn.metrics import average_precision_score

import landmarks
from landmarks.cli.main import run as program
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.retrieval import (
    NEIGHBOUR_DEFINITIONS,
    average_precision,
    first_right,
    is_retrieval,
    penalty,
    score_retrieval,
)
from landmarks.recognition.gallery import UnknownImages
from landmarks.recognition.vectors import directions
from landmarks.support.errors import LandmarksError
from landmarks.training.run import Run

SOLUTION = """id,images,Usage
0123456789abcdef,fedcba9876543210 fedcba9876543220,Public
0223456789abcdef,fedcba9876543210,Private
0323456789abcdef,fedcba9876543230 fedcba9876543240 fedcba9876543250,Private
0423456789abcdef,fedcba9876543230,Private
0523456789abcdef,None,Ignored
"""
SUBMISSION = """id,images
0223456789abcdef,fedcba9876543200 fedcba9876543210

0323456789abcdef,fedcba9876543240 \n0423456789abcdef,fedcba9876543230 fedcba9876543240
0523456789abcdef,
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "mine.csv").write_text(SUBMISSION)
    (tmp_path / "solution.csv").write_text(SOLUTION)
    return tmp_path / "mine.csv", tmp_path / "solution.csv"


def test_the_published_example_by_files(files: tuple[Path, Path]) -> None:
    found = score_retrieval(*files)
    assert found.map_at_100 == pytest.approx(0.458333, abs=1e-6)
    assert (found.precision_at[1], found.recall_at[1]) == (0.5, 0.5)
    assert (found.mean_position, found.median_position) == (26.25, 1.5)
    assert found.map_of_usage == {"Private": pytest.approx(0.611111, abs=1e-6), "Public": 0.0}
    assert (found.queries, found.answered) == (4, 3)


@pytest.mark.shared
def test_every_published_number_of_single_lists(shared: Path) -> None:
    examples = json.loads((shared / "gldv2" / "metric_examples.json").read_text())["retrieval"]
    right = {query: frozenset(images) for query, images in examples["solution"].items()}
    ranked = {query: examples["predictions"].get(query, []) for query in right}
    for most, name in ((100, "mean_average_precision_at_100"), (1, "mean_average_precision_at_1")):
        values = [average_precision(ranked[query], right[query], most) for query in right]
        assert np.mean(values) == pytest.approx(examples[name], abs=1e-6)
    assert np.mean([first_right(ranked[query], right[query], 1) for query in right]) == examples["mean_position_at_1"]


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_list_that_holds_every_right_image_has_scikit_learns_average_precision(right: list[bool]) -> None:
    if any(right):
        ranked = [str(place) for place in range(len(right))]
        shown = frozenset(name for name, is_right in zip(ranked, right, strict=True) if is_right)
        expected = average_precision_score(right, -np.arange(len(right)))
        assert average_precision(ranked, shown) == pytest.approx(expected)


def test_an_image_that_is_named_again_gains_nothing() -> None:
    once, twice = average_precision(["a", "b"], frozenset("ab")), average_precision(["a", "a", "b"], frozenset("ab"))
    assert (once, twice) == (1.0, pytest.approx((1 + 2 / 3) / 2))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("0223456789abcdef,no-id\n", "line 2"),
        ("0223456789abcdef,\n0223456789abcdef,\n", "predicted more than once"),
        ("ffffffffffffffff,\n", "not in the solution; received ffffffffffffffff"),
    ],
)
def test_what_is_no_submission_is_told_in_one_line(files: tuple[Path, Path], rows: str, words: str) -> None:
    files[0].write_text("id,images\n" + rows)
    with pytest.raises(LandmarksError, match=words):
        score_retrieval(*files)


def test_score_knows_the_task_by_the_solution(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert is_retrieval(files[1]) and program(["score", *map(str, files)]) == 0
    assert "0.458" in capsys.readouterr().out
    assert program(["score", *map(str, files), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["map_at_100"] == pytest.approx(0.458333, abs=1e-6)


def pixels_of(table: pl.DataFrame) -> list[bytes]:
    numbers = [int(id, 16) for id in table["image_id"]]
    return [image(of or 1 + number % 3, number) for of, number in zip(table["landmark_id"], numbers, strict=True)]


def gap_by_hand(scores: np.ndarray, right: np.ndarray, known: int) -> float:
    total, hits = 0.0, 0
    for rank, place in enumerate(np.argsort(-scores, kind="stable"), 1):
        if right[place]:
            hits += 1
            total += hits / rank
    return total / known


def test_recall_gap_and_map_are_those_of_loops_over_cosines(run: Run, own_data: Dataset, test_data: Dataset) -> None:
    landmarks.evaluate(run.folder, data=test_data.folder, false_acceptance=0.25)  # which remembers unknown images
    numbers = landmarks.evaluate(
        run.folder, data=test_data.folder, by="classifier", retrieval=True, references=own_data.folder
    ).record
    recogniser = landmarks.load(run.folder)
    train, every = (own_data.split(part).sort("image_id") for part in ("train", "all"))
    test_images = test_data.split("all").sort("image_id")
    x, r, q = (
        directions(recogniser.embed(pixels_of(table))).astype(np.float16).astype(float)
        for table in (train, every, test_images)
    )
    shows = [
        set(([one] if one else []) + (more or [])) & {11, 22, 33}
        for one, more in test_images.select("landmark_id", "landmarks").rows()
    ]
    known = np.array([bool(one) for one in shows])
    order = np.argsort(-(q @ x.T), axis=1, kind="stable")
    ids = train["landmark_id"].to_numpy()
    right = np.array([[ids[place] in shown for place in row] for row, shown in zip(order, shows, strict=True)])
    for k in (1, 5, 10):
        assert numbers["neighbour_recall_at"][str(k)] == pytest.approx(right[known, :k].any(1).mean(), abs=0.051)
    best = (q @ x.T).max(1)
    assert numbers["neighbour_gap"]["all"] == pytest.approx(gap_by_hand(best, right[:, 0], known.sum()), abs=0.03)
    assert 0 <= numbers["neighbour_gap_penalised"]["Private"] <= 1
    precise = []
    for row, shown in zip(q, shows, strict=True):
        good = np.isin(every["landmark_id"].to_numpy(), list(shown))
        if good.any():
            ranked = good[np.argsort(-(r @ row), kind="stable")][:100]
            hits = np.flatnonzero(ranked) + 1
            precise.append((np.arange(1, len(hits) + 1) / hits).sum() / min(good.sum(), 100))
    assert numbers["map_at_100"] == pytest.approx(np.mean(precise), abs=0.02) and numbers["references"] == 30
    assert set(numbers) & set(NEIGHBOUR_DEFINITIONS) <= set(numbers["definitions"])


def test_an_image_is_penalised_by_its_nearest_unknown_images_and_not_by_itself() -> None:
    random = np.random.default_rng(0)
    unknown = random.normal(size=(30, 8))
    unknown = (unknown / np.linalg.norm(unknown, axis=1, keepdims=True)).astype(np.float16)
    remembered = UnknownImages(unknown, tuple(map(str, range(30))))
    itself = np.array([4, -1, 7])
    queries = np.stack([unknown[4], unknown[5], unknown[7]])
    found = penalty(queries, remembered, itself, nearest=3)
    for row, own in enumerate(itself):
        cosines = [
            float(queries[row].astype(float) @ unknown[other].astype(float)) for other in range(30) if other != own
        ]
        assert found[row] == pytest.approx(np.mean(sorted(cosines)[-3:]), abs=1e-3)


def test_the_program_shows_what_neighbours_are_worth_and_says_what_is_missing(
    run: Run, own_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(["evaluate", str(run.folder), "--retrieval", "--by", "classifier"]) == 0
    shown = capsys.readouterr().out
    assert "neighbour_recall_at 5" in shown and "map_at_100" not in shown
    other = make_dataset(tmp_path / "others", [[97]] * 4, first=9000)
    with pytest.raises(LandmarksError, match="shows a landmark that one of"):
        landmarks.evaluate(run.folder, by="classifier", references=other.folder)
