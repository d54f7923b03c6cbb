"""The formula against automatic differentiation, finite differences, and the grad-cam library."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landmarks.models.backbones import is_mean_of_maps
from landmarks.models.gradcam import (
    ANALYTIC,
    GRADIENT,
    channel_weights,
    explain_images,
    has_head_gradient,
    head_gradient,
    maps_by_gradient,
    scale_maps,
    weighted_maps,
)
from landmarks.models.heads import Head, build_head
from landmarks.models.network import Network, build_network
from landmarks.support.errors import LandmarksError

HEADS = ["mlp", "linear", "arcface", "three centres", "no embedding"]
SETTINGS = {"three centres": {"sub_centres": 3, "embedding": 5}, "no embedding": {"embedding": 0}}


def head_of(name: str, features: int, classes: int) -> Head:
    known = "arcface" if name in SETTINGS else name
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return build_head(known, features, classes, SETTINGS.get(name)).double()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", HEADS)
def test_weights_of_every_class_equal_finite_differences_of_the_maps(name):
    head = head_of(name, features=6, classes=4)
    maps = random(2, 6, 3, 5).abs()
    step = 1e-6

    def logits(maps: Tensor) -> Tensor:
        with torch.no_grad():
            return head(maps.mean((2, 3)))

    expected = torch.zeros(2, 4, 6, dtype=torch.float64)
    for channel in range(6):
        slopes = []
        for row in range(3):
            for column in range(5):
                up, down = maps.clone(), maps.clone()
                up[:, channel, row, column] += step
                down[:, channel, row, column] -= step
                slopes.append((logits(up) - logits(down)) / (2 * step))
        expected[:, :, channel] = torch.stack(slopes).mean(0)
    with torch.no_grad():
        found = channel_weights(head, maps, maps.mean((2, 3)))
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", HEADS)
def test_the_heads_gradient_is_the_one_autograd_finds_for_chosen_classes(name):
    head = head_of(name, features=8, classes=5)
    features = random(3, 8).requires_grad_()
    labels = torch.tensor([[4, 0], [1, 1], [2, 3]])
    logits = head(features)
    expected = torch.stack(
        [
            torch.autograd.grad(logits.gather(1, labels[:, [each]]).sum(), features, retain_graph=True)[0]
            for each in range(2)
        ],
        dim=1,
    )
    torch.testing.assert_close(head_gradient(head, features, labels), expected)
    torch.testing.assert_close(
        head_gradient(head, features).expand(3, -1, -1),
        torch.autograd.functional.jacobian(head, features).diagonal(dim1=0, dim2=2).permute(2, 0, 1),
    )


def test_a_head_without_a_formula_says_so():
    class Other(torch.nn.Module):
        pass

    assert not has_head_gradient(Other())
    with pytest.raises(TypeError, match="no formula for the gradient of Other"):
        head_gradient(Other(), torch.zeros(1, 2))


def test_averages_are_told_from_other_poolings():
    maps = torch.rand(2, 3, 4, 4)
    assert is_mean_of_maps(maps, maps.mean((2, 3)))
    assert not is_mean_of_maps(maps, maps.amax((2, 3)))
    assert not is_mean_of_maps(maps, torch.rand(2, 5))


def test_what_speaks_against_a_class_is_cold():
    maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    weights = torch.tensor([[[2.0, -3.0]]])
    assert weighted_maps(maps, weights).tolist() == [[[[2.0, 0.0]]]]


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2_100", "inception_v3"])
def test_maps_equal_those_of_the_grad_cam_library_before_it_rescales_them(backbone, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    size = 96
    network = build_network(backbone, classes=7, weights="none", image_size=size).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[3, 5], [0, 6]])
    with torch.no_grad():
        maps, features = network.maps_and_features(images)
        assert is_mean_of_maps(maps, features)
        found = weighted_maps(maps, channel_weights(network.head, maps, features, labels))
    for answer in range(2):
        with GradCAM(_MapsThenAnswer(network), [_MapsThenAnswer.layer(network)]) as library:
            monkeypatch.setattr("pytorch_grad_cam.base_cam.scale_cam_image", lambda cam, size=None: cam)
            targets = [ClassifierOutputTarget(label) for label in labels[:, answer].tolist()]
            theirs = library(images, targets=targets)
        ours = found[:, answer].numpy()
        scale = max(1.0, float(np.abs(theirs).max()))
        assert np.abs(ours - theirs).max() < 1e-4 * scale
        assert ours.max() > 0


class _MapsThenAnswer(torch.nn.Module):
    """The network with a place between backbone and pooling for the library to hook."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        if not hasattr(network, "seam"):
            network.seam = torch.nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.network.seam(self.network.backbone.forward_features(images))
        return self.network.classify(self.network.backbone.forward_head(maps, pre_logits=True))

    @staticmethod
    def layer(network: Network) -> torch.nn.Module:
        return network.seam


# The fallback against the formula, against the grad-cam library on a transformer, and on every kind of network.


def images_of(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def test_the_fallback_and_the_formula_draw_the_same_maps():
    network = build_network("resnet18", classes=6, weights="none", image_size=64).eval()
    images, labels = images_of(64), torch.tensor([[0, 1, 2, 3], [5, 4, 3, 2]])
    with torch.no_grad():
        maps, features = network.maps_and_features(images)
        exact = weighted_maps(maps, channel_weights(network.head, maps, features, labels))
    torch.testing.assert_close(maps_by_gradient(network, images, labels), exact, rtol=1e-4, atol=1e-6)


def test_a_transformers_maps_equal_those_of_the_grad_cam_library(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network = build_network("vit_tiny_patch16_224", classes=6, weights="none", image_size=64).eval()
    images, labels = images_of(64), torch.tensor([[1], [4]])
    ours = maps_by_gradient(network, images, labels)[:, 0].numpy()

    monkeypatch.setattr("pytorch_grad_cam.base_cam.scale_cam_image", lambda cam, size=None: cam)
    layer = network.backbone.blocks[-1].norm1
    with GradCAM(network, [layer], reshape_transform=network.as_maps) as library:
        theirs = library(images, targets=[ClassifierOutputTarget(label) for label in labels[:, 0].tolist()])
    assert ours.shape == (2, 4, 4)
    assert np.abs(ours - theirs).max() < 1e-4 * max(1.0, np.abs(theirs).max())


CASES = [
    ("resnet18", "linear", 64, ANALYTIC),
    ("resnet18", "mlp", 64, ANALYTIC),
    ("baseline", "linear", 32, GRADIENT),
    ("mobilenetv3_small_050", "mlp", 64, GRADIENT),
    ("convnext_atto", "mlp", 64, GRADIENT),
    ("vit_tiny_patch16_224", "mlp", 64, GRADIENT),
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


def test_the_backbone_is_computed_once_for_all_four_answers():
    network = build_network("resnet18", classes=6, weights="none", image_size=64).eval()
    calls = []
    network.backbone.conv1.register_forward_hook(lambda *_: calls.append(1))
    explain_images(network, images_of(64))
    assert len(calls) == 1


def test_a_network_of_two_landmarks_has_two_answers_and_equal_ones_stand_in_order():
    network = build_network("resnet18", classes=2, weights="none", image_size=64).eval()
    nn.init.zeros_(network.head.output.weight)
    explained = explain_images(network, images_of(64))
    assert explained.labels.tolist() == [[0, 1], [0, 1]]
    assert explained.probabilities.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert scale_maps(explained.maps).max() == 0


def test_a_temperature_changes_probabilities_and_neither_answers_nor_maps():
    network = build_network("resnet18", classes=5, weights="none", image_size=64).eval()
    cold, warm = (explain_images(network, images_of(64), temperature=each) for each in (1.0, 4.0))
    assert torch.equal(cold.labels, warm.labels) and torch.equal(cold.maps, warm.maps)
    assert (warm.probabilities.amax(1) < cold.probabilities.amax(1)).all()


def test_maps_are_scaled_to_one():
    maps = torch.tensor([[[0.0, 2.0], [1.0, 4.0]]])
    assert scale_maps(maps).tolist() == [[[0.0, 0.5], [0.25, 1.0]]]


def test_a_class_token_without_a_known_last_attention_is_told():
    network = build_network("vit_tiny_patch16_224", classes=3, weights="none", image_size=32).eval()
    network.backbone.blocks[-1].norm1 = None
    network.backbone.forward_features = lambda images: torch.zeros(len(images), 5, 192)
    with pytest.raises(LandmarksError, match="no heat maps for vit_tiny_patch16_224"):
        maps_by_gradient(network, images_of(32), torch.zeros(2, 1, dtype=torch.long))
