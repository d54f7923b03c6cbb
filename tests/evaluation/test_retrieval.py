"""The retrieval task's numbers against the published examples of its own metrics, and its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from landmarks.cli.main import run as landmarks
from landmarks.evaluation.retrieval import average_precision, first_right, is_retrieval, score_retrieval
from landmarks.support.errors import LandmarksError

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
    assert is_retrieval(files[1]) and landmarks(["score", *map(str, files)]) == 0
    assert "0.458" in capsys.readouterr().out
    assert landmarks(["score", *map(str, files), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["map_at_100"] == pytest.approx(0.458333, abs=1e-6)
