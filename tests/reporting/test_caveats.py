"""What a page says its numbers do not show follows from the runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from run_factory import labels_table, make_dataset, make_run

from landmarks.evaluation.predictions import prediction_arrays
from landmarks.evaluation.submission import write_metrics
from landmarks.reporting.caveats import found_caveats, page_definitions
from landmarks.reporting.report_tables import evaluations_table, rejection_table, results_table
from landmarks.reporting.run_files import EvaluationFiles, RunFiles, read_run_files
from landmarks.support.tables import read_table, write_table


def run(
    name: str = "run",
    *,
    split: Any = None,
    backbone: str = "resnet50",
    weights: str = "imagenet",
    tests: tuple[EvaluationFiles, ...] = (),
    data: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    val_accuracy: float | None = 0.9,
    epochs: int = 3,
) -> RunFiles:
    record = {
        "recipe": recipe,
        "data": {"digest": "d", "set": "train", "split": split or {"rule": "by group", "leakage": {}}, **(data or {})},
        "network": {"backbone": backbone, "weights": weights, "image_size": 224},
        "best": {"phase": "finetune", "epoch": 1, "val_accuracy": val_accuracy},
    }
    kinds = {"phase": pl.String, "epoch": pl.UInt32, "val_accuracy": pl.Float64}
    rows = [("finetune", epoch, val_accuracy) for epoch in range(1, epochs + 1)]
    history = pl.DataFrame(rows, schema=kinds, orient="row")
    return RunFiles(name, Path(name), record, labels_table(20), history, {}, tests, None)


def judged(name: str, known: int, unknown: int = 0) -> EvaluationFiles:
    top1 = {"value": 0.9, "low": 0.88, "high": 0.92}
    return EvaluationFiles(name, {"split": name, "known": known, "unknown": unknown, "top1": top1}, None, None, None)


def caveats_text(*runs: RunFiles) -> str:
    return " ".join(found_caveats(runs))


def test_who_answered_is_said_where_it_was_not_the_classifier_alone() -> None:
    by_both = replace(judged("test", 2000), metrics={**judged("test", 2000).metrics, "by": "both"})
    assert "classifier" not in caveats_text(run(tests=(judged("test", 2000), judged("val", 900))))
    text = caveats_text(run("xception", tests=(by_both, judged("val", 900))))
    assert "Of xception, test by the classifier and remembered training images together" in text
    assert "val by the trained classifier alone; their accuracies are of different answers." in text


@pytest.mark.parametrize("rule", ["random", "by random, val 0.15, test 0.15"])
def test_a_random_split_is_said_with_its_leakage(rule: str) -> None:
    leaky = {"rule": rule, "leakage": {"straddling_pairs": 37, "straddling_pairs_random": 37}}
    assert "drawn at random" in caveats_text(run(split=leaky))
    assert "37 near-duplicate pairs on both sides" in caveats_text(run(split=leaky))


def test_a_random_split_without_near_duplicates_is_not_blamed_for_any() -> None:
    clean = {"rule": "by random, val 0.15", "leakage": '{"straddling_pairs": 0, "straddling_pairs_random": 0}'}
    text = caveats_text(run(split=clean))
    assert "find no near-duplicates on both sides" in text and "are among" not in text
    assert "may be among those of validation and test" in caveats_text(run(split={"rule": "by random", "leakage": ""}))


def test_a_group_split_says_what_a_random_one_would_have_given_away() -> None:
    clean = {"rule": "by group, val 0.15", "leakage": '{"straddling_pairs": 0, "straddling_pairs_random": 120}'}
    assert "(0 near-duplicate pairs on both sides, 120 in a random split)" in caveats_text(run(split=clean))


def test_a_split_that_was_given_is_said() -> None:
    assert "taken as given (the folders); near-duplicates may lie" in caveats_text(run(split={"rule": "the folders"}))
    kept = {"rule": "kept from the source; near-duplicates within 6 of 64 bits", "leakage": '{"straddling_pairs": 4}'}
    assert "taken as given (kept from the source)" in caveats_text(run(split=kept))
    assert "perceptual hashes find (4 near-duplicate pairs on both sides)" in caveats_text(run(split=kept))


def test_dinov2_has_seen_the_archive_and_a_network_from_scratch_nothing() -> None:
    assert "very archive: its numbers here are better" in caveats_text(run(backbone="vit_small_patch14_dinov2"))
    assert "retrained" not in caveats_text(run(weights="none"))


def test_of_somebodys_own_images_nothing_is_said_that_holds_for_the_archive_alone() -> None:
    for origin in ({"set": "import"}, {"set": None}):
        text = caveats_text(run(backbone="vit_small_patch14_dinov2", data=origin))
        assert "archive" not in text and "203,094" not in text
        assert "gathered around the landmarks of Google Landmarks v2: its numbers on those" in text
        assert "Only 20 landmarks can be answered. Fewer are easier" in text
    assert "the whole archive has 203,094" in caveats_text(run())


def test_of_weights_from_a_file_nobody_knows_what_they_have_seen() -> None:
    text = caveats_text(run(backbone="vit_small_patch14_dinov2", weights="/runs/from-scratch"))
    assert "vit_small_patch14_dinov2 began with the weights from-scratch" in text
    assert "pretrained" not in text and "Pretrained" not in text


def test_a_small_test_set_is_said_with_the_width_of_its_interval() -> None:
    assert "677 images of known landmarks" in caveats_text(run(tests=(judged("test", 677),)))
    assert "4.0 points wide" in caveats_text(run(tests=(judged("test", 677),)))
    assert "small" not in caveats_text(run(tests=(judged("test", 5_000),)))


def test_a_run_without_a_test_and_one_without_strangers_are_said() -> None:
    untested = run(tests=(judged("val", 900),), data={"images": {"train": 90, "val": 900, "test": 0}})
    assert "Nothing was kept apart to test run: validation accuracy chose the epoch to keep" in caveats_text(untested)
    assert "anything else" in caveats_text(run(tests=(judged("test", 900),)))
    assert "anything else" not in caveats_text(run(tests=(judged("test", 900, unknown=100),)))
    with_unknown, without_unknown = (
        run(name, tests=(judged("test", 900, unknown),)) for name, unknown in (("a", 100), ("b", 0))
    )
    assert "Every image judged of b shows one of the known landmarks" in caveats_text(with_unknown, without_unknown)


def test_test_images_that_wait_to_be_judged_are_not_denied() -> None:
    waiting = run(tests=(judged("val", 900),), data={"images": {"train": 90, "val": 900, "test": 500}})
    assert "run was not judged on test images" in caveats_text(waiting)
    assert "Nothing was kept apart" not in caveats_text(waiting)


def test_a_single_epoch_was_not_chosen_by_its_validation_accuracy() -> None:
    assert "chose the epoch" in caveats_text(run(epochs=2))
    assert "chose the epoch" not in caveats_text(run(epochs=1))


def test_one_seed_of_a_recipe_is_told_from_several() -> None:
    recipe = {"backbone": "resnet50", "epochs": 8}
    alone = (run("a", recipe={**recipe, "seed": 0}), run("b", recipe={**recipe, "epochs": 4, "seed": 0}))
    assert "Each run was trained with one seed; another alone would give another accuracy." in caveats_text(*alone)
    reached = zip(("a", "b", "c"), (0, 1, 2), (0.91, 0.93, 0.92), strict=True)
    seeds = [run(name, recipe={**recipe, "seed": seed}, val_accuracy=share) for name, seed, share in reached]
    text = caveats_text(*seeds)
    assert "a, b and c differ in nothing but the seed: with it, validation accuracy lies between 91.0" in text
    assert "93.0" in text and "one seed" not in text
    other = run("d", recipe={**recipe, "epochs": 4, "seed": 0})
    assert "d: trained with one seed; another" in caveats_text(*seeds, other)
    elsewhere = run("e", recipe={**recipe, "seed": 3}, data={"digest": "other"})
    assert "e: trained with one seed; another" in caveats_text(*seeds, elsewhere)
    assert "seed" not in caveats_text(run("f"), run("g"))  # nothing is known of how these were trained


def test_what_decides_a_training_is_compared_and_not_where_it_ran() -> None:
    pair = [run(name, recipe={"epochs": 8, "seed": seed, "workers": seed}) for seed, name in enumerate("ab")]
    for each, seed in zip(pair, (0, 1), strict=True):
        each.record["identity"] = {"epochs": 8, "seed": seed}
    assert "a and b differ in nothing but the seed" in caveats_text(*pair)


def test_runs_tested_on_different_images_do_not_compare() -> None:
    assert "do not compare" in caveats_text(run(tests=(judged("test", 900),)), run(tests=(judged("other", 500),)))
    assert "do not compare" not in caveats_text(run(tests=(judged("test", 900),)), run(tests=(judged("test", 900),)))


def test_images_are_compared_by_what_they_are_where_the_predictions_tell(tmp_path: Path) -> None:
    def answered(name: str, ids: list[str]) -> EvaluationFiles:
        path = tmp_path / f"{name}.parquet"
        kinds = {"image_id": pl.String, "truth": pl.List(pl.UInt32)}
        write_table(path, pl.DataFrame({"image_id": ids, "truth": [[1]] * len(ids)}, schema=kinds))
        return EvaluationFiles(name, judged(name, len(ids)).metrics, None, None, path)

    first, same, other = answered("test", ["a", "b"]), answered("seen", ["b", "a"]), answered("else", ["a", "c"])
    assert "do not compare" not in caveats_text(run(tests=(first,)), run(tests=(same,)))
    assert "do not compare" in caveats_text(run(tests=(first,)), run(tests=(other,)))


def test_what_is_not_known_of_a_run_is_no_difference_between_runs() -> None:
    told_nothing = run(data={"digest": None})
    told_nothing.record["network"] = {}
    assert "same images" not in caveats_text(run(), told_nothing)
    assert "different sizes" not in caveats_text(run(), told_nothing)
    assert "not trained on the same images" in caveats_text(run(), run(data={"digest": "other"}))


def test_numbers_of_the_training_images_are_no_test() -> None:
    learned = run(tests=(judged("train", 900),), data={"folder": "data"})
    assert learned.main is None and "run was not judged on test images" in caveats_text(learned)
    whole = EvaluationFiles("all", {"known": 90, "split": "all", "data": "data"}, None, None, None)
    assert run(tests=(whole,), data={"folder": "data"}).main is None
    assert run(tests=(whole,), data={"folder": "elsewhere"}).main is whole
    folder = EvaluationFiles("train", {"known": 90, "split": "all", "data": "train"}, None, None, None)
    assert run(tests=(folder,), data={"folder": "elsewhere"}).main is folder


def test_the_evaluation_says_itself_what_its_numbers_mean() -> None:
    kept = {"gap": 0.7, "top1": {"value": 0.9, "low": 0.8, "high": 0.95}, "unheard_of": None}
    definitions = {"gap": "As published.", "interval": "Mine.", "unheard_of": "Of nothing."}
    own = EvaluationFiles("test", {**kept, "definitions": definitions}, None, None, None)
    meanings = dict(page_definitions([run(tests=(own,))]))
    assert meanings["GAP"] == "As published." and meanings["Interval"] == "Mine." and "Epochs" in meanings
    assert not {"Unheard of", "GMACs", "Parameters"} & set(meanings)  # numbers that this run does not have


def test_every_number_on_the_page_is_defined_under_its_own_heading_and_nothing_else_is(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=120, unknown=30)
    folder = make_run(tmp_path / "run", data, maps=0)
    predictions = read_table(folder / "predictions" / "test.parquet")
    random = np.random.default_rng(0)
    scores = {name: pl.Series(random.random(len(predictions)), dtype=pl.Float32) for name in ("energy", "knn")}
    predictions = predictions.drop("max_probability").with_columns(
        truth_score=pl.lit(-1.0, pl.Float32),
        untempered=predictions["score"].list.first(),
        group=pl.lit(None, pl.UInt32),
        usage=pl.lit("Public"),
        **scores,
    )
    about = {"name": "test", "split": "test", "data": str(data.folder), "temperature": 1.3, "seconds": 2.0}
    write_metrics(folder, data.labels, prediction_arrays(predictions), about, verb="evaluate", inputs="")
    (files,) = read_run_files([folder])
    tables = [results_table([files]), evaluations_table(files), rejection_table(files.main.metrics)]
    shown = {column.title for table in tables for column in table.columns if column.numeric}
    definitions = dict(page_definitions([files]))
    assert {"Test accuracy", "Head training alone", "Unknown rejected", "AUROC where chosen", "Image", "GAP"} <= shown
    assert shown <= set(definitions)
    elsewhere = {"Interval", "GMACs", "Rejection", "Landmarks", "Landmark accuracy", "Confused", "GAP of usage"}
    elsewhere |= {"Reliability", "Risk coverage", "Temperature", "ECE before temperature"}  # in figures and lines
    scores_compared = {row["score"].capitalize() for row in files.main.metrics["rejection"]}
    assert set(definitions) == shown | elsewhere | scores_compared
