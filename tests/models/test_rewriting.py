"""A folded network answers as it did, with fewer layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from landmarks.models.network import Network, build_network
from landmarks.models.rewriting import blocks, enable_gradient_checkpointing, fold_batch_norm

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
    twin = fold_batch_norm(network)
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
    network.backbone = Forked()
    lively(network)
    assert fold_batch_norm(network) is network


# ── Gradient checkpointing changes memory and nothing else ──────────────────────────────────────────────────────────


PIXELS_of_recompute = {
    "resnet18": 64,
    "mobilenetv2_100": 64,
    "xception": 96,
    "inception_v3": 96,
    "vit_tiny_patch16_224": 32,
}


def one_step(network: Network, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Return the loss, gradients and running statistics after a step, and the bytes autograd kept for it."""
    own = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for block in blocks(network.backbone):  # what a block that recomputes is given is kept, unseen by autograd's hooks
        block.register_forward_pre_hook(lambda _, given: [pack(tensor) for tensor in given] and None)
    torch.manual_seed(0)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network.head.loss(network.features(images), torch.arange(len(images)))
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return loss.detach(), [*gradients, *network.buffers()], sum(kept.values())


@pytest.mark.parametrize("backbone", PIXELS_of_recompute)
def test_loss_gradients_and_running_statistics_are_the_same(backbone: str) -> None:
    torch.manual_seed(0)
    plain = build_network(backbone, classes=4, weights="none", image_size=PIXELS_of_recompute[backbone]).train()
    short = copy.deepcopy(plain)
    assert enable_gradient_checkpointing(short.backbone) == len(list(blocks(plain.backbone))) > 2
    images = torch.randn(4, 3, PIXELS_of_recompute[backbone], PIXELS_of_recompute[backbone])
    loss, tensors, kept = one_step(plain, images)
    short_loss, short_tensors, short_kept = one_step(short, images)
    assert torch.equal(loss, short_loss)
    for tensor, other in zip(tensors, short_tensors, strict=True):
        torch.testing.assert_close(other, tensor, rtol=1e-5, atol=1e-7)
    assert short_kept < 0.75 * kept
    assert set(short.state_dict()) == set(plain.state_dict())


def test_without_gradients_nothing_is_recomputed() -> None:
    network = build_network("test_resnet", classes=3, weights="none", image_size=32).eval()
    enable_gradient_checkpointing(network.backbone)
    calls = []
    for block in blocks(network.backbone):
        block.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert len(calls) == len(list(blocks(network.backbone)))
