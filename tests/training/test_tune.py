"""The search finds nothing worse than the recipe, the same every time."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from striped import SMALL

from landmarks.cli.main import run as run_command
from landmarks.dataset.manifest import Dataset
from landmarks.support.errors import UsageError
from landmarks.training.tune import TRIALS, print_trials, tune

pytest.importorskip("optuna")


def test_the_best_trial_is_at_least_the_recipe_and_a_seed_gives_the_same_search(
    stripes: Dataset, small_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"backbone": SMALL, "weights": small_weights, "image_size": 32, "head_epochs": 3, "device": "cpu"}
    first, second = (tune(stripes.folder, trials=4, **settings) for _ in range(2))
    assert first.equals(second)
    assert first.schema == TRIALS
    recipe = first.filter(first["trial"] == 0).row(0, named=True)
    assert recipe["head"] == "mlp"
    assert first["val_accuracy"][0] >= recipe["val_accuracy"]
    print_trials(first, ["train", "my data", "-o", "RUN"])
    captured = capsys.readouterr()
    assert "head_learning_rate" in captured.out
    assert "landmarks train 'my data' -o RUN --head" in captured.err


def test_the_command_that_tune_prints_trains_the_network_that_was_tuned(
    stripes: Dataset, small_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, given = str(stripes.folder), ["--backbone", SMALL, "--weights", str(small_weights), "--image-size", "32"]
    assert run_command(["tune", data, "--trials", "1", *given]) == 0
    command = next(line for line in capsys.readouterr().err.splitlines() if "landmarks train" in line)
    assert shlex.split(command.partition("landmarks ")[2])[: 4 + len(given)] == ["train", data, "-o", "RUN", *given]


def test_a_recipe_outside_of_what_is_searched_is_the_first_trial_as_it_is(
    stripes: Dataset, small_weights: Path
) -> None:
    outside = {"head_weight_decay": 0.0, "head_batch_size": 48, "head_learning_rate": 0.05, "label_smoothing": 0.3}
    settings = {"backbone": SMALL, "weights": small_weights, "image_size": 32, "head_epochs": 1, "device": "cpu"}
    table = tune(stripes.folder, trials=2, **settings, **outside)
    assert table.filter(table["trial"] == 0).select(*outside).row(0, named=True) == outside


def test_from_scratch_there_is_nothing_to_tune(stripes: Dataset) -> None:
    with pytest.raises(UsageError, match="nothing to tune"):
        tune(stripes.folder, backbone="baseline")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"head_epochs": 0}, "head_epochs 0"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"trials": 0}, "1 or more"),
    ],
)
def test_a_search_that_cannot_be_is_refused(wrong: dict, words: str, stripes: Dataset, small_weights: Path) -> None:
    with pytest.raises(UsageError, match=words):
        tune(stripes.folder, backbone=SMALL, weights=small_weights, image_size=32, **{"trials": 1, **wrong})
