"""Joined networks: each sees what it would see alone, none outweighs another, and all else goes on as ever."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn.functional import adaptive_avg_pool2d

from landmarks.models.backbones import JoinedBackbone, on_grid
from landmarks.models.catalogue import networks
from landmarks.models.gradcam import ANALYTIC, explain_images, maps_by_gradient, scale_maps
from landmarks.models.network import Network, build_network, load_network, save_network
from landmarks.models.rewriting import blocks, fold_batch_norm
from landmarks.models.weights import for_storage, set_epsilon
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.training.optimizer import parameter_groups
from landmarks.training.recipe import recipe_named

JOINED = "test_resnet+test_efficientnet"


def build(name: str = JOINED, **settings: object) -> Network:
    settings = {"classes": 3, "weights": "none", "image_size": 96, "head": "linear", **settings}
    return build_network(name, **settings).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def joined() -> Network:
    return build()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def normalised(pixels: torch.Tensor, network: Network) -> torch.Tensor:
    mean, std = (torch.tensor(of)[:, None, None] for of in (network.preprocessing.mean, network.preprocessing.std))
    return (pixels - mean) / std


@torch.no_grad()
def test_each_network_gives_the_features_it_gives_alone_but_for_a_factor(joined: Network, pixels: torch.Tensor) -> None:
    assert isinstance(joined.backbone, JoinedBackbone)
    features, start = joined.features(normalised(pixels, joined)), 0
    for name, part in zip(JOINED.split("+"), joined.backbone.parts, strict=True):
        alone = build(name)
        alone.backbone.load_state_dict(part.state_dict())
        own = alone.features(normalised(pixels, alone))
        joint = features[:, start : start + alone.width]
        factor = (joint * own).sum() / own.square().sum()
        assert torch.allclose(joint, factor * own, rtol=1e-4, atol=1e-5)
        assert 0.2 < joint.abs().mean() < 5  # none outweighs the others, whatever its own magnitude
        start += alone.width
    assert start == joined.width == features.shape[1]


@given(old=st.integers(1, 9), new=st.integers(1, 9))
def test_a_finer_or_coarser_grid_has_the_same_means_and_is_that_of_pooling_where_it_divides(old: int, new: int) -> None:
    maps = torch.rand(2, 3, old, old + 1, generator=torch.Generator().manual_seed(old))
    found = on_grid(maps, new, new + 1)
    assert found.shape == (2, 3, new, new + 1)
    assert torch.allclose(found.mean((2, 3)), maps.mean((2, 3)), atol=1e-6)
    square = maps[..., :old]
    if old % new == 0:
        assert torch.allclose(on_grid(square, new, new), adaptive_avg_pool2d(square, new), atol=1e-6)


def test_heat_maps_come_from_the_formula_and_are_those_of_the_gradient(joined: Network, pixels: torch.Tensor) -> None:
    images = normalised(pixels, joined)
    found = explain_images(joined, images, answers=2)
    assert found.method == ANALYTIC
    by_gradient = maps_by_gradient(joined, images, found.labels)
    assert torch.allclose(scale_maps(found.maps), scale_maps(by_gradient), atol=1e-4)


@torch.no_grad()
def test_a_saved_one_is_read_back_with_scales_and_epsilons(
    joined: Network, pixels: torch.Tensor, tmp_path: Path
) -> None:
    set_epsilon(joined.backbone, [1e-3, 2e-3])
    save_network(joined, tmp_path)
    again = load_network(tmp_path)
    images = normalised(pixels, joined)
    assert torch.equal(again(images), joined(images))
    assert torch.allclose(fold_batch_norm(joined).features(images), joined.features(images), rtol=1e-3, atol=1e-4)
    as_start = build(weights=tmp_path)
    assert json.loads((tmp_path / "model.json").read_text())["batch_norm_epsilon"] == [1e-3, 2e-3]
    for name, tensor in joined.backbone.parts.state_dict().items():
        assert torch.equal(as_start.backbone.parts.state_dict()[name], tensor)
    record = json.loads((tmp_path / "model.json").read_text())
    for wrong in ([1e-3], 1e-3, [1e-3, "x"], [[1e-3], 1e-3]):
        (tmp_path / "model.json").write_text(json.dumps(record | {"batch_norm_epsilon": wrong}))
        with pytest.raises(LandmarksError, match="impossible network"):
            load_network(tmp_path)
        with pytest.raises(LandmarksError, match="impossible network"):
            build(weights=tmp_path)


def test_weights_come_from_a_folder_of_files_that_are_called_like_the_networks(tmp_path: Path) -> None:
    for name in ("test_resnet", "legacy_xception"):
        save_file(for_storage(build(name).backbone.state_dict()), tmp_path / f"{name}.safetensors")
    joined = build("xception+test_resnet", weights=tmp_path, seed=5)
    alone = build("test_resnet", weights=tmp_path, seed=6)
    part = joined.backbone.parts[1].state_dict()  # type: ignore[union-attr,index]
    assert all(torch.equal(part[name], tensor) for name, tensor in alone.backbone.state_dict().items())
    words = "is no finished run, and holds no weights of test_efficientnet; expected test_efficientnet.*a folder with a"
    with pytest.raises(UsageError, match=words):
        build(weights=tmp_path)
    with pytest.raises(UsageError, match="a file holds the weights of one network"):
        build(weights=tmp_path / "test_resnet.safetensors")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test_resnet+test_vit", "test_vit cannot be joined.*not the means of its last maps"),
        ("test_resnet+baseline", "baseline"),
        ("test_resnet+", 'no network ""'),
        ("test_resnet+resnet81", 'no network "resnet81".*did you mean'),
    ],
)
def test_what_cannot_be_joined_is_named(name: str, words: str) -> None:
    with pytest.raises(LandmarksError, match=words):
        build(name, image_size=160)


def test_layers_learn_at_the_rates_that_they_have_in_each_network_alone() -> None:
    recipe = recipe_named("default", backbone=JOINED, layer_decay=0.5)
    names = [JOINED, *JOINED.split("+")]
    peaks = {name: {group["peak"] for group in parameter_groups(build(name), recipe)} for name in names}
    assert peaks[JOINED] == peaks[names[1]] | peaks[names[2]] and len(peaks[JOINED]) > 3
    number = {name: sum(1 for _ in blocks(build(name).backbone)) for name in names}
    assert number[JOINED] == sum(number[name] for name in names[1:])


def test_the_catalogue_adds_up_what_joined_networks_cost() -> None:
    table = networks(JOINED, classes=3, head="linear", image_size=96)
    alone = [networks(name, classes=3, head="linear", image_size=96) for name in JOINED.split("+")]
    assert np.isclose(table["gmacs"][0], sum(one["gmacs"][0] for one in alone), atol=0.002)
    assert table["parameters"][0] == sum(one["parameters"][0] for one in alone) - 3  # one bias instead of two
    assert table["timm"][0] == JOINED
