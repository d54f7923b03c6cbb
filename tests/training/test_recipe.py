"""Recipes: names, changes, and what cannot be used."""

from __future__ import annotations

import json

import pytest

from landmarks.support.errors import UsageError
from landmarks.training.recipe import SHIPPED, assigned, recipe_named


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_called_by_its_name_and_fits_into_json(name: str) -> None:
    for weights in ("imagenet", "none"):
        recipe = recipe_named(name, weights=weights)
        assert recipe.name == name
        assert recipe.from_scratch == (weights == "none")
        json.dumps(recipe.record())


def test_changes_that_are_none_change_nothing() -> None:
    assert recipe_named("default", epochs=None, seed=None) == recipe_named("default")


def test_flip_reaches_the_augmentation() -> None:
    assert not recipe_named("default", flip=False).augmentation.flip


def test_the_baseline_is_trained_from_scratch_unless_weights_are_named() -> None:
    assert recipe_named("default", backbone="baseline").from_scratch


def test_another_learning_rate_moves_the_trunk_s_along() -> None:
    recipe = recipe_named("default")
    doubled = recipe.with_learning_rate(2 * recipe.learning_rate)
    assert doubled.trunk_learning_rate == pytest.approx(2 * recipe.trunk_learning_rate)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": "defualt"}, 'did you mean "default"'),
        ({"epoch": 3}, 'did you mean "epochs"'),
        ({"precision": "bfloat"}, 'did you mean "bfloat16"'),
        ({"device": "gpu"}, "cpu, cuda"),
        ({"optimizer": "rmsporp"}, 'did you mean "rmsprop"'),
        ({"epochs": -1}, "epochs"),
        ({"batch_size": 0}, "1 or more"),
        ({"learning_rate": float("nan")}, "more than 0"),
        ({"time_limit": 0.0}, "minutes"),
        ({"label_smoothing": 1.0}, "below 1"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(changes: dict, words: str) -> None:
    name = changes.pop("recipe", "default")
    with pytest.raises(UsageError, match=words) as caught:
        recipe_named(name, **changes)
    assert "\n" not in str(caught.value)


def test_a_head_s_own_settings_are_read_from_the_command_line() -> None:
    settings = assigned(["head.centres=3", "head.margin=0.1", "epochs=2"])
    assert settings == {"head_settings": {"centres": 3, "margin": 0.1}, "epochs": 2}
    assert recipe_named("default", **settings).head_settings == {"centres": 3, "margin": 0.1}


def test_settings_are_read_from_the_command_line() -> None:
    settings = assigned(["epochs=3", "frozen_statistics=true", "head=linear", "smallest_crop=0.5", "clip = 2"])
    recipe = recipe_named("default", **settings)
    assert (recipe.epochs, recipe.frozen_statistics, recipe.head) == (3, True, "linear")
    assert (recipe.augmentation.smallest_crop, recipe.clip) == (0.5, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs", "expected name=value"),
        ("epochs=many", "expected int"),
        ("epochs=true", "expected int"),
        ("epocs=3", 'did you mean "epochs"'),
        ("name=mine", 'no setting "name"'),
        ("smallest_crop=[1]", "expected float"),
    ],
)
def test_settings_that_cannot_be_used_are_told(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe_named("default", **assigned([text]))
