"""Which layer learns how fast, and what decays."""

from __future__ import annotations

from itertools import pairwise

import pytest

from landmarks.networks.network import build_network
from landmarks.training.optimizer import parameter_groups, trunk_layers
from landmarks.training.recipe import recipe_named


@pytest.mark.parametrize("backbone", ["test_resnet", "mobilenetv2_100", "test_vit", "baseline"])
def test_every_parameter_is_in_one_group(backbone: str) -> None:
    network = build_network(backbone, classes=3, weights="none", image_size=160)
    groups = parameter_groups(network, recipe_named("default"))
    seen = [parameter for group in groups for parameter in group["params"]]
    assert {id(parameter) for parameter in seen} == {id(parameter) for parameter in network.parameters()}
    assert len(seen) == len({id(parameter) for parameter in seen})


def test_learning_rates_fall_with_depth_by_one_factor_and_the_head_has_its_own() -> None:
    network = build_network("mobilenetv2_100", classes=3, weights="none", image_size=64)
    recipe = recipe_named("default", trunk_learning_rate=1e-4, first_layer_share=0.1, learning_rate=1e-3)
    peaks = sorted({group["peak"] for group in parameter_groups(network, recipe)})
    assert peaks[0] == pytest.approx(1e-5)
    assert peaks[-2:] == pytest.approx([1e-4, 1e-3])
    factors = [above / below for below, above in pairwise(peaks[:-1])]
    assert factors == pytest.approx([factors[0]] * len(factors))
    assert len(peaks) == len(trunk_layers(network)) + 1


def test_from_scratch_all_layers_have_one_learning_rate() -> None:
    network = build_network("test_resnet", classes=3, weights="none", image_size=64)
    assert len({group["peak"] for group in parameter_groups(network, recipe_named("default", weights="none"))}) == 1


def test_biases_and_normalisation_do_not_decay() -> None:
    network = build_network("test_resnet", classes=3, weights="none", image_size=64)
    for group in parameter_groups(network, recipe_named("default", weight_decay=0.1)):
        assert all((parameter.ndim > 1) == (group["weight_decay"] == 0.1) for parameter in group["params"])
