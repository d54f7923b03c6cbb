"""The table of networks."""

from __future__ import annotations

import json

import pytest
import torch

from landmarks.networks.catalogue import COLUMNS, gflops, networks
from landmarks.networks.network import build_network
from landmarks.support.errors import UsageError


def test_one_network_is_one_row_with_its_size_its_cost_and_its_licence():
    table = networks("resnet50", classes=100)
    assert table.columns == list(COLUMNS)
    row = table.row(0, named=True)
    assert row["parameters"] == 24_620_500 + 80 * 513
    assert row["image_size"] == 224
    assert row["license"] == "apache-2.0"
    assert row["gflops"] == pytest.approx(2 * 4.09, rel=0.01)  # the paper prints 3.8e9 multiply-adds, timm 4.09


def test_a_smaller_photograph_costs_less_and_changes_no_parameter():
    own, small = networks("resnet18"), networks("resnet18", image_size=112)
    assert small["parameters"].to_list() == own["parameters"].to_list()
    assert small["gflops"][0] < own["gflops"][0] / 3.5


def test_operations_of_the_baseline_agree_with_a_count_by_hand():
    first = 112 * 112 * 32 * 3 * 3 * 3
    second = 56 * 56 * 64 * 32 * 3 * 3
    dense = 28 * 28 * 64 * 20
    assert gflops(build_network("baseline", classes=20, weights="none")) == pytest.approx(
        2 * (first + second + dense) / 1e9
    )


def test_counting_operations_leaves_the_mode_as_it_was():
    network = build_network("baseline", classes=2, weights="none", image_size=32).train()
    gflops(network)
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


def test_the_verb_prints_json_for_programs(capsys: pytest.CaptureFixture[str]):
    from landmarks.cli.networks import networks as verb

    verb("baseline", json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["network"] == "baseline" and row["timm"] is None


def test_the_verb_prints_a_table(capsys: pytest.CaptureFixture[str]):
    from landmarks.cli.networks import networks as verb

    verb("baseline", json=False)
    assert "1,022,932" in capsys.readouterr().out
