"""The study's baseline: two convolutions and a dense softmax, about a million parameters for 20 landmarks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

BASELINE = "baseline"
"""Its name."""

PRETRAINED: dict[str, Any] = {
    "input_size": (3, 112, 112),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "fixed_input_size": False,
    "license": None,
}
"""What timm's record would say of it, had it any pretrained weights."""

CHANNELS = (32, 64)
SIDE = 28
"""Height and width of its maps, whatever the size of the photograph: the dense layer's size depends on it."""


class BaselineTrunk(nn.Module):
    """Convolution, ReLU, pooling, twice; 64 maps of 28 × 28 whose every position the dense layer sees.

    It speaks as much of timm's interface as `Network` uses. With 20 landmarks it has 1,022,932 parameters: 19,392 in
    the convolutions and 50,176 × 20 + 20 in the dense softmax.
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
            nn.AdaptiveAvgPool2d(SIDE),  # does nothing at 112 pixels
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
        """Return the maps laid out in one row per photograph, (N, 50176)."""
        return maps.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 50176) of normalised images (N, 3, H, W)."""
        return self.forward_head(self.forward_features(images))
