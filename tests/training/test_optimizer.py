"""Which layer learns how fast, and what decays."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from landmarks.models.network import Network, build_network
from landmarks.support.errors import LandmarksError
from landmarks.training.checkpoint import State, load_checkpoint, save_checkpoint, tensors_of
from landmarks.training.optimizer import make_optimizer, parameter_groups
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
    recipe = recipe_named("default", backbone_learning_rate=1e-4, layer_decay=0.8, learning_rate=1e-3)
    peaks = sorted({group["peak"] for group in parameter_groups(network, recipe)})
    assert peaks[-2:] == pytest.approx([1e-4, 1e-3])
    assert [below / above for below, above in pairwise(peaks[:-1])] == pytest.approx([0.8] * (len(peaks) - 2))
    layers = group_parameters(network.backbone, network.backbone.group_matcher(coarse=False))  # type: ignore[operator]
    assert len(peaks) == len(layers) + 1


def test_from_scratch_all_layers_have_one_learning_rate() -> None:
    network = build_network("test_resnet", classes=3, weights="none", image_size=64)
    assert len({group["peak"] for group in parameter_groups(network, recipe_named("default", weights="none"))}) == 1


def test_biases_and_normalisation_do_not_decay() -> None:
    network = build_network("test_resnet", classes=3, weights="none", image_size=64)
    for group in parameter_groups(network, recipe_named("default", weight_decay=0.1)):
        assert all((parameter.ndim > 1) == (group["weight_decay"] == 0.1) for parameter in group["params"])


# ── timm's own groups are the oracle ──

TRANSFORMERS = {"vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "maxvit_tiny_rw_224": 224}
CONVOLUTIONS = {"test_resnet": 64, "mobilenetv2_100": 64, "convnext_atto": 64}
SIZES = TRANSFORMERS | CONVOLUTIONS


def on_paper(backbone: str) -> Network:
    """Return a network without memory for its weights: groups depend on names and shapes alone."""
    from landmarks.models.network import empty_network

    with torch.device("meta"):
        return empty_network(backbone, classes=3, image_size=SIZES[backbone])


def by_name(network: Network, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return peak and weight decay of each parameter."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(one)]: (group["peak"], group["weight_decay"]) for group in groups for one in group["params"]}
    assert set(found) == set(names.values())
    assert sum(len(group["params"]) for group in groups) == len(found)
    return found


@pytest.mark.parametrize("backbone", SIZES)
def test_layer_by_layer_the_groups_are_timm_s(backbone: str) -> None:
    network = on_paper(backbone)
    recipe = recipe_named("default", weight_decay=0.1, layer_decay=0.7, backbone_learning_rate=1e-4)
    oracle = param_groups_layer_decay(
        network.backbone,
        weight_decay=0.1,
        no_weight_decay_list=getattr(network.backbone, "no_weight_decay", set)(),
        layer_decay=0.7,
    )
    expected = by_name_of_backbone(network, oracle, 1e-4)
    found = by_name(network, parameter_groups(network, recipe))
    assert {name: found[name] for name in expected} == {name: pytest.approx(two) for name, two in expected.items()}
    assert max(peak for peak, _ in expected.values()) == pytest.approx(1e-4)  # the last layer's


def by_name_of_backbone(network: Network, groups: list[dict[str, Any]], peak: float) -> dict[str, tuple[float, float]]:
    names = {id(parameter): f"backbone.{name}" for name, parameter in network.backbone.named_parameters()}
    return {
        names[id(one)]: (peak * group["lr_scale"], group["weight_decay"]) for group in groups for one in group["params"]
    }


@pytest.mark.parametrize("backbone", SIZES)
def test_from_scratch_the_same_weights_decay(backbone: str) -> None:
    network = on_paper(backbone)
    skipped = getattr(network.backbone, "no_weight_decay", set)()
    oracle = param_groups_weight_decay(network, 0.1, no_weight_decay_list={f"backbone.{name}" for name in skipped})
    decays = {id(parameter): group["weight_decay"] for group in oracle for parameter in group["params"]}
    for group in parameter_groups(network, recipe_named("default", weights="none", weight_decay=0.1)):
        assert {decays[id(parameter)] for parameter in group["params"]} == {group["weight_decay"]}


@pytest.mark.parametrize("weights", ["imagenet", "none"])
@pytest.mark.parametrize(
    ("backbone", "spared"),
    [
        ("vit_tiny_patch16_224", ["backbone.cls_token", "backbone.pos_embed"]),
        (
            "swin_tiny_patch4_window7_224",
            [f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(4)],
        ),
    ],
)
def test_tokens_and_positions_do_not_decay(backbone: str, spared: list[str], weights: str) -> None:
    network = on_paper(backbone)
    found = by_name(network, parameter_groups(network, recipe_named("default", weights=weights, weight_decay=0.1)))
    assert [found[name][1] for name in spared] == [0.0] * len(spared)
    parameters = dict(network.named_parameters())
    matrices = [name for name in found if name.endswith(".weight") and parameters[name].ndim > 1]
    assert {found[name][1] for name in matrices} == {0.1}


@pytest.mark.parametrize("weights", ["imagenet", "none"])
@pytest.mark.parametrize("backbone", CONVOLUTIONS)
def test_convolutions_keep_the_groups_they_had(backbone: str, weights: str) -> None:
    network = on_paper(backbone)
    recipe = recipe_named("default", weights=weights, weight_decay=0.1)
    groups = parameter_groups(network, recipe)
    assert all((one.ndim > 1) == (group["weight_decay"] == 0.1) for group in groups for one in group["params"])
    if weights == "none":
        assert {group["peak"] for group in groups} == {recipe.learning_rate}


def test_moments_of_another_order_of_weights_are_refused(tmp_path: Path) -> None:
    network = build_network("test_vit", classes=3, weights="none", image_size=160)
    optimizer = make_optimizer(network, recipe_named("default"))
    network(torch.zeros(2, 3, 160, 160)).sum().backward()
    optimizer.step()
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run", tensors_of(network, optimizer, {}), State(8))
    assert load_checkpoint(tmp_path / "run", network, make_optimizer(network, recipe_named("default"))) is not None
    other = torch.optim.AdamW(list(reversed(list(network.parameters()))))
    with pytest.raises(LandmarksError, match="start this training anew"):
        load_checkpoint(tmp_path / "run", network, other)
