"""Recall, GAP and mAP@100 by the nearest images, against loops over plain arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from made_up_runs import image, make_dataset

import landmarks
from landmarks.cli.main import run as program
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.neighbours import NEIGHBOUR_DEFINITIONS, penalty
from landmarks.recognition.directions import directions
from landmarks.recognition.unknown_images import UnknownImages
from landmarks.support.errors import LandmarksError
from landmarks.training.run import Run


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
