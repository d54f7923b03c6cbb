"""Draws of landmarks on the page: a histogram where there were some, and nothing where there were none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from run_factory import make_dataset, make_run

from landmarks.evaluation.predictions import SUBSETS_SUFFIX
from landmarks.evaluation.subsets import distribution, percentile_rank
from landmarks.reporting.page import report
from landmarks.support.files import read_record, write_record


def test_draws_are_shown_as_a_histogram_where_there_were_some(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", make_dataset(tmp_path / "data", count=60, unknown=0), maps=0)
    assert "How much the choice" not in report(run, tmp_path / "before.html").read_text(encoding="utf-8")
    accuracies = np.random.default_rng(0).normal(0.9, 0.02, 200)
    own = {"accuracy": 0.93, "landmarks": 20, "place": percentile_rank(0.93, accuracies)}
    held = {"name": "test", "split": "train", "landmarks": 10, "of": 20, **distribution(accuracies), "own": own}
    held["definitions"] = {"subsets": "Drawn at random.", "place": "Share of draws below."}
    write_record(
        run / "metrics" / f"test{SUBSETS_SUFFIX}", {**held, "accuracies": accuracies.tolist()}, verb="evaluate"
    )
    page = report(run, tmp_path / "after.html").read_text(encoding="utf-8")
    assert 'id="one-subsets"' in page
    assert "200 draws of 10 of 20 landmarks" in page
    assert "other numbers of landmarks do not compare" in page
    assert "<dt>Draws of landmarks</dt><dd>Drawn at random.</dd>" in page
    assert "<dt>Place among the draws</dt><dd>Share of draws below.</dd>" in page
    counted = pl.read_csv(tmp_path / "figures" / "one-subsets-test.csv")
    assert counted["draws"].sum() == 200
    assert (tmp_path / "figures" / "one-subsets-test.svg").exists()


def test_draws_of_images_that_the_network_was_fine_tuned_on_are_said_to_be_too_good(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", make_dataset(tmp_path / "data", count=60, unknown=0), maps=0)
    held = {
        "name": "test",
        "split": "train",
        "landmarks": 2,
        "of": 20,
        **distribution(np.array([0.8, 0.9])),
        "own": None,
    }
    write_record(run / "metrics" / f"test{SUBSETS_SUFFIX}", {**held, "accuracies": [0.8, 0.9]}, verb="evaluate")
    assert "all its draws are too good" in report(run, tmp_path / "tuned.html").read_text(encoding="utf-8")
    record = read_record(run / "run.json")
    record["best"]["phase"] = "head"
    write_record(run / "run.json", record, verb="train")
    assert "all its draws are too good" not in report(run, tmp_path / "head.html").read_text(encoding="utf-8")
