"""Every number that an evaluation writes down is defined beside it, and nothing else is."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from made_up_runs import make_dataset

from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.compare import compare
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.submission import score
from landmarks.evaluation.subsets import subsets
from landmarks.support.files import read_record
from landmarks.training.run import Run

WORDS = {"name", "run", "data", "split", "first", "second", "verdict", "definitions"}
WORDS |= {
    "format",
    "verb",
    "version",
    "inputs",
    "data_relative",
    "data_digest",
    "own_data",
    "seen",
    "matched",
    "unknown_data",
}
"""What a record says beside numbers: what was judged, and where."""

ABOUT_OTHERS = {"rejection_parts", "seed"}
"""How the numbers beside them were made; their definitions tell."""


def numbers_of(record: dict[str, Any]) -> set[str]:
    """The names of all numbers in a record that were measured: its entries, the columns of its comparison of scores,
    the scores compared, and what stands in every interval."""
    measured = {name for name, value in record.items() if not _nothing(value)} - WORDS - ABOUT_OTHERS
    rows = record.get("rejection") or []
    measured |= {column for row in rows for column in row if column != "score"} | {row["score"] for row in rows}
    if any(isinstance(value, dict) and value.get("low") is not None for value in record.values()):
        measured.add("interval")
    return measured


def _nothing(value: Any) -> bool:
    if isinstance(value, dict) and "value" in value:
        return value["value"] is None
    if isinstance(value, dict):
        return all(_nothing(one) for one in value.values())
    return value is None or value == []


def assert_defined(record: dict[str, Any], *, beside: Set[str] = frozenset()) -> None:
    assert set(record["definitions"]) == numbers_of(record) | beside
    assert all(text.endswith(".") for text in record["definitions"].values())


def test_every_number_about_known_and_unknown_images_is_defined_and_nothing_else(run: Run, test_data: Dataset) -> None:
    numbers = evaluate(run.folder, data=test_data.folder).record
    assert {"rejected", "lost", "auroc_chosen", "knn", "combined"} <= numbers_of(numbers)
    assert_defined(numbers, beside={"landmark_accuracy"})
    assert_defined(read_record(run.folder / "metrics" / "elsewhere.json"), beside={"landmark_accuracy"})


def test_without_unknown_images_nothing_is_defined_about_telling_them(run: Run) -> None:
    numbers = evaluate(run.folder).record
    assert not {"auroc", "rejection", "knn", "rejected"} & set(numbers["definitions"])
    assert_defined(numbers, beside={"landmark_accuracy"})


def test_without_any_known_image_no_accuracy_is_defined(run: Run, tmp_path: Path) -> None:
    numbers = evaluate(run.folder, data=make_dataset(tmp_path / "nothing", [[]] * 4, first=500).folder).record
    assert numbers["top1"]["value"] is None
    assert not {"top1", "interval", "landmark_accuracy", "gap"} & set(numbers["definitions"])
    assert_defined(numbers)


def test_a_submission_has_no_temperature_to_define(tmp_path: Path) -> None:
    ids = [f"{number:016x}" for number in range(8)]
    truth, submission = tmp_path / "truth.csv", tmp_path / "answers.csv"
    shown = ["5", "5", "7", "7", "7", None, None, None]
    pl.DataFrame({"id": ids, "landmarks": shown, "Usage": ["Public"] * 8}).write_csv(truth)
    answers = [f"{5 + 2 * (number % 2)} {1 - number / 10:.2f}" for number in range(8)]
    pl.DataFrame({"id": ids, "landmarks": answers}).write_csv(submission)
    for numbers in (score(submission, truth).record, score(submission, truth, out=tmp_path / "judged").record):
        assert not {"temperature", "ece", "log_loss", "msp"} & set(numbers["definitions"])
        assert {"answered", "gap", "score", "rejected"} <= set(numbers["definitions"])
        assert_defined(numbers, beside={"landmark_accuracy"})


def test_every_number_of_a_comparison_and_of_subsets_is_defined(run: Run, own_data: Dataset) -> None:
    evaluate(run.folder)
    compared = compare(run.folder, run.folder).record
    assert set(compared["definitions"]) == set(compared) - WORDS
    drawn = subsets(run.folder, 2, draws=3).record
    assert set(drawn["definitions"]) == (set(drawn) - WORDS - ABOUT_OTHERS) | {"subsets", "place"}
    evaluated = run.folder / "metrics" / "test.json"
    evaluated.unlink()
    assert not {"own", "place"} & set(subsets(run.folder, 2, draws=3).record["definitions"])


def test_of_few_known_images_no_threshold_is_chosen(run: Run, test_data: Dataset) -> None:
    rows = evaluate(run.folder, data=test_data.folder).record["rejection"]  # 15 known ones to choose on
    assert rows and all(row["threshold"] is row["lost"] is row["rejected"] is None for row in rows)
    assert all(row["auroc"] is not None for row in rows)


def test_what_is_rejected_is_what_falls_below_the_threshold_that_loses_a_twentieth(run: Run, tmp_path: Path) -> None:
    shown = [[[11], [22, 33], [44], []][number % 4] for number in range(80)]
    usage = ["Public" if number % 8 < 4 else "Private" for number in range(80)]
    data = make_dataset(tmp_path / "elsewhere", shown, usage=usage, first=1000)
    rows = evaluate(run.folder, data=data.folder).record["rejection"]
    table = pl.read_parquet(run.folder / "predictions" / "elsewhere.parquet").filter(pl.col("usage") == "Private")
    known = table["truth"].list.len().to_numpy() > 0
    for row in rows:
        if row["score"] in table.columns:
            values = table[row["score"]].to_numpy()
            assert row["rejected"] == np.mean(values[~known] < row["threshold"])
            assert row["lost"] == np.mean(values[known] < row["threshold"])
