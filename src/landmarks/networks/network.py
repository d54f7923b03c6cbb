"""A network: a trunk that turns photographs into maps and features, and a head that turns features into answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from landmarks.networks.backbones import build_trunk, pretrained_record, wrong_size
from landmarks.networks.baseline import BASELINE
from landmarks.networks.epsilon import epsilon_of, set_epsilon
from landmarks.networks.heads import Head, build_head
from landmarks.networks.parameters import count_parameters
from landmarks.networks.preprocessing import Preprocessing, from_pretrained, from_record
from landmarks.networks.weights import load_weights
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record, write_record, written_whole

WEIGHTS_FILE = "model.safetensors"
RECORD_FILE = "model.json"


def build_network(
    backbone: str,
    *,
    classes: int,
    head: str = "study",
    weights: str | Path = "imagenet",
    image_size: int | None = None,
    seed: int = 0,
    head_settings: Mapping[str, Any] | None = None,
) -> Network:
    """Return a network for `classes` landmarks whose trunk starts from `weights` and whose head is drawn from `seed`.

    `weights` is `imagenet` (timm's, from the Hub), `none`, a .safetensors or .pth file, or the folder of another run.
    `image_size` replaces the side in pixels that the pretrained weights were made for. Raises `UsageError` for
    unknown names and `LandmarksError` for weights that cannot be had or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = empty_network(
            backbone, classes=classes, head=head, image_size=image_size, head_settings=head_settings
        )
    if image_size is not None and not _takes(network, image_size):
        raise wrong_size(backbone, image_size)
    load_weights(network.trunk, backbone, weights)
    return network


def empty_network(
    backbone: str,
    *,
    classes: int,
    head: str = "study",
    image_size: int | None = None,
    head_settings: Mapping[str, Any] | None = None,
) -> Network:
    """Return a network as `build_network` does, all its weights random, on torch's default device (meta too)."""
    preprocessing = from_pretrained(pretrained_record(backbone), image_size)
    if backbone == BASELINE and head == "study":
        head = "linear"  # two convolutions and a dense softmax is all that the study's baseline is
    trunk = build_trunk(backbone, preprocessing.image_size)
    return Network(backbone, trunk, head, build_head(head, _width(trunk), classes, head_settings), preprocessing)


class Network(nn.Module):
    """A trunk from timm (or the baseline's) and a head; input and output are documented at each method."""

    def __init__(
        self, backbone: str, trunk: nn.Module, head_name: str, head: Head, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head_name = head_name
        self.preprocessing = preprocessing
        self.trunk = trunk
        self.head = head

    @property
    def classes(self) -> int:
        """Return the number of landmarks it knows."""
        return self.head.classes

    @property
    def width(self) -> int:
        """Return the length C of a photograph's pooled features."""
        return _width(self.trunk)

    def maps(self, images: Tensor) -> Tensor:
        """Return the last maps (N, C, h, w) of normalised images (N, 3, S, S); a transformer's tokens as a grid."""
        return self.maps_and_features(images)[0]

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (N, C) of normalised images (N, 3, S, S), pooled as the pretrained network pools."""
        return self.maps_and_features(images)[1]

    def maps_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps (N, C, h, w) and pooled features (N, C) of normalised images from one pass through the trunk."""
        last = self.trunk.forward_features(images)  # type: ignore[operator]
        features: Tensor = self.trunk.forward_head(last, pre_logits=True)  # type: ignore[operator]
        return self.as_maps(last), features

    def pooled(self, maps: Tensor) -> Tensor:
        """Return the mean (N, C) of maps (N, C, h, w) over their positions."""
        return maps.mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of pooled features (N, C)."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of normalised images (N, 3, S, S)."""
        return self.classify(self.features(images))

    def as_maps(self, last: Tensor) -> Tensor:
        """Return what the trunk returns before pooling as maps (N, C, h, w): tokens without prefixes, as a grid."""
        if last.ndim == 4:
            channels_last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
            return last.permute(0, 3, 1, 2) if channels_last else last
        tokens = last[:, getattr(self.trunk, "num_prefix_tokens", 0) :]
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise LandmarksError(f"the {tokens.shape[1]} tokens of {self.backbone} are no square of positions")
        return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


def save_network(network: Network, folder: Path | str, **extra: Any) -> None:
    """Write `model.safetensors` and then `model.json`, which also holds `extra` (thresholds, temperature)."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with written_whole(folder / WEIGHTS_FILE) as aside:
        save_file(tensors, aside)
    counts = count_parameters(network)
    record = {
        "backbone": network.backbone,
        "head": network.head_name,
        "head_settings": network.head.settings,
        "classes": network.classes,
        "preprocessing": network.preprocessing.record(),
        "batch_norm_epsilon": epsilon_of(network.trunk),
        "parameters": counts.total,
        "trainable": counts.trainable,
        "non_trainable": counts.non_trainable,
        **extra,
    }
    write_record(folder / RECORD_FILE, record, verb="train")


def load_network(folder: Path | str) -> Network:
    """Return the network that `save_network` wrote to `folder`, in evaluation mode."""
    folder = Path(folder)
    record = read_record(folder / RECORD_FILE)
    preprocessing = from_record(record["preprocessing"])
    trunk = build_trunk(record["backbone"], preprocessing.image_size)
    head = build_head(record["head"], _width(trunk), record["classes"], record["head_settings"])
    network = Network(record["backbone"], trunk, record["head"], head, preprocessing)
    if record["batch_norm_epsilon"] is not None:
        set_epsilon(trunk, record["batch_norm_epsilon"])
    try:
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise LandmarksError(f"{folder / WEIGHTS_FILE} is not the network of {RECORD_FILE} ({error})") from error
    return network.eval()


@torch.no_grad()
def _takes(network: Network, image_size: int) -> bool:
    """Return whether a photograph of `image_size` pixels goes through: too small a one ends in maps of no size."""
    network.eval()
    try:
        return network(torch.zeros(1, 3, image_size, image_size)).isfinite().all().item() is True
    except (RuntimeError, AssertionError, ValueError, LandmarksError):
        return False
    finally:
        network.train()


def _width(trunk: nn.Module) -> int:
    """Return the length of pooled features; timm calls it `head_hidden_size` where a layer stands after the pooling."""
    return int(getattr(trunk, "head_hidden_size", None) or trunk.num_features)  # type: ignore[arg-type]
