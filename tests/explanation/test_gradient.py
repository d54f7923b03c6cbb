"""The fallback against the formula, against the grad-cam library on a transformer, and on every kind of network."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from landmarks.explanation.analytic import channel_weights, weighted
from landmarks.explanation.gradient import heat_by_gradient
from landmarks.explanation.heat import ANALYTIC, GRADIENT, explain_images, scaled
from landmarks.networks.network import build_network
from landmarks.support.errors import LandmarksError


def images_of(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def test_the_fallback_and_the_formula_draw_the_same_maps():
    network = build_network("resnet18", classes=6, weights="none", image_size=64).eval()
    images, labels = images_of(64), torch.tensor([[0, 1, 2, 3], [5, 4, 3, 2]])
    with torch.no_grad():
        maps, features = network.maps_and_features(images)
        exact = weighted(maps, channel_weights(network.head, maps, features, labels))
    torch.testing.assert_close(heat_by_gradient(network, images, labels), exact, rtol=1e-4, atol=1e-6)


def test_a_transformers_maps_equal_those_of_the_grad_cam_library(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network = build_network("vit_tiny_patch16_224", classes=6, weights="none", image_size=64).eval()
    images, labels = images_of(64), torch.tensor([[1], [4]])
    ours = heat_by_gradient(network, images, labels)[:, 0].numpy()

    monkeypatch.setattr("pytorch_grad_cam.base_cam.scale_cam_image", lambda cam, size=None: cam)
    layer = network.trunk.blocks[-1].norm1
    with GradCAM(network, [layer], reshape_transform=network.as_maps) as library:
        theirs = library(images, targets=[ClassifierOutputTarget(label) for label in labels[:, 0].tolist()])
    assert ours.shape == (2, 4, 4)
    assert np.abs(ours - theirs).max() < 1e-4 * max(1.0, np.abs(theirs).max())


CASES = [
    ("resnet18", "linear", 64, ANALYTIC),
    ("resnet18", "study", 64, ANALYTIC),
    ("baseline", "linear", 32, GRADIENT),
    ("mobilenetv3_small_050", "study", 64, GRADIENT),
    ("convnext_atto", "study", 64, GRADIENT),
    ("vit_tiny_patch16_224", "study", 64, GRADIENT),
]


@pytest.mark.parametrize("backbone, head, size, method", CASES)
def test_every_kind_of_network_is_explained_for_its_four_best_answers(backbone, head, size, method):
    network = build_network(backbone, classes=6, head=head, weights="none", image_size=size).eval()
    images = images_of(size)
    explained = explain_images(network, images)
    assert explained.method == method
    assert explained.maps.shape[:2] == explained.labels.shape == (2, 4)
    assert (explained.maps >= 0).all() and not explained.maps.requires_grad
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    with torch.no_grad():
        logits = network(images)
    torch.testing.assert_close(explained.probabilities, logits.softmax(1))
    assert torch.equal(explained.labels, logits.topk(4).indices)


def test_the_trunk_is_computed_once_for_all_four_answers():
    network = build_network("resnet18", classes=6, weights="none", image_size=64).eval()
    calls = []
    network.trunk.conv1.register_forward_hook(lambda *_: calls.append(1))
    explain_images(network, images_of(64))
    assert len(calls) == 1


def test_a_network_of_two_landmarks_has_two_answers_and_equal_ones_stand_in_order():
    network = build_network("resnet18", classes=2, weights="none", image_size=64).eval()
    nn.init.zeros_(network.head.output.weight)
    explained = explain_images(network, images_of(64))
    assert explained.labels.tolist() == [[0, 1], [0, 1]]
    assert explained.probabilities.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert scaled(explained.maps).max() == 0


def test_a_temperature_changes_probabilities_and_neither_answers_nor_maps():
    network = build_network("resnet18", classes=5, weights="none", image_size=64).eval()
    cold, warm = (explain_images(network, images_of(64), temperature=each) for each in (1.0, 4.0))
    assert torch.equal(cold.labels, warm.labels) and torch.equal(cold.maps, warm.maps)
    assert (warm.probabilities.amax(1) < cold.probabilities.amax(1)).all()


def test_maps_are_scaled_to_one():
    maps = torch.tensor([[[0.0, 2.0], [1.0, 4.0]]])
    assert scaled(maps).tolist() == [[[0.0, 0.5], [0.25, 1.0]]]


def test_a_class_token_without_a_known_last_attention_is_told():
    network = build_network("vit_tiny_patch16_224", classes=3, weights="none", image_size=32).eval()
    network.trunk.blocks[-1].norm1 = None
    network.trunk.forward_features = lambda images: torch.zeros(len(images), 5, 192)
    with pytest.raises(LandmarksError, match="no heat maps for vit_tiny_patch16_224"):
        heat_by_gradient(network, images_of(32), torch.zeros(2, 1, dtype=torch.long))
