"""Counts against the ones Keras prints for the study's networks, every difference named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from landmarks.networks.heads import build_head
from landmarks.networks.network import empty_network
from landmarks.networks.parameters import Counts, count_parameters


def counts_of(backbone: str) -> Counts:
    with torch.device("meta"):
        return count_parameters(empty_network(backbone, classes=20))


KERAS = {"resnet50": (24_647_060, 53_120), "xception": (21_920_828, 54_528), "inception_v3": (22_862_132, 34_432)}


def test_resnet50_lacks_only_the_biases_that_keras_gives_its_convolutions():
    total, running = KERAS["resnet50"]
    with torch.device("meta"):
        network = empty_network("resnet50", classes=20)
    biases = sum(layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d))
    counts = count_parameters(network)
    assert biases == 26_560
    assert (counts.total, counts.non_trainable) == (total - biases, running)


def test_xception_has_exactly_the_parameters_it_has_in_keras():
    counts = counts_of("xception")
    assert (counts.total, counts.non_trainable) == KERAS["xception"]


def test_inception_v3_has_more_only_by_the_scales_of_its_normalisation_which_keras_leaves_out():
    total, running = KERAS["inception_v3"]
    with torch.device("meta"):
        network = empty_network("inception_v3", classes=20)
    scales = sum(layer.num_features for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    counts = count_parameters(network)
    assert scales == 17_216
    assert (counts.total, counts.non_trainable) == (total + scales, running)


def test_the_baseline_has_about_a_million_parameters():
    counts = counts_of("baseline")
    convolutions = 3 * 3 * 3 * 32 + 32 + 3 * 3 * 32 * 64 + 64
    assert (counts.total, counts.non_trainable) == (convolutions + 28 * 28 * 64 * 20 + 20, 0)
    assert counts.total == 1_022_932


@pytest.mark.parametrize("features, classes", [(7, 3), (2048, 20)])
def test_the_studys_head_is_dense_512_and_dense_n(features: int, classes: int):
    assert (
        count_parameters(build_head("study", features, classes)).total == features * 512 + 512 + 512 * classes + classes
    )


def test_running_statistics_are_counted_and_the_step_counter_is_not():
    assert count_parameters(nn.BatchNorm2d(5)) == Counts(trainable=10, non_trainable=10)


def test_a_frozen_layer_still_counts_as_trainable():
    layer = nn.Linear(3, 2).requires_grad_(False)
    assert count_parameters(layer) == Counts(trainable=8, non_trainable=0)
