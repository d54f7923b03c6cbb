"""What a page says its numbers do not show follows from the runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_factory import labels_table

from landmarks.report.caveats import caveats, definitions
from landmarks.report.pieces import Evaluation, Pieces


def run(
    *, split: Any = None, backbone: str = "resnet50", weights: str = "imagenet", tests: tuple[Evaluation, ...] = ()
) -> Pieces:
    record = {
        "data": {"digest": "d", "split": split or {"rule": "by group", "leakage": {}}},
        "network": {"backbone": backbone, "weights": weights, "image_size": 224},
    }
    return Pieces("run", Path("run"), record, labels_table(20), None, {}, tests, None)


def judged(name: str, known: int, unknown: int = 0) -> Evaluation:
    top1 = {"value": 0.9, "low": 0.88, "high": 0.92}
    return Evaluation(name, {"known": known, "unknown": unknown, "top1": top1}, None, None, None)


def told(*runs: Pieces) -> str:
    return " ".join(caveats(runs))


@pytest.mark.parametrize("rule", ["random", "by random, val 0.15, test 0.15"])
def test_a_random_split_is_said_with_its_leakage(rule: str) -> None:
    leaky = {"rule": rule, "leakage": {"straddling_pairs": 37, "straddling_pairs_random": 37}}
    assert "drawn at random" in told(run(split=leaky))
    assert "37 near-duplicate pairs on both sides" in told(run(split=leaky))


def test_a_group_split_says_what_a_random_one_would_have_given_away() -> None:
    clean = {"rule": "by group, val 0.15", "leakage": '{"straddling_pairs": 0, "straddling_pairs_random": 120}'}
    assert "(0 near-duplicate pairs on both sides, 120 in a random split)" in told(run(split=clean))


def test_a_split_that_was_given_is_said() -> None:
    assert "taken as given (the folders)" in told(run(split={"rule": "the folders"}))


def test_dinov2_has_seen_the_archive_and_a_network_from_scratch_nothing() -> None:
    assert "very archive" in told(run(backbone="vit_small_patch14_dinov2"))
    assert "retrained" not in told(run(weights="none"))


def test_a_small_test_set_is_said_with_the_width_of_its_interval() -> None:
    assert "677 photographs of known landmarks" in told(run(tests=(judged("test", 677),)))
    assert "4.0 points wide" in told(run(tests=(judged("test", 677),)))
    assert "small" not in told(run(tests=(judged("test", 5_000),)))


def test_a_run_without_a_test_and_one_without_strangers_are_said() -> None:
    assert "Nothing was kept apart to test run" in told(run(tests=(judged("val", 900),)))
    assert "anything else" in told(run(tests=(judged("test", 900),)))
    assert "anything else" not in told(run(tests=(judged("test", 900, unknown=100),)))


def test_runs_tested_on_different_photographs_do_not_compare() -> None:
    assert "do not compare" in told(run(tests=(judged("test", 900),)), run(tests=(judged("other", 500),)))
    assert "do not compare" not in told(run(tests=(judged("test", 900),)), run(tests=(judged("test", 900),)))


def test_the_evaluation_says_itself_what_its_numbers_mean() -> None:
    own = Evaluation("test", {"definitions": {"gap": "As published.", "epochs": "Mine."}}, None, None, None)
    meanings = dict(definitions([run(tests=(own,))]))
    assert meanings["GAP"] == "As published." and meanings["Epochs"] == "Mine." and "Parameters" in meanings
