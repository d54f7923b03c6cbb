"""Loss and gradients in chunks against the dense formula, left to automatic differentiation."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from landmarks.models.heads import (
    ArcFaceHead,
    Margin,
    Shares,
    build_head,
    margin_cross_entropy,
)


def dense(features: Tensor, centres: Tensor, labels: Tensor, margin: Margin) -> Tensor:
    """The formula of the papers, whole matrices at once."""
    unit, directions = F.normalize(features, dim=1), F.normalize(centres, dim=2)
    cosine = torch.einsum("nd,kjd->nkj", unit, directions).amax(2)
    own = cosine.gather(1, labels[:, None])[:, 0].clamp(-1 + 1e-12, 1 - 1e-12)
    angle = margin.angles[labels]
    turned = torch.cos(torch.acos(own) + angle)
    own = torch.where(torch.acos(own) + angle >= math.pi, own - angle * torch.sin(angle), turned)
    logits = margin.scale * cosine.scatter(1, labels[:, None], own[:, None])
    return F.cross_entropy(logits, labels, weight=margin.class_weights, label_smoothing=margin.label_smoothing)


def example(classes: int, several: int, images: int, width: int, kind: torch.dtype = torch.float64):
    draw = torch.Generator().manual_seed(classes + several)
    features = torch.randn(images, width, generator=draw, dtype=kind)
    centres = torch.randn(classes, several, width, generator=draw, dtype=kind)
    labels = torch.randint(0, classes, (images,), generator=draw)
    return features, centres, labels, torch.rand(classes, generator=draw, dtype=kind)


def both(function, features: Tensor, centres: Tensor, labels: Tensor, margin: Margin) -> tuple[Tensor, Tensor, Tensor]:
    features, centres = features.clone().requires_grad_(), centres.clone().requires_grad_()
    loss = function(features, centres, labels, margin)
    loss.backward()
    return loss.detach(), features.grad, centres.grad


SETTINGS = [
    {},
    {"label_smoothing": 0.1},
    {"class_weights": True},
    {"class_weights": True, "label_smoothing": 0.2},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_chunks_of_any_size_give_the_dense_loss_and_gradients(settings, several, chunk):
    features, centres, labels, angles = example(50, several, 20, 8)
    weights = torch.linspace(0.5, 2, 50, dtype=torch.float64) if settings.get("class_weights") else None
    margin = Margin(16.0, angles, settings.get("label_smoothing", 0.0), weights, chunk)
    found = both(margin_cross_entropy, features, centres, labels, margin)
    for ours, theirs in zip(found, both(dense, features, centres, labels, margin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("several", [1, 3])
def test_classes_divided_among_three_give_the_dense_loss_and_gradients(settings, several):
    features, centres, labels, angles = example(50, several, 20, 8)
    weights = torch.linspace(0.5, 2, 50, dtype=torch.float64) if settings.get("class_weights") else None
    margin = Margin(16.0, angles, settings.get("label_smoothing", 0.0), weights, chunk=7)
    edges, meeting, given = [0, 20, 21, 50], threading.Barrier(3), {}

    def exchange(owner, reduce):  # threads stand for processes
        def exchanged(numbers):
            given[owner] = numbers
            meeting.wait()
            result = reduce(torch.stack([given[one] for one in range(3)]))
            meeting.wait()
            return result

        return exchanged

    def own(owner):
        first, end = edges[owner : owner + 2]
        highest, summed = exchange(owner, lambda all_of: all_of.amax(0)), exchange(owner, lambda all_of: all_of.sum(0))
        mine = replace(margin, shares=Shares(first, highest, summed))
        return both(margin_cross_entropy, features, centres[first:end], labels, mine)

    with ThreadPoolExecutor(3) as pool:
        losses, of_features, of_centres = zip(*pool.map(own, range(3)), strict=True)
    assert losses[0] == losses[1] == losses[2]
    found = losses[0], sum(of_features), torch.cat(of_centres)
    for ours, theirs in zip(found, both(dense, features, centres, labels, margin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_correct_are_those_whose_best_logit_without_margins_is_their_label_s(margin):
    head = build_head("arcface", features=16, classes=5, settings={"margin": margin, "sub_centres": 2})
    head.margins += torch.linspace(0, 2 * margin, 5)
    features, labels = torch.randn(200, 16), torch.randint(0, 5, (200,))
    loss, correct = head.loss_and_correct(features, labels)
    assert torch.equal(correct, head(features).argmax(1) == labels) and 0 < correct.sum() < 200
    assert torch.equal(loss, head.loss(features, labels))
    linear = build_head("linear", features=16, classes=5)
    assert torch.equal(linear.loss_and_correct(features, labels)[1], linear(features).argmax(1) == labels)


@pytest.mark.parametrize("several", [1, 3])
def test_with_two_thousand_classes_in_float32_both_agree_to_five_digits(several):
    features, centres, labels, _ = example(2000, several, 64, 128, torch.float32)
    margin = Margin(24.0, torch.full((2000,), 0.3), chunk=300)
    found = both(margin_cross_entropy, features, centres, labels, margin)
    for ours, theirs in zip(found, both(dense, features, centres, labels, margin), strict=True):
        assert (ours - theirs).abs().max() < 1e-5


def test_an_angle_beyond_half_a_turn_still_gives_a_falling_logit():
    centres = torch.eye(2, dtype=torch.float64)[:, None]
    features = torch.tensor([[-1.0, 0.05]], dtype=torch.float64)
    labels = torch.tensor([0])
    losses = [
        margin_cross_entropy(features, centres, labels, Margin(10.0, torch.full((2,), angle, dtype=torch.float64)))
        for angle in (0.0, 0.2, 0.4)
    ]
    assert losses[0] < losses[1] < losses[2]
    _, gradient, _ = both(
        margin_cross_entropy, features, centres, labels, Margin(10.0, torch.full((2,), 0.4, dtype=torch.float64))
    )
    assert gradient.isfinite().all()


def test_without_margins_it_is_plain_cross_entropy_of_the_heads_logits():
    head = build_head("arcface", features=16, classes=30, settings={"margin": 0.0, "embedding": 12})
    features, labels = torch.randn(8, 16), torch.arange(8)
    torch.testing.assert_close(head.loss(features, labels), F.cross_entropy(head(features), labels))


def test_a_margin_makes_the_loss_larger_and_leaves_the_answers():
    head = build_head("arcface", features=16, classes=30, settings={"margin": 0.0})
    features, labels = torch.randn(8, 16), torch.arange(8)
    plain, answers = head.loss(features, labels), head(features)
    head.margins.fill_(0.5)
    assert head.loss(features, labels) > plain
    assert torch.equal(head(features), answers)


def test_rare_landmarks_get_the_larger_margins():
    head = ArcFaceHead(8, 3)
    head.adapt(np.array([1000, 10, 1]))
    assert head.margins[0] == pytest.approx(0.1) and head.margins[2] == pytest.approx(0.3)
    assert 0.1 < head.margins[1] < 0.3
    head.adapt(np.array([5, 5, 5]))
    assert head.margins.tolist() == pytest.approx([0.2] * 3)


def test_a_cosine_head_is_read_back_with_its_centres_and_margins(tmp_path):
    from landmarks.models.network import build_network, load_network, save_network

    network = build_network(
        "resnet18", classes=4, head="arcface", weights="none", image_size=64, head_settings={"sub_centres": 3}
    ).eval()
    network.head.adapt(np.array([1, 2, 3, 4]))
    save_network(network, tmp_path)
    again = load_network(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(images), again(images))
    assert torch.equal(again.head.margins, network.head.margins)
    assert again.head.settings == network.head.settings
