"""Networks: a backbone from images to maps and features, and a head from features to logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from landmarks.models import MAX_IMAGE_SIZE
from landmarks.models.backbones import (
    BASELINE,
    JoinedBackbone,
    build_backbone,
    names_of_parts,
    pretrained_record,
    unusable_network,
)
from landmarks.models.heads import Head, build_head
from landmarks.models.preprocessing import Preprocessing, from_pretrained, from_record
from landmarks.models.weights import epsilon_of, for_storage, is_epsilon, load_weights, set_epsilon
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record, write_record, written_whole

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
    average_flip: bool = False,
) -> Network:
    """Return a network for `classes` landmarks with a backbone from `weights` and a random head from `seed`.

    `backbone_name` may join networks (`resnet50+xception`). `weights` is `imagenet` (timm's, from the Hub), `none`, a
    .safetensors or .pth file, the folder of another run, or a folder of files that are called like networks.
    `image_size` replaces the side in pixels that the pretrained weights were made for. With `average_flip`, answers
    come from the mean features of an image and its horizontal flip. Raises `UsageError` for unknown names and
    unsuitable sizes, and `LandmarksError` for networks without features to train a head on, and for weights that are
    unavailable or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = empty_network(
            backbone_name, classes=classes, head=head, image_size=image_size, head_settings=head_settings
        )
    require_features(network)
    load_weights(network.backbone, backbone_name, weights)
    if isinstance(network.backbone, JoinedBackbone):
        network.backbone.balance(network.preprocessing.image_size)
    network.preprocessing = replace(network.preprocessing, average_flip=average_flip)
    return network


def empty_network(
    backbone_name: str,
    *,
    classes: int,
    head: str = "mlp",
    image_size: int | None = None,
    head_settings: Mapping[str, Any] | None = None,
) -> Network:
    """Return a network like `build_network`, with random weights, on torch's default device (which may be meta)."""
    preprocessing = from_pretrained(pretrained_record(backbone_name), image_size)
    if backbone_name == BASELINE and head == "mlp":
        head = "linear"  # the study's baseline is two convolutions and a dense softmax
    backbone = build_backbone(backbone_name, preprocessing.image_size)
    return Network(
        backbone_name, backbone, head, build_head(head, _width(backbone), classes, head_settings), preprocessing
    )


class Network(nn.Module):
    """A backbone (timm's, the baseline's or several joined) and a head."""

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
        """The number K of landmarks."""
        return self.head.classes

    @property
    def width(self) -> int:
        """The length C of pooled features."""
        return _width(self.backbone)

    def maps(self, images: Tensor) -> Tensor:
        """Return the last maps (N, C, h, w) of normalised images (N, 3, S, S): a grid of tokens for a transformer."""
        return self._averaged_maps(self.before_pooling(images))

    def features(self, images: Tensor) -> Tensor:
        """Return features (N, C) of normalised images (N, 3, S, S), with the pooling of the pretrained network.

        With `average_flip`, they are the means over each image and its horizontal flip, except in training mode, where
        the augmentation flips images.
        """
        return self.pooled(self.before_pooling(images))

    def maps_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps (N, C, h, w) and features (N, C) of normalised images from one pass through the backbone.

        Raises `LandmarksError` when the network has no maps; `features` works nonetheless.
        """
        last = self.before_pooling(images)
        return self._averaged_maps(last), self.pooled(last)

    @property
    def averages_flip(self) -> bool:
        """Whether an image's features are averaged with those of its horizontal flip: not in training mode."""
        return self.preprocessing.average_flip and not self.training

    def before_pooling(self, images: Tensor) -> Any:
        """Return the backbone's output for normalised images (N, 3, S, S), before pooling.

        Where flips are averaged it is that of 2 N images: `images`, then their flips.
        """
        both = torch.cat([images, images.flip(3)]) if self.averages_flip else images
        return self.backbone.forward_features(both)  # type: ignore[operator]

    def pooled(self, last: Any) -> Tensor:
        """Return the features (N, C) of what `before_pooling` returns."""
        features: Tensor = self.backbone.forward_head(last, pre_logits=True)  # type: ignore[operator]
        if not self.averages_flip:
            return features
        own, flipped = halves(features)
        return (own + flipped) / 2

    def _averaged_maps(self, last: Any) -> Tensor:
        maps = self.as_maps(last)
        if not self.averages_flip:
            return maps
        own, flipped = halves(maps)
        return (own + flipped.flip(3)) / 2

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (N, K) of pooled features (N, C)."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of normalised images (N, 3, S, S)."""
        return self.classify(self.features(images))

    def as_maps(self, last: Any) -> Tensor:
        """Return the backbone's output before pooling as maps (N, C, h, w): tokens, without prefixes, as a grid.

        Raises `LandmarksError` for other outputs, such as several sets of tokens, or tokens that form no square.
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


def halves(both: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the second half (N, …) of a batch (2 N, …)."""
    own, flipped = both.reshape(2, -1, *both.shape[1:])
    return own, flipped


def save_network(network: Network, folder: Path | str, **extra: Any) -> None:
    """Write `model.safetensors`, and then `model.json` with `extra` fields (thresholds, temperature)."""
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
        raise LandmarksError(
            f"there is no {WEIGHTS_FILE} in {folder}", way_out="take the run's folder anew from where it was trained"
        )
    network = _network_from_record(folder / RECORD_FILE)
    try:
        network.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise LandmarksError(f"{weights} is not the network of {RECORD_FILE} ({error})") from error
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise LandmarksError(f"{weights} holds weights that are no finite numbers", received=name)
    return network.eval()


def _network_from_record(path: Path) -> Network:
    """Return the network of the record at `path` with random weights; raise `LandmarksError` for impossible values."""
    record = read_record(path)
    try:
        preprocessing, epsilon = from_record(record["preprocessing"]), record["batch_norm_epsilon"]
        name, classes = str(record["backbone"]), int(record["classes"])
        head_name, head_settings = str(record["head"]), dict(record["head_settings"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LandmarksError(f"{path} is not the record of a network ({type(error).__name__}: {error})") from error
    checks = {
        "classes": 1 <= classes <= MAX_CLASSES,
        "image size": 1 <= preprocessing.image_size <= MAX_IMAGE_SIZE,
        "mean": all(map(math.isfinite, preprocessing.mean)),
        "std": all(math.isfinite(value) and value > 0 for value in preprocessing.std),
        "crop": 0 < preprocessing.crop <= 1,
        "epsilon": is_epsilon(epsilon, len(names_of_parts(name))),
    }
    if wrong := [what for what, is_possible in checks.items() if not is_possible]:
        raise LandmarksError(f"{path} tells of an impossible network", received=f"its {' and '.join(wrong)}")
    backbone = build_backbone(name, preprocessing.image_size)
    head = build_head(head_name, _width(backbone), classes, head_settings)
    set_epsilon(backbone, epsilon)
    return Network(name, backbone, head_name, head, preprocessing)


@torch.no_grad()
def require_features(network: Network) -> None:
    """Raise `LandmarksError` unless a random image gives features that the head can take.

    If the image size is not the network's own, the error blames it: too small images end in empty maps. A network on
    the meta device is checked without computation.
    """
    size, training = network.preprocessing.image_size, network.training
    try:
        features = network.eval().features(_random_image(network))
        reason = _wrong_features(features, (1, network.width))
    except (MemoryError, LandmarksError):
        raise
    except Exception as error:  # a thousand networks raise a dozen kinds of error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    network.train(training)
    if reason:
        raise unusable_network(network.backbone_name, size, reason)


def _wrong_features(features: Any, shape: tuple[int, int]) -> str:
    """Return what is wrong with features that should have `shape`, or an empty text."""
    if not isinstance(features, Tensor):
        return f"it gives a {type(features).__name__} where features should be"
    if features.shape != shape:
        return f"its features have the shape {tuple(features.shape)}, not {shape}"
    finite = features.is_meta or bool(features.isfinite().all())
    return "" if finite else "its features are no finite numbers"


@torch.no_grad()
def has_maps(network: Network) -> bool:
    """Return whether `network` has maps, which heat maps require; tried with one forward pass."""
    training = network.training
    try:
        network.eval().maps(_random_image(network))
    except LandmarksError:
        return False
    finally:
        network.train(training)
    return True


def _random_image(network: Network) -> Tensor:
    """Return noise (1, 3, S, S) on the device of the network, in channels-last memory as images are."""
    size, device = network.preprocessing.image_size, next(network.parameters()).device
    with torch.device("cpu"):
        noise = torch.randn(1, size, size, 3, generator=torch.Generator().manual_seed(0))
    return noise.permute(0, 3, 1, 2).to(device)


def _width(backbone: nn.Module) -> int:
    """Return the length of pooled features: timm's `head_hidden_size`, if a layer follows the pooling."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


# ── Counts of parameters as in Keras, where running means and variances are parameters that are not trained ─────────


RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True)
class Counts:
    """The number of trained parameters of a network, and of batch normalisation's running statistics."""

    trainable: int
    non_trainable: int

    @property
    def total(self) -> int:
        """The sum of both, which Keras prints as "Total params"."""
        return self.trainable + self.non_trainable


def count_parameters(network: nn.Module) -> Counts:
    """Return the counts of `network`, which may be on the meta device; frozen layers count as trainable."""
    return Counts(
        trainable=sum(parameter.numel() for parameter in network.parameters()),
        non_trainable=sum(
            buffer.numel() for name, buffer in network.named_buffers() if name.rpartition(".")[2] in RUNNING
        ),
    )
