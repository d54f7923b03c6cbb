"""Backbones: the study's small baseline, and timm's networks by name."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

from landmarks.models.joined import SEPARATOR, JoinedBackbone, names_of_parts
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean

BASELINE = "baseline"
"""Name of the study's baseline: two convolutions and a dense softmax."""

PRETRAINED: dict[str, Any] = {
    "input_size": (3, 112, 112),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "fixed_input_size": False,
    "license": None,
}
"""The baseline's record, in the form of timm's records of pretrained weights."""

CHANNELS = (32, 64)
SIDE = 28
"""Height and width of its maps for any image size; they determine the size of the dense layer."""


class BaselineBackbone(nn.Module):
    """Twice convolution, ReLU and pooling; the dense layer sees every position of the 64 maps of 28 × 28.

    It has the parts of timm's interface that `Network` uses. With 20 landmarks there are 1,022,932 parameters: 19,392
    in the convolutions and 50,176 × 20 + 20 in the dense softmax.
    """

    num_features = CHANNELS[-1]
    head_hidden_size = CHANNELS[-1] * SIDE * SIDE

    def __init__(self) -> None:
        super().__init__()
        first, second = CHANNELS
        self.layers = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(SIDE),  # has no effect at 112 pixels
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return maps (N, 64, 28, 28) of normalised images (N, 3, H, W)."""
        maps: Tensor = self.layers(images)
        return maps

    def forward_head(self, maps: Tensor, pre_logits: bool = True) -> Tensor:
        """Return the maps flattened to one row per image, (N, 50176)."""
        return maps.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 50176) of normalised images (N, 3, H, W)."""
        return self.forward_head(self.forward_features(images))


# ── Names of networks: common names for some of the study's, timm's names for all others ────────────────────────────


FRIENDLY = {
    "xception": "legacy_xception",
    "nasnet_large": "nasnetalarge",
}
"""Our name → timm's name, where they differ."""

STUDY = (BASELINE, "resnet18", "resnet50", "xception", "inception_v3", "inception_resnet_v2", "nasnet_large")
"""The networks that `networks` lists by default: the study's five, a small ResNet, and the best-known large one."""


def timm_name(backbone_name: str) -> str:
    """Return timm's name of a backbone, with its tag if there is one; raise `UsageError` for unknown names."""
    if SEPARATOR in backbone_name:
        return SEPARATOR.join(map(timm_name, names_of_parts(backbone_name)))
    name = FRIENDLY.get(backbone_name, backbone_name)
    if not timm.is_model(name):
        raise UsageError(f'no network "{backbone_name}"', way_out=_name_hint(backbone_name))
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture, _, tag = name.partition(".")
        tags = [model.partition(".")[2] for model in timm.list_pretrained(architecture)]
        raise UsageError(
            f'no weights "{tag}" of the network {architecture}',
            expected=", ".join(tags) or "no tag: it has none",
            way_out=did_you_mean(tag, tags),
        ) from error
    return name


def _name_hint(name: str) -> str:
    """Return a hint for an unknown `name`: a similar network, or the command that lists a similar family."""
    networks = (*STUDY, *timm.list_models())
    families = {found[0] for network in networks if (found := re.match("[a-z]+", network))}
    if close := difflib.get_close_matches(name, networks, n=1, cutoff=0.85):
        return f'did you mean "{close[0]}"? (landmarks networks "{_family(close[0])}*" lists its kind)'
    if close := difflib.get_close_matches(_family(name), families, n=1, cutoff=0.75):
        return f'landmarks networks "{close[0]}*" lists those that begin so'
    return 'landmarks networks lists the study\'s, landmarks networks "mobilenet*" those of timm with such names'


def _family(name: str) -> str:
    found = re.match("[a-z]+", name.lower())
    return found[0] if found else name


def networks_like(pattern: str) -> list[str]:
    """Return timm's networks whose names match `pattern` (`mobilenet*`); raise `UsageError` if there are none."""
    names = [name for name in timm.list_models() if fnmatch.fnmatchcase(name, pattern.lower())]
    if not names:
        raise UsageError(f'no network is called like "{pattern}"', way_out=_name_hint(pattern.strip("*?")))
    return names


def pretrained_record(backbone_name: str) -> Mapping[str, Any]:
    """Return timm's record of the pretrained weights: `input_size`, `mean`, `std`, `license` and so on.

    For joined networks it is that of the first, with the licences of all.
    """
    if SEPARATOR in backbone_name:
        records = [pretrained_record(name) for name in names_of_parts(backbone_name)]
        licences = dict.fromkeys(record["license"] or "unknown" for record in records)
        return {**records[0], "license": " and ".join(licences)}
    if backbone_name == BASELINE:
        return PRETRAINED
    record = timm.get_pretrained_cfg(timm_name(backbone_name))
    if record is None:
        raise UsageError(f'timm does not say how images are prepared for "{backbone_name}"', way_out="name another one")
    return {**record.to_dict(), "license": record.license}


def build_backbone(backbone_name: str, image_size: int) -> nn.Module:
    """Return the network without its classifier, randomly initialised, for squares of `image_size` pixels."""
    if SEPARATOR in backbone_name:
        names = names_of_parts(backbone_name)
        parts = [build_backbone(name, image_size) for name in names]
        return JoinedBackbone(names, parts, [pretrained_record(name) for name in names])
    if backbone_name == BASELINE:
        return BaselineBackbone()
    record = pretrained_record(backbone_name)
    sizes = {"img_size": image_size} if record.get("fixed_input_size") else {}
    try:
        backbone: nn.Module = timm.create_model(timm_name(backbone_name), pretrained=False, num_classes=0, **sizes)
    except MemoryError:
        raise
    except Exception as error:  # a thousand networks raise a dozen kinds of error
        raise unusable_network(
            backbone_name, image_size, str(error).strip().partition("\n")[0] or type(error).__name__
        ) from error
    return backbone


def unusable_network(backbone_name: str, image_size: int, reason: str) -> LandmarksError:
    """Return the error for a network that cannot be used with images of this size, or with any images."""
    own_size = int(pretrained_record(backbone_name)["input_size"][-1])
    if image_size != own_size:
        return UsageError(
            f"{backbone_name} cannot take images of {image_size} pixels ({reason})",
            way_out=f"it was made for {own_size} (--image-size)",
        )
    return LandmarksError(
        f"{backbone_name} gives no features to recognise landmarks by ({reason})", way_out="name another network"
    )
