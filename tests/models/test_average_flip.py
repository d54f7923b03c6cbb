"""Features averaged over an image and its flip: neither tells which of the two it was, in no answer and no heat map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from landmarks.models.catalogue import gmacs
from landmarks.models.gradcam import ANALYTIC, GRADIENT, explain_images, scale_maps
from landmarks.models.network import Network, build_network, load_network, save_network
from landmarks.models.rewriting import fold_batch_norm

JOINED = "test_resnet+test_efficientnet"


def build(name: str, size: int = 96, **settings: object) -> Network:
    settings = {"classes": 3, "weights": "none", "head": "linear", "average_flip": True, **settings}
    return build_network(name, image_size=size, **settings).eval()  # type: ignore[arg-type]


def images_of(network: Network) -> torch.Tensor:
    size = network.preprocessing.image_size
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "size"), [("test_resnet", 96), ("test_vit", 160), (JOINED, 96)])
@torch.no_grad()
def test_features_are_the_means_of_an_image_and_its_flip(name: str, size: int) -> None:
    network, single = build(name, size), build(name, size, average_flip=False)
    images = images_of(network)
    expected = (single.features(images) + single.features(images.flip(3))) / 2
    assert torch.allclose(network.features(images), expected, atol=1e-5)
    assert torch.allclose(network.maps_and_features(images)[1], expected, atol=1e-5)
    assert not torch.allclose(single.features(images), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "size", "head", "method"),
    [
        ("test_resnet", 96, "mlp", ANALYTIC),
        (JOINED, 96, "linear", ANALYTIC),
        ("test_vit", 160, "linear", GRADIENT),
    ],
)
def test_a_flipped_image_has_the_same_answers_and_the_flipped_heat_maps(
    name: str, size: int, head: str, method: str
) -> None:
    network = build(name, size, head=head)
    own, flipped = (explain_images(network, images) for images in (images_of(network), images_of(network).flip(3)))
    assert own.method == flipped.method == method
    assert torch.allclose(own.probabilities, flipped.probabilities, atol=1e-5) and own.labels.equal(flipped.labels)
    assert torch.allclose(scale_maps(own.maps), scale_maps(flipped.maps).flip(3), atol=1e-3)
    assert scale_maps(own.maps).amax() == 1  # something is warm


def test_heat_maps_by_the_formula_are_those_of_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("test_resnet")
    formula = explain_images(network, images_of(network))
    monkeypatch.setattr("landmarks.models.gradcam.has_head_gradient", lambda head: False)
    gradient = explain_images(network, images_of(network))
    assert (formula.method, gradient.method) == (ANALYTIC, GRADIENT)
    assert torch.allclose(formula.maps, gradient.maps, rtol=1e-4, atol=1e-8)


@torch.no_grad()
def test_training_sees_single_images_since_the_augmentation_flips_them() -> None:
    network, single = build("test_resnet").train(), build("test_resnet", average_flip=False).train()
    images = images_of(network)
    assert torch.equal(network.features(images), single.features(images))


@torch.no_grad()
def test_it_is_read_back_and_kept_by_a_folded_copy(tmp_path: Path) -> None:
    network = build("test_resnet")
    save_network(network, tmp_path)
    again, images = load_network(tmp_path), images_of(network)
    assert again.preprocessing == network.preprocessing and again.preprocessing.average_flip
    folded = fold_batch_norm(again)
    assert folded is not again and torch.allclose(folded.features(images), network.features(images), atol=1e-4)
    save_network(build("test_resnet", average_flip=False), tmp_path)
    assert not load_network(tmp_path).preprocessing.average_flip


def test_it_costs_a_second_pass_of_the_backbone() -> None:
    single = build("test_resnet", average_flip=False)
    assert gmacs(build("test_resnet")) == pytest.approx(2 * gmacs(single), rel=0.01)


def test_preprocessing_without_it_is_recorded_as_before_there_was_the_choice() -> None:
    single = build("test_resnet", average_flip=False).preprocessing
    assert "average_flip" not in single.record() and replace(single, average_flip=True).record()["average_flip"] is True
