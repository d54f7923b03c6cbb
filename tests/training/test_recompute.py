"""Gradient checkpointing changes memory and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from landmarks.networks.network import Network, build_network
from landmarks.training.recompute import blocks, checkpoint_gradients

PIXELS = {"resnet18": 64, "mobilenetv2_100": 64, "xception": 96, "inception_v3": 96, "vit_tiny_patch16_224": 32}


def one_step(network: Network, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Return the loss, gradients and running statistics after a step, and the bytes autograd kept for it."""
    own = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for block in blocks(network.trunk):  # what a block that recomputes is given is kept, unseen by autograd's hooks
        block.register_forward_pre_hook(lambda _, given: [pack(tensor) for tensor in given] and None)
    torch.manual_seed(0)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network.head.loss(network.features(images), torch.arange(len(images)))
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return loss.detach(), [*gradients, *network.buffers()], sum(kept.values())


@pytest.mark.parametrize("backbone", PIXELS)
def test_loss_gradients_and_running_statistics_are_the_same(backbone: str) -> None:
    torch.manual_seed(0)
    plain = build_network(backbone, classes=4, weights="none", image_size=PIXELS[backbone]).train()
    short = copy.deepcopy(plain)
    assert checkpoint_gradients(short.trunk) == len(list(blocks(plain.trunk))) > 2
    images = torch.randn(4, 3, PIXELS[backbone], PIXELS[backbone])
    loss, tensors, kept = one_step(plain, images)
    short_loss, short_tensors, short_kept = one_step(short, images)
    assert torch.equal(loss, short_loss)
    for tensor, other in zip(tensors, short_tensors, strict=True):
        torch.testing.assert_close(other, tensor, rtol=1e-5, atol=1e-7)
    assert short_kept < 0.75 * kept
    assert set(short.state_dict()) == set(plain.state_dict())


def test_without_gradients_nothing_is_recomputed() -> None:
    network = build_network("test_resnet", classes=3, weights="none", image_size=32).eval()
    checkpoint_gradients(network.trunk)
    calls = []
    for block in blocks(network.trunk):
        block.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert len(calls) == len(list(blocks(network.trunk)))
