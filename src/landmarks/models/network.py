"""A network: a backbone that turns images into maps and features, and a head that turns features into answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from landmarks.models.backbones import BASELINE, build_backbone, pretrained_record, unusable_network
from landmarks.models.heads import Head, build_head
from landmarks.models.preprocessing import Preprocessing, from_pretrained, from_record
from landmarks.models.weights import epsilon_of, for_storage, load_weights, set_epsilon
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record, write_record, written_whole

MAX_IMAGE_SIZE = 8192
"""Pixels on the side of the largest image that a network is given; the recipe's limit too."""

MAX_CLASSES = 10_000_000

WEIGHTS_FILE = "model.safetensors"
RECORD_FILE = "model.json"


def build_network(
    backbone_name: str,
    *,
    classes: int,
    head: str = "mlp",
    weights: str | Path = "imagenet",
    image_size: int | None = None,
    seed: int = 0,
    head_settings: Mapping[str, Any] | None = None,
) -> Network:
    """Return a network for `classes` landmarks whose backbone starts from `weights` and whose head is drawn from
    `seed`.

    `weights` is `imagenet` (timm's, from the Hub), `none`, a .safetensors or .pth file, or the folder of another run.
    `image_size` replaces the side in pixels that the pretrained weights were made for. Raises `UsageError` for
    unknown names and sizes that a network cannot work on, and `LandmarksError` for networks that give no features to
    train a head on, and for weights that cannot be had or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = empty_network(
            backbone_name, classes=classes, head=head, image_size=image_size, head_settings=head_settings
        )
    require_features(network)
    load_weights(network.backbone, backbone_name, weights)
    return network


def empty_network(
    backbone_name: str,
    *,
    classes: int,
    head: str = "mlp",
    image_size: int | None = None,
    head_settings: Mapping[str, Any] | None = None,
) -> Network:
    """Return a network as `build_network` does, all its weights random, on torch's default device (meta too)."""
    preprocessing = from_pretrained(pretrained_record(backbone_name), image_size)
    if backbone_name == BASELINE and head == "mlp":
        head = "linear"  # two convolutions and a dense softmax is all that the study's baseline is
    backbone = build_backbone(backbone_name, preprocessing.image_size)
    return Network(
        backbone_name, backbone, head, build_head(head, _width(backbone), classes, head_settings), preprocessing
    )


class Network(nn.Module):
    """A backbone from timm (or the baseline's) and a head; input and output are documented at each method."""

    def __init__(
        self, backbone_name: str, backbone: nn.Module, head_name: str, head: Head, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.backbone_name = backbone_name
        self.head_name = head_name
        self.preprocessing = preprocessing
        self.backbone = backbone
        self.head = head

    @property
    def classes(self) -> int:
        """Return the number of landmarks it knows."""
        return self.head.classes

    @property
    def width(self) -> int:
        """Return the length C of an image's pooled features."""
        return _width(self.backbone)

    def maps(self, images: Tensor) -> Tensor:
        """Return the last maps (N, C, h, w) of normalised images (N, 3, S, S); a transformer's tokens as a grid."""
        return self.as_maps(self.backbone.forward_features(images))  # type: ignore[operator]

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (N, C) of normalised images (N, 3, S, S), pooled as the pretrained network pools."""
        return self._pooled_as_trained(self.backbone.forward_features(images))  # type: ignore[operator]

    def maps_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps (N, C, h, w) and pooled features (N, C) of normalised images from one pass through the backbone.

        Raises `LandmarksError` when the network has no maps; its features can be had all the same.
        """
        last = self.backbone.forward_features(images)  # type: ignore[operator]
        return self.as_maps(last), self._pooled_as_trained(last)

    def _pooled_as_trained(self, last: Any) -> Tensor:
        features: Tensor = self.backbone.forward_head(last, pre_logits=True)  # type: ignore[operator]
        return features

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

    def as_maps(self, last: Any) -> Tensor:
        """Return what the backbone returns before pooling as maps (N, C, h, w): tokens without prefixes, as a grid.

        Raises `LandmarksError` for backbones that return something else: several sets of tokens, or no square of them.
        """
        if not isinstance(last, Tensor):
            raise self._no_maps("it ends in several branches")
        if last.ndim == 4:
            channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
            return last.permute(0, 3, 1, 2) if channels_last else last
        if last.ndim != 3:
            raise self._no_maps("it keeps no positions until the end")
        tokens = last[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise self._no_maps(f"its {tokens.shape[1]} tokens are no square of positions")
        return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)

    def _no_maps(self, why: str) -> LandmarksError:
        return LandmarksError(
            f"{self.backbone_name} has no maps to draw ({why})",
            way_out="explain a run with another network; everything else works with this one",
        )


def save_network(network: Network, folder: Path | str, **extra: Any) -> None:
    """Write `model.safetensors` and then `model.json`, which also holds `extra` (thresholds, temperature)."""
    folder = Path(folder)
    with written_whole(folder / WEIGHTS_FILE) as aside:
        save_file(for_storage(network.state_dict()), aside)
    counts = count_parameters(network)
    record = {
        "backbone": network.backbone_name,
        "head": network.head_name,
        "head_settings": network.head.settings,
        "classes": network.classes,
        "preprocessing": network.preprocessing.record(),
        "batch_norm_epsilon": epsilon_of(network.backbone),
        "parameters": counts.total,
        "trainable": counts.trainable,
        "non_trainable": counts.non_trainable,
        **extra,
    }
    write_record(folder / RECORD_FILE, record, verb="train")


def load_network(folder: Path | str) -> Network:
    """Return the network that `save_network` wrote to `folder`, in evaluation mode."""
    folder = Path(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise LandmarksError(f"there is no {WEIGHTS_FILE} in {folder}")
    network = _network_of(folder / RECORD_FILE)
    try:
        network.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise LandmarksError(f"{weights} is not the network of {RECORD_FILE} ({error})") from error
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise LandmarksError(f"{weights} holds weights that are no finite numbers", received=name)
    return network.eval()


def _network_of(path: Path) -> Network:
    """Return the network that the record at `path` tells of, its weights drawn; raise when it cannot be meant."""
    record = read_record(path)
    try:
        preprocessing, epsilon = from_record(record["preprocessing"]), record["batch_norm_epsilon"]
        name, classes = str(record["backbone"]), int(record["classes"])
        head_name, head_settings = str(record["head"]), dict(record["head_settings"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LandmarksError(f"{path} is not the record of a network ({type(error).__name__}: {error})") from error
    possible = {
        "classes": 1 <= classes <= MAX_CLASSES,
        "image size": 1 <= preprocessing.image_size <= MAX_IMAGE_SIZE,
        "mean": all(map(math.isfinite, preprocessing.mean)),
        "std": all(math.isfinite(value) and value > 0 for value in preprocessing.std),
        "crop": 0 < preprocessing.crop <= 1,
        "epsilon": epsilon is None or (isinstance(epsilon, float) and 0 < epsilon < 1),
    }
    if wrong := [what for what, fits in possible.items() if not fits]:
        raise LandmarksError(f"{path} tells of an impossible network", received=f"its {' and '.join(wrong)}")
    backbone = build_backbone(name, preprocessing.image_size)
    head = build_head(head_name, _width(backbone), classes, head_settings)
    if epsilon is not None:
        set_epsilon(backbone, epsilon)
    return Network(name, backbone, head_name, head, preprocessing)


@torch.no_grad()
def require_features(network: Network) -> None:
    """Raise unless a made-up image goes through and gives features that the head can take.

    Of a size other than the network's own, that size is to blame: too small an image ends in maps of no size.
    A network on the meta device is tried without being computed.
    """
    size, training = network.preprocessing.image_size, network.training
    made_up = _made_up_image(network)
    try:
        features = network.eval().features(made_up)
        reason = _wrong_features(features, (1, network.width))
    except MemoryError:
        raise
    except Exception as error:  # a thousand networks raise a dozen kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    network.train(training)
    if reason:
        raise unusable_network(network.backbone_name, size, reason)


def _wrong_features(features: Any, shape: tuple[int, int]) -> str:
    """Return what is wrong with features that should be of `shape`, or an empty text."""
    if not isinstance(features, Tensor):
        return f"it gives a {type(features).__name__} where features should be"
    if features.shape != shape:
        return f"its features have the shape {tuple(features.shape)}, not {shape}"
    finite = features.is_meta or bool(features.isfinite().all())
    return "" if finite else "its features are no finite numbers"


@torch.no_grad()
def has_maps(network: Network) -> bool:
    """Return whether `network` has maps, so that heat maps can be drawn of its answers; seen in one pass."""
    training = network.training
    try:
        network.eval().maps(_made_up_image(network))
    except LandmarksError:
        return False
    finally:
        network.train(training)
    return True


def _made_up_image(network: Network) -> Tensor:
    """Return noise (1, 3, S, S) as images come: where the network is, its three colours last in memory."""
    size, device = network.preprocessing.image_size, next(network.parameters()).device
    with torch.device("cpu"):
        made_up = torch.randn(1, size, size, 3, generator=torch.Generator().manual_seed(0))
    return made_up.permute(0, 3, 1, 2).to(device)


def _width(backbone: nn.Module) -> int:
    """Return the length of pooled features; timm calls it `head_hidden_size` where a layer stands after the pooling."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


# Parameters counted as Keras counts them: running means and variances are parameters that are not trained.


RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True)
class Counts:
    """How many numbers a network holds: those that training changes, and batch normalisation's running statistics."""

    trainable: int
    non_trainable: int

    @property
    def total(self) -> int:
        """Return both together, which Keras prints as "Total params"."""
        return self.trainable + self.non_trainable


def count_parameters(network: nn.Module) -> Counts:
    """Return the counts of `network`, which may live on the meta device; frozen layers count as trainable ones."""
    return Counts(
        trainable=sum(parameter.numel() for parameter in network.parameters()),
        non_trainable=sum(
            buffer.numel() for name, buffer in network.named_buffers() if name.rpartition(".")[2] in RUNNING
        ),
    )
