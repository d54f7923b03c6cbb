"""Joined backbones: several networks look at the same image, and their features stand one after another.

Networks err differently, so that their joined features tell more landmarks apart, and known from unknown more surely,
than those of any one of them (`benchmarks/unknown.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landmarks.support.errors import LandmarksError

SEPARATOR = "+"
"""Stands between the names of joined networks: `resnet50+xception`."""

TOLERANCE = 1e-3
"""Largest relative difference between a network's features and the means of its maps that rounding can explain."""


def is_mean_of_maps(maps: Tensor, features: Tensor) -> bool:
    """Return whether `features` (N, C) are the averages of `maps` (N, C, h, w), as most convolutional networks' are.

    Joining networks and exact heat maps (`gradcam`) rest on it.
    """
    if maps.shape[:2] != features.shape:
        return False
    return bool((maps.mean((2, 3)) - features).abs().max() <= TOLERANCE * features.abs().max())


def names_of_parts(backbone_name: str) -> list[str]:
    """Return the names of the networks that a backbone joins: itself alone, unless there is a `+` in its name."""
    return backbone_name.split(SEPARATOR)


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
