"""A folded network answers as it did, with fewer layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from landmarks.networks.folding import folded
from landmarks.networks.network import Network, build_network

PIXELS = {"resnet18": 64, "mobilenetv2_100": 64, "xception": 96, "inception_v3": 96, "vit_tiny_patch16_224": 32}


def lively(network: Network) -> Network:
    """Give every normalisation running statistics and weights that matter."""
    made_up = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            for tensor, low in ((layer.running_mean, -0.5), (layer.running_var, 0.5), (layer.weight, 0.5)):
                tensor.data.copy_(torch.rand(tensor.shape, generator=made_up) + low)
            layer.bias.data.copy_(torch.rand(layer.bias.shape, generator=made_up) - 0.5)
    return network.eval()


def normalisations(network: nn.Module) -> int:
    return sum(isinstance(layer, _BatchNorm) for layer in network.modules())


@pytest.mark.parametrize("backbone", PIXELS)
@torch.no_grad()
def test_answers_stay_and_normalisations_go(backbone: str) -> None:
    network = lively(build_network(backbone, classes=4, weights="none", image_size=PIXELS[backbone]))
    before = normalisations(network)
    twin = folded(network)
    images = torch.randn(3, 3, PIXELS[backbone], PIXELS[backbone])
    scale = float(network.features(images).abs().max())
    torch.testing.assert_close(twin.features(images), network.features(images), rtol=0, atol=1e-4 * scale)
    assert normalisations(network) == before
    assert normalisations(twin) <= before * 0.1


@torch.no_grad()
def test_a_convolution_that_feeds_two_layers_is_left_alone() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.layer = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.num_features = 8

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            made = self.convolution(images)
            return self.layer(made) + made

        def forward_head(self, maps: torch.Tensor, pre_logits: bool) -> torch.Tensor:
            return maps.mean((2, 3))

    network = build_network("resnet18", classes=2, weights="none", image_size=32)
    network.trunk = Forked()
    lively(network)
    assert folded(network) is network
