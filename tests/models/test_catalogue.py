"""The table of networks: what they cost, also counted by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from landmarks.models.catalogue import NETWORK_COLUMNS, gmacs, networks
from landmarks.models.heads import LinearHead
from landmarks.models.network import Network, build_network, empty_network
from landmarks.models.preprocessing import Preprocessing
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.training.recipe import recipe_named


def test_one_network_is_one_row_with_its_size_its_cost_and_its_licence():
    table = networks("resnet50", classes=100)
    assert table.columns == list(NETWORK_COLUMNS)
    row = table.row(0, named=True)
    assert row["parameters"] == 24_620_500 + 80 * 513
    assert row["image_size"] == 224
    assert row["license"] == "apache-2.0"
    assert row["gmacs"] == pytest.approx(4.09, rel=0.01)  # what timm's tables of results print


def test_a_smaller_image_costs_less_and_changes_no_parameter():
    own, small = networks("resnet18"), networks("resnet18", image_size=112)
    assert small["parameters"].to_list() == own["parameters"].to_list()
    assert small["gmacs"][0] < own["gmacs"][0] / 3.5


@pytest.mark.parametrize("size", [-1, 0, 31, 8193])
@pytest.mark.parametrize("name", ["resnet18", "resnet18*", None])
def test_a_size_that_no_training_takes_is_refused_with_the_recipes_limits(name: str | None, size: int):
    with pytest.raises(UsageError) as of_recipe:
        recipe_named("default", image_size=size)
    limits = str(of_recipe.value).partition("image_size ")[2].removesuffix(", or null")
    assert limits == f"cannot be used; received {size}; expected a whole number (32 or more, at most 8,192)"
    with pytest.raises(UsageError) as raised:
        networks(name, image_size=size)
    assert str(raised.value) == f"the image size {limits}"


@pytest.mark.parametrize("wrong", [{"head": "nope"}, {"classes": 0}])
def test_a_head_that_cannot_be_is_told_of_a_pattern_too(wrong: dict[str, Any]):
    with pytest.raises(UsageError) as of_one:
        networks("resnet18", **wrong)
    with pytest.raises(UsageError) as of_pattern:
        networks("resnet18*", **wrong)
    assert str(of_pattern.value) == str(of_one.value)


def test_multiply_adds_of_one_convolution_and_one_dense_layer_agree_with_a_count_by_hand():
    network = Network("two layers", OneConvolution(), "linear", LinearHead(5, 7), Preprocessing(16, (0,) * 3, (1,) * 3))
    convolution = 8 * 8 * 5 * (3 * 3 * 3)  # at each of 8 × 8 positions 5 sums of 27 products
    dense = 5 * 7
    assert gmacs(network) == pytest.approx((convolution + dense) / 1e9)


class OneConvolution(nn.Module):
    num_features = 5

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward_features(self, images):
        return self.layer(images)

    def forward_head(self, maps, pre_logits):
        return maps.mean((2, 3))


def test_multiply_adds_of_the_baseline_agree_with_a_count_by_hand():
    first = 112 * 112 * 32 * 3 * 3 * 3
    second = 56 * 56 * 64 * 32 * 3 * 3
    dense = 28 * 28 * 64 * 20
    assert gmacs(build_network("baseline", classes=20, weights="none")) == pytest.approx((first + second + dense) / 1e9)


def test_a_transformers_attention_is_counted_and_counts_the_same_with_and_without_memory():
    tokens, width, blocks = 16 + 1, 192, 12
    products = 3 * width * width + width * width + 2 * 4 * width * width  # a token's: query, key, value; output; MLP
    attention = 2 * tokens * tokens * width  # queries with keys, weights with values
    expected = (16 * 768 * width + blocks * (tokens * products + attention) + width * 20) / 1e9
    settings = {"classes": 20, "head": "linear", "image_size": 64}
    with torch.device("meta"):
        without_memory = empty_network("vit_tiny_patch16_224", **settings)
    assert gmacs(without_memory) == pytest.approx(expected)
    assert gmacs(empty_network("vit_tiny_patch16_224", **settings)) == pytest.approx(expected)


def test_counting_leaves_the_mode_as_it_was():
    network = build_network("baseline", classes=2, weights="none", image_size=32).train()
    gmacs(network)
    assert network.training


@pytest.mark.slow
def test_the_studys_seven_are_listed():
    table = networks()
    assert table["network"].to_list() == [
        "baseline",
        "resnet18",
        "resnet50",
        "xception",
        "inception_v3",
        "inception_resnet_v2",
        "nasnet_large",
    ]
    assert table["image_size"].to_list() == [112, 224, 224, 299, 299, 299, 331]


def test_nothing_is_allocated_for_a_large_transformer():
    row = networks("vit_giant_patch14_dinov2").row(0, named=True)
    assert row["parameters"] > 1_100_000_000
    assert torch.get_default_device().type == "cpu"


def test_an_unknown_name_is_refused_with_the_closest_one():
    with pytest.raises(UsageError, match=r'no network "resnet5O"; did you mean "resnet50"\?'):
        networks("resnet5O")


@pytest.mark.parametrize("name", ["mobilnet", "mobilenett", "MobileNet"])
def test_the_name_of_a_family_leads_to_its_list(name: str):
    with pytest.raises(UsageError, match=r'landmarks networks "mobilenet\*" lists those that begin so'):
        networks(name)


def test_a_pattern_lists_all_that_are_called_so():
    assert networks("resnet18*", image_size=64)["network"].to_list() == ["resnet18", "resnet18d"]
    with pytest.raises(UsageError, match='no network is called like "resnest18x'):
        networks("resnest18x*")


@pytest.mark.slow  # they are large
def test_a_network_without_features_is_left_out_of_a_pattern_and_refused_by_name(capsys: pytest.CaptureFixture[str]):
    assert "mobilenetv5_300m_enc" not in networks("mobilenetv5_300m*", image_size=64)["network"].to_list()
    assert "are left out" in capsys.readouterr().err
    with pytest.raises(LandmarksError, match="mobilenetv5_300m_enc"):
        networks("mobilenetv5_300m_enc", image_size=64)


def test_the_verb_prints_json_for_programs(capsys: pytest.CaptureFixture[str]):
    from landmarks.cli.training_verbs import networks as verb

    verb("baseline", json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["network"] == "baseline" and row["timm"] is None


def test_the_verb_prints_a_table(capsys: pytest.CaptureFixture[str]):
    from landmarks.cli.training_verbs import networks as verb

    verb("baseline", json=False)
    stdout = capsys.readouterr().out
    assert "1,022,932" in stdout
    assert "GMACs" in stdout and "multiply-adds" in stdout and "FLOP" not in stdout
