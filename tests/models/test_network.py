"""Networks: built, run, written and read back, and their parameters counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from landmarks.models.heads import build_head
from landmarks.models.network import (
    Counts,
    build_network,
    count_parameters,
    empty_network,
    has_maps,
    load_network,
    save_network,
)
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import read_record

CASES = [
    # backbone, side, maps, length of the features
    ("baseline", 32, (64, 28, 28), 50_176),
    ("resnet18", 64, (512, 2, 2), 512),
    ("mobilenetv2_100", 64, (1280, 2, 2), 1280),
    ("mobilenetv3_small_050", 64, (288, 2, 2), 1024),
    ("convnext_atto", 64, (320, 2, 2), 320),
    ("vit_tiny_patch16_224", 64, (192, 4, 4), 192),
    ("deit_tiny_distilled_patch16_224", 64, (192, 4, 4), 192),
    ("swin_tiny_patch4_window7_224", 224, (768, 7, 7), 768),
]


@pytest.mark.parametrize("backbone, side, maps, width", CASES)
def test_every_kind_of_network_gives_maps_features_and_logits(backbone, side, maps, width):
    network = build_network(backbone, classes=5, weights="none", image_size=side).eval()
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, features = network.maps_and_features(images)
        assert found.shape == (2, *maps)
        assert features.shape == (2, width) == (2, network.width)
        assert network(images).shape == (2, 5)
        assert torch.equal(network(images), network.classify(features))


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2_100"])
def test_pooled_features_are_the_averages_of_the_maps(backbone):
    network = build_network(backbone, classes=2, weights="none", image_size=64).eval()
    with torch.no_grad():
        maps, features = network.maps_and_features(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(maps.mean((2, 3)), features)


def test_the_same_seed_draws_the_same_network_and_leaves_torchs_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = build_network("baseline", classes=3, weights="none", seed=1).state_dict()
    second = build_network("baseline", classes=3, weights="none", seed=1).state_dict()
    other = build_network("baseline", classes=3, weights="none", seed=2).state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.output.weight"], other["head.output.weight"])


@pytest.mark.parametrize("backbone, head", [("baseline", "mlp"), ("resnet18", "mlp"), ("resnet18", "linear")])
def test_a_network_is_read_back_as_it_was_written(tmp_path: Path, backbone, head):
    network = build_network(backbone, classes=4, head=head, weights="none", image_size=64).eval()
    save_network(network, tmp_path, temperature=1.5)
    again = load_network(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(images), again(images))
    assert (again.backbone_name, again.head_name, again.preprocessing) == (
        network.backbone_name,
        network.head_name,
        network.preprocessing,
    )
    record = read_record(tmp_path / "model.json")
    assert record["temperature"] == 1.5
    assert record["parameters"] == record["trainable"] + record["non_trainable"]
    assert not again.training


def test_a_network_that_uses_one_layer_in_several_places_is_read_back_as_it_was_written(tmp_path: Path):
    network = build_network("coat_lite_tiny", classes=4, weights="none", image_size=32).eval()
    save_network(network, tmp_path)
    again = load_network(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), again(images))


def test_the_baseline_keeps_its_dense_softmax():
    assert build_network("baseline", classes=4, weights="none").head_name == "linear"


def test_weights_that_do_not_belong_to_the_record_are_refused(tmp_path: Path):
    save_network(build_network("baseline", classes=4, weights="none"), tmp_path / "four")
    save_network(build_network("baseline", classes=5, weights="none"), tmp_path / "five")
    (tmp_path / "four" / "model.safetensors").replace(tmp_path / "five" / "model.safetensors")
    with pytest.raises(LandmarksError, match=r"is not the network of model\.json"):
        load_network(tmp_path / "five")


@pytest.mark.parametrize(
    "backbone, settings, message",
    [
        ("resnet5O", {}, r'no network "resnet5O"; did you mean "resnet50"\? \(landmarks networks "resnet\*"'),
        ("resnet50.tv_in1", {}, r'no weights "tv_in1" of the network resnet50; .*did you mean "tv_in1k"\?'),
        ("resnet18", {"head": "mlpp"}, r'no head "mlpp"; .*did you mean "mlp"\?'),
        ("resnet18", {"classes": 0}, "at least one landmark; received 0 landmarks"),
        ("resnet18", {"image_size": 0}, "the image size must be positive; received 0"),
        (
            "inception_v3",
            {"image_size": 32},
            "inception_v3 cannot take images of 32 pixels .*; it was made for 299",
        ),
        ("vit_tiny_patch16_224", {"image_size": 8}, "cannot take images of 8 pixels"),
        ("resnet18", {"head": "mlp", "head_settings": {"centres": 3}}, 'the head "mlp" cannot be made with'),
    ],
)
def test_impossible_networks_are_refused_in_one_line(backbone, settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        build_network(backbone, **{"classes": 3, "weights": "none", **settings})
    assert "\n" not in str(caught.value)


def test_a_network_that_fails_at_its_own_size_does_not_blame_the_size(monkeypatch):
    monkeypatch.setattr("timm.models.ResNet.forward_head", lambda *_, **__: torch.zeros(1, 7))
    with pytest.raises(LandmarksError, match=r"resnet18 gives no features .* \(1, 7\), not \(1, 512\)") as caught:
        build_network("resnet18", classes=3, weights="none")
    assert not isinstance(caught.value, UsageError) and "pixels" not in str(caught.value)


def test_a_network_that_timm_cannot_build_is_refused_in_one_line(monkeypatch):
    def create(*_, **__):
        raise TypeError("no such thing\nat all")

    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(LandmarksError, match=r"resnet18 gives no features .*\(no such thing\); name another network"):
        build_network("resnet18", classes=3, weights="none")


def test_features_are_pooled_without_making_maps(monkeypatch):
    network = build_network("resnet18", classes=3, weights="none", image_size=32).eval()
    monkeypatch.setattr(type(network), "as_maps", None)
    with torch.no_grad():
        assert network.features(torch.zeros(1, 3, 32, 32)).shape == (1, 512)
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize("backbone, side, maps", [("resnet18", 32, True), ("coat_lite_tiny", 32, False)])
def test_whether_a_network_has_maps_is_seen_and_its_mode_kept(backbone, side, maps):
    network = build_network(backbone, classes=3, weights="none", image_size=side)
    assert network.training and has_maps(network) == maps and network.training
    if not maps:
        with pytest.raises(LandmarksError, match=r"no maps to draw .*tokens are no square of positions") as caught:
            network.maps(torch.zeros(1, 3, side, side))
        assert "\n" not in str(caught.value)


def test_preprocessing_is_what_timm_says_of_the_weights():
    network = build_network("resnet50", classes=2, weights="none")
    assert network.preprocessing.record() == {
        "image_size": 224,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop": 0.95,
    }


def test_a_head_alone_trains_to_separate_two_clouds():
    network = build_network("resnet18", classes=2, weights="none")
    features = torch.cat([torch.randn(50, 512) + 1, torch.randn(50, 512) - 1])
    labels = torch.arange(2).repeat_interleave(50)
    optimizer = torch.optim.SGD(network.head.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        network.head.loss(features, labels, label_smoothing=0.1).backward()
        optimizer.step()
    assert (network.classify(features).argmax(1) == labels).all()
    assert isinstance(network.head, nn.Module)


# ── Counts against the ones Keras prints for the study's networks, every difference named ───────────────────────────


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
        count_parameters(build_head("mlp", features, classes)).total == features * 512 + 512 + 512 * classes + classes
    )


def test_running_statistics_are_counted_and_the_step_counter_is_not():
    assert count_parameters(nn.BatchNorm2d(5)) == Counts(trainable=10, non_trainable=10)


def test_a_frozen_layer_still_counts_as_trainable():
    layer = nn.Linear(3, 2).requires_grad_(False)
    assert count_parameters(layer) == Counts(trainable=8, non_trainable=0)
