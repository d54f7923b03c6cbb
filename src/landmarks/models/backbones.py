"""Backbones: the study's small baseline, timm's networks by name, and several of them joined.

Networks err differently, so that their joined features tell more landmarks apart, and known from unknown more surely,
than those of any one of them (`benchmarks/unknown.py`).
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

SEPARATOR = "+"
"""Stands between the names of joined networks: `resnet50+xception`."""


def names_of_parts(backbone_name: str) -> list[str]:
    """Return the names of the networks that a backbone joins: itself alone, unless there is a `+` in its name."""
    return backbone_name.split(SEPARATOR)


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


# ── Joined backbones: several networks look at the same image, and their features stand one after another ───────────


TOLERANCE = 1e-3
"""Largest relative difference between a network's features and the means of its maps that rounding can explain."""


def is_mean_of_maps(maps: Tensor, features: Tensor) -> bool:
    """Return whether `features` (N, C) are the averages of `maps` (N, C, h, w), as most convolutional networks' are.

    Joining networks and exact heat maps (`gradcam`) rest on it.
    """
    if maps.shape[:2] != features.shape:
        return False
    return bool((maps.mean((2, 3)) - features).abs().max() <= TOLERANCE * features.abs().max())


class JoinedBackbone(nn.Module):
    """Networks side by side: their maps, on one grid, are joined channel by channel, and features are their means.

    Every part takes the same images, normalised with its own mean and deviation, and its maps are divided by `scales`,
    so that no part outweighs the others. It has the parts of timm's interface that `Network` uses.
    """

    scales: Tensor

    def __init__(self, names: Sequence[str], parts: Sequence[nn.Module], records: Sequence[Mapping[str, Any]]) -> None:
        """Join `parts` with these `names`; images come normalised as the first of their `records` says."""
        super().__init__()
        self.names = list(names)
        self.parts = nn.ModuleList(parts)
        self.widths = [int(part.num_features) for part in parts]  # type: ignore[arg-type]
        self.num_features = sum(self.widths)
        self.register_buffer("scales", torch.ones(len(parts)))
        mean, deviation = _mean_and_deviation(records[0])
        for index, record in enumerate(records):
            own_mean, own_deviation = _mean_and_deviation(record)
            self.register_buffer(f"factor{index}", deviation / own_deviation, persistent=False)
            self.register_buffer(f"offset{index}", (mean - own_mean) / own_deviation, persistent=False)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return maps (N, C, h, w) of normalised images (N, 3, S, S), on the finest of the parts' grids."""
        maps = [part_maps / scale for part_maps, scale in zip(self._maps(images), self.scales, strict=True)]
        height, width = (max(each.shape[axis] for each in maps) for axis in (2, 3))
        return torch.cat([on_grid(each, height, width) for each in maps], dim=1)

    def forward_head(self, maps: Tensor, pre_logits: bool = True) -> Tensor:
        """Return features (N, C), the means of maps (N, C, h, w)."""
        return maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, C) of normalised images (N, 3, S, S)."""
        return self.forward_head(self.forward_features(images))

    def _maps(self, images: Tensor) -> list[Tensor]:
        buffers = dict(self.named_buffers(recurse=False))
        maps = [
            part.forward_features(images * buffers[f"factor{index}"] + buffers[f"offset{index}"])  # type: ignore[operator]
            for index, part in enumerate(self.parts)
        ]
        for name, width, own in zip(self.names, self.widths, maps, strict=True):
            if not isinstance(own, Tensor) or own.ndim != 4 or own.shape[1] != width:
                raise _cannot_be_joined(name)
        return maps

    @torch.no_grad()
    def balance(self, image_size: int) -> None:
        """Set `scales` to the mean magnitudes of the parts' features on noise, and check what joining rests on.

        Raises `LandmarksError` for a part whose features are not the means of its maps (transformers, for example).
        """
        training, device = self.training, self.scales.device
        maps = self.eval()._maps(_smooth_noise(image_size).to(device))
        for index, (name, part, own) in enumerate(zip(self.names, self.parts, maps, strict=True)):
            features = part.forward_head(own, pre_logits=True)  # type: ignore[operator]
            if not is_mean_of_maps(own, features):
                raise _cannot_be_joined(name)
            self.scales[index] = features.abs().mean().clamp(min=torch.finfo(torch.float32).tiny)
        self.train(training)


def parts_of(backbone: nn.Module) -> list[nn.Module]:
    """Return the networks that a backbone joins: itself alone, unless it is a `JoinedBackbone`."""
    return list(backbone.parts) if isinstance(backbone, JoinedBackbone) else [backbone]


def on_grid(maps: Tensor, height: int, width: int) -> Tensor:
    """Return maps (N, C, h, w) on a grid (height, width), each cell the mean of the area it covers.

    The mean of all cells stays the same, which is what features are; where one grid does not divide the other, torch's
    adaptive pooling and interpolation change it.
    """
    if maps.shape[2:] == (height, width):
        return maps
    down = _shares_of_area(height, maps.shape[2]).to(maps)
    across = _shares_of_area(width, maps.shape[3]).to(maps)
    return down @ maps @ across.T


def _shares_of_area(new: int, old: int) -> Tensor:
    """Return the share (new, old) of each new cell's length that each old cell covers, `new` and `old` to a side."""
    ends = torch.arange(1, new + 1)[:, None] / new, torch.arange(1, old + 1)[None] / old
    starts = ends[0] - 1 / new, ends[1] - 1 / old
    return (torch.minimum(*ends) - torch.maximum(*starts)).clamp(min=0) * new


def _mean_and_deviation(record: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return a record's mean and standard deviation of the three colours, (3, 1, 1) each."""
    mean, deviation = (torch.tensor(record[name], dtype=torch.float32)[:, None, None] for name in ("mean", "std"))
    return mean, deviation


def _smooth_noise(image_size: int) -> Tensor:
    """Return eight normalised images (8, 3, S, S) of coarse and fine noise, about as rough as real ones."""
    random = torch.Generator().manual_seed(0)
    layers = [
        weight * F.interpolate(torch.rand(8, 3, cells, cells, generator=random), size=image_size, mode="bilinear")
        for cells, weight in ((4, 0.5), (16, 0.3), (56, 0.2))
    ]
    return 4 * torch.stack(layers).sum(0) - 2


def _cannot_be_joined(name: str) -> LandmarksError:
    return LandmarksError(
        f"{name} cannot be joined with other networks: its features are not the means of its last maps",
        expected="convolutional networks, most of which average their last maps",
    )
