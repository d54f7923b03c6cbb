"""Recipes: names, changes, and what cannot be used."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from landmarks.models.heads import build_head
from landmarks.support.errors import UsageError
from landmarks.training.augmentation import EpochAugmentation, draw_augmentation
from landmarks.training.recipe import (
    FROM_RECIPE,
    SHIPPED,
    Augmentation,
    Recipe,
    annotations_of,
    command_line_settings,
    parse_assignments,
    recipe_named,
)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_called_by_its_name_and_fits_into_json(name: str) -> None:
    for weights in ("imagenet", "none") if name != "instant" else ("imagenet",):
        recipe = recipe_named(name, weights=weights)
        assert recipe.name == name
        assert recipe.from_scratch == (weights == "none")
        json.dumps(recipe.record())


def test_changes_that_are_not_given_change_nothing() -> None:
    assert recipe_named("default", epochs=FROM_RECIPE, max_grad_norm=FROM_RECIPE) == recipe_named("default")


def test_a_command_line_gives_the_options_that_are_not_none_and_its_settings() -> None:
    options = {"epochs": None, "seed": 3, "image_size": 64}
    assert command_line_settings(options) == {"seed": 3, "image_size": 64}
    assert command_line_settings(options, ["image_size=null", "max_grad_norm=null"]) == {
        "seed": 3,
        "image_size": None,
        "max_grad_norm": None,
    }


@pytest.mark.parametrize("setting", ["max_grad_norm", "image_size", "micro_batch", "workers", "time_limit"])
def test_what_can_be_none_can_be_set_to_none(setting: str) -> None:
    started = replace(recipe_named("default"), **{setting: 64})
    assert getattr(recipe_named(started, **{setting: None}), setting) is None
    assert getattr(recipe_named(started, **parse_assignments([f"{setting}=null"])), setting) is None


@pytest.mark.parametrize("setting", ["epochs", "weights", "flip", "aspect", "head_settings"])
def test_what_cannot_be_none_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=f"{setting} cannot be used; received None"):
        recipe_named("default", **{setting: None})


def test_images_too_small_for_networks_that_halve_them_five_times_are_refused() -> None:
    with pytest.raises(UsageError, match=r"image_size cannot be used; received 10; expected a whole number \(32 or"):
        recipe_named("default", image_size=10)


def test_flip_reaches_the_augmentation() -> None:
    assert not recipe_named("default", flip=False).augmentation.flip


def test_the_baseline_is_trained_from_scratch_unless_weights_are_named() -> None:
    assert recipe_named("default", backbone="baseline").from_scratch


def test_another_learning_rate_moves_the_backbone_s_along() -> None:
    recipe = recipe_named("default")
    doubled = recipe.with_learning_rate(2 * recipe.learning_rate)
    assert doubled.backbone_learning_rate == pytest.approx(2 * recipe.backbone_learning_rate)


def test_a_learning_rate_moves_the_backbone_s_along_unless_that_is_given_too() -> None:
    recipe = recipe_named("default", learning_rate=2e-3)
    assert (recipe.learning_rate, recipe.backbone_learning_rate) == (2e-3, pytest.approx(6e-4))
    recipe = recipe_named("default", learning_rate=2e-3, backbone_learning_rate=1e-4)
    assert (recipe.learning_rate, recipe.backbone_learning_rate) == (2e-3, 1e-4)


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
        ({"aspect": 0}, r"aspect cannot be used; received 0; expected a number \(1 or more, at most 10\)"),
        ({"crop_scale": 2}, "at most 1"),
        ({"brightness": -3}, "0 or more"),
        ({"contrast": -1}, "0 or more"),
        ({"saturation": math.nan}, "received nan"),
        ({"weight_decay": math.inf}, "received inf"),
        ({"max_grad_norm": 1e308}, r"at most 1,000,000\), or null"),
        ({"balance": 1e308}, "at most 2"),
        ({"seed": -1}, "0 or more"),
        ({"seed": 2**64}, "at most"),
        ({"seed": 10**5000}, "too long to be shown"),
        ({"weights": ""}, "a line of text"),
        ({"backbone": "res\0net"}, "a line of text"),
        (
            {"head_settings": {"sub_centres": 2.5}},
            "received 2.5; expected a whole number",
        ),
        ({"head_settings": {"scale": math.nan}}, "head.scale cannot be used; received nan"),
        ({"head_settings": {"margin": 4}}, "radians"),
        ({"head_settings": {"own": math.inf}}, "head.own"),
        ({"head_settings": {"own": [1]}}, "head.own"),
        ({"head_settings": {"a b": 1}}, "no such name"),
        ({"weights": "none", "epochs": 0}, "trains nothing; received epochs 0 from scratch"),
        ({"epochs": 0, "head_epochs": 0}, "trains nothing; received epochs 0 and head_epochs 0"),
        ({"recipe": "instant", "weights": "none"}, "cannot begin from scratch; name weights"),
        ({"recipe": "instant", "head": "mlp"}, "only the linear head can be solved for .* received head mlp"),
        ({"recipe": "instant", "head_solver": "svd"}, "expected gradient, discriminant"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(changes: dict, words: str) -> None:
    name = changes.pop("recipe", "default")
    with pytest.raises(UsageError, match=words) as caught:
        recipe_named(name, **changes)
    assert "\n" not in str(caught.value)


def test_a_head_s_own_settings_are_read_from_the_command_line() -> None:
    settings = parse_assignments(["head.sub_centres=3", "head.margin=0.1", "epochs=2"])
    assert settings == {"head_settings": {"sub_centres": 3, "margin": 0.1}, "epochs": 2}
    assert recipe_named("default", head="arcface", **settings).head_settings == {"sub_centres": 3, "margin": 0.1}


def test_settings_are_read_from_the_command_line() -> None:
    settings = parse_assignments(["epochs=3", "freeze_bn=true", "head=linear", "crop_scale=0.5", "max_grad_norm = 2"])
    recipe = recipe_named("default", **settings)
    assert (recipe.epochs, recipe.freeze_bn, recipe.head) == (3, True, "linear")
    assert (recipe.augmentation.crop_scale, recipe.max_grad_norm) == (0.5, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs", "expected name=value"),
        ("epochs=many", "expected a whole number"),
        ("epochs=true", "expected a whole number"),
        ("epocs=3", 'did you mean "epochs"'),
        ("name=mine", 'no setting "name"'),
        ("crop_scale=[1]", "expected a number"),
    ],
)
def test_settings_that_cannot_be_used_are_told(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe_named("default", **parse_assignments([text]))


@pytest.mark.parametrize("record", [Recipe(name="own"), Augmentation()], ids=lambda record: type(record).__name__)
def test_a_record_made_by_hand_is_checked_too(record: Any) -> None:
    for field in fields(record):
        for value in (object(), math.nan, [], -(10**400)):
            with pytest.raises(UsageError, match=field.name):
                replace(record, **{field.name: value})


FIELDS = sorted({field.name for kind in (Recipe, Augmentation) for field in fields(kind)} | {"head.margin", "nothing"})

EDGES = [-1, 0, 1, 2**31, 2**63, 2**64, -(10**400), 1e-320, 0.5, 1.0, 1e308, -1e308, math.inf, -math.inf, math.nan]

JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from(EDGES) | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["embedding", "sub_centres", "scale", "margin"]) | st.text(), inner, max_size=3
        )
    ),
    max_leaves=5,
)


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3), st.sampled_from(SHIPPED))
@example({"aspect": 0}, "default")
@example({"aspect": 10, "crop_scale": 0.01}, "default")
@example({"learning_rate": 1000, "weights": "none"}, "study")
@example({"learning_rate": 5e-324}, "study")
@example({"head_settings": {"embedding": 8192, "sub_centres": 255}}, "default")
def test_any_json_is_a_recipe_or_a_usage_error(changes: dict[str, Any], name: str) -> None:
    try:
        recipe = recipe_named(name, **changes)
    except UsageError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 500
    else:
        require_usable(recipe)
    try:
        texts = [f"{field}={json.dumps(value)}" for field, value in changes.items()]
        recipe = recipe_named(name, **parse_assignments(texts))
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        require_usable(recipe)


def require_usable(recipe: Recipe) -> None:
    """Assert what the rest of a training takes for granted about a recipe."""
    again = json.loads(json.dumps(recipe.record(), allow_nan=False))
    assert Recipe(**{**again, "augmentation": Augmentation(**again["augmentation"])}) == recipe
    torch.manual_seed(recipe.seed)
    drawn = draw_augmentation(
        EpochAugmentation(recipe.augmentation, recipe.seed, 1), np.array([64]), np.array([48]), ["image"]
    )
    left, top, right, bottom = drawn.boxes[0]
    assert 0 <= left < right <= 1 + 1e-9
    assert 0 <= top < bottom <= 1 + 1e-9
    assert np.isfinite(drawn.factors).all()
    assert all(math.isfinite(value) for value in asdict(recipe).values() if isinstance(value, float))
    settings_of_the_head = {**recipe.head_settings}
    if not set(settings_of_the_head) - {"embedding", "sub_centres", "scale", "margin"}:
        head = build_head("arcface", 8, 3, settings_of_the_head)
        head.adapt(np.array([1, 2, 3]))
        assert head(torch.ones(1, 8)).isfinite().all()


NUMBERS = [
    name for name, annotation in {**annotations_of(Recipe), **annotations_of(Augmentation)}.items()
    if any(kind in str(annotation) for kind in ("int", "float")) and "Augmentation" not in str(annotation)
]  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e308, -1e308])
@pytest.mark.parametrize("setting", NUMBERS)
def test_a_number_that_is_none_is_refused_in_every_setting(setting: str, value: float) -> None:
    with pytest.raises(UsageError, match=setting):
        recipe_named("default", **{setting: value})
    with pytest.raises(UsageError, match=setting):
        recipe_named("default", **parse_assignments([f"{setting}={json.dumps(value)}"]))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e308", "1e400"])
def test_a_number_that_is_none_is_refused_by_a_head_too(value: str) -> None:
    for setting in ("head.scale", "head.margin", "head.of_ones_own"):
        with pytest.raises(UsageError, match=setting):
            parse_assignments([f"{setting}={value}"])
