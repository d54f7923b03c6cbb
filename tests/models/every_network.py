"""One step of training of any of timm's networks, on the meta device: shapes and gradients without memory or numbers.

`python tests/models/every_network.py [NAME ...]` tries those networks, or all of timm's, and prints a line for each.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass

import timm
import torch

from landmarks.models.network import Network, build_network
from landmarks.support.errors import LandmarksError
from landmarks.training.choices import set_memory_layout
from landmarks.training.loader import normalised
from landmarks.training.optimizer import parameter_groups
from landmarks.training.recipe import recipe_named

CLASSES = 5
IMAGES = 2


@dataclass(frozen=True)
class Outcome:
    """What came of one network: the line it was refused with, or whether it has maps beside its features."""

    network: str
    refused: str = ""
    maps: bool = False
    idle: tuple[str, ...] = ()  # parameters that no gradient reaches


def try_network(name: str, image_size: int | None = None) -> Outcome:
    """Build a network, take two images through it and the gradient back; raise when anything but a refusal is
    the end of it."""
    with torch.device("meta"):
        try:
            network = build_network(name, classes=CLASSES, weights="none", image_size=image_size)
        except LandmarksError as error:
            assert "\n" not in str(error)
            return Outcome(name, refused=str(error))
    require_groups(network)
    set_memory_layout(network)
    side = network.preprocessing.image_size
    pixels = torch.zeros(IMAGES, side, side, 3, dtype=torch.uint8, device="meta").permute(0, 3, 1, 2)
    labels = torch.zeros(IMAGES, dtype=torch.long, device="meta")
    images, maps = normalised(pixels, network.train().preprocessing, "meta"), True
    try:
        _, features = network.maps_and_features(images)
    except LandmarksError as error:
        assert "has no maps to draw" in str(error)
        features, maps = network.features(images), False
    assert features.shape == (IMAGES, network.width)
    assert network.classify(features).shape == (IMAGES, CLASSES)
    network.head.loss(features.float(), labels).backward()
    trained = ((name, one) for name, one in network.named_parameters() if one.requires_grad)
    idle = tuple(name for name, one in trained if one.grad is None)
    return Outcome(name, maps=maps, idle=idle)


def require_groups(network: Network) -> None:
    """Assert that an optimizer would move every parameter, once, whether trained from scratch or fine-tuned."""
    wanted = sorted(id(parameter) for parameter in network.parameters() if parameter.requires_grad)  # timm froze others
    for recipe in (recipe_named("default", weights="none"), recipe_named("default", weights="imagenet")):
        groups = parameter_groups(network, recipe)
        assert sorted(id(parameter) for group in groups for parameter in group["params"]) == wanted
        assert all(group["peak"] > 0 for group in groups)


def main(names: list[str]) -> None:
    """Try `names`, or all there are, and print what came of each."""
    warnings.simplefilter("ignore")
    for name in names or timm.list_models():
        try:
            outcome = try_network(name)
        except Exception as error:
            print(name, "FAILS", type(error).__name__, str(error).partition("\n")[0], sep="\t", flush=True)
            continue
        verdict = "refused" if outcome.refused else "trains with maps" if outcome.maps else "trains without maps"
        print(name, verdict, outcome.refused, ", ".join(outcome.idle[:3]), sep="\t", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
