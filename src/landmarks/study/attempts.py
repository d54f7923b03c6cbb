"""Which trainings a reproduction consists of, what each starts from, and in what it differs from the study's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landmarks.networks.backbones import pretrained_record
from landmarks.networks.baseline import BASELINE
from landmarks.networks.hub import imagenet_file
from landmarks.networks.preprocessing import from_pretrained
from landmarks.study.protocol import PROTOCOLS, Protocol
from landmarks.study.published import DROPPED, IN_THE_TABLE
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.training.recipe import Recipe, recipe_named

FOR_ALL = ("imagenet", "none")
"""Weights that can be named for all networks at once."""


@dataclass(frozen=True)
class Attempt:
    """One network under one protocol; `settings` is what `train` is called with."""

    protocol: Protocol
    network: str
    settings: dict[str, Any]

    def run(self, folder: Path) -> Path:
        """Return where its run lies in the reproduction's `folder`."""
        return folder / self.protocol.name / self.network

    @property
    def recipe(self) -> Recipe:
        """What will be trained, complete."""
        changes = {name: value for name, value in self.settings.items() if name != "recipe"}
        return recipe_named(self.protocol.recipe, **changes)


def attempts(
    networks: str | Sequence[str],
    weights: str | Mapping[str, Path | str],
    *,
    image_size: int | None,
    epochs: int | None,
    seed: int,
) -> list[Attempt]:
    """Return every training, protocol by protocol; what is None comes from the protocol's recipe.

    `networks` are names, or one text with commas between them; for `weights` see `starts`. Raises `UsageError` for
    names that do not exist and settings that cannot be.
    """
    names = list(dict.fromkeys(_names(networks)))
    for name in names:
        pretrained_record(name)
    begun = starts(names, weights)
    given = {"image_size": image_size, "epochs": epochs, "seed": seed}
    asked = {name: value for name, value in given.items() if value is not None}
    every = [
        Attempt(protocol, name, {"recipe": protocol.recipe, "backbone": name, "weights": begun[name], **asked})
        for protocol in PROTOCOLS
        for name in names
    ]
    for attempt in every:
        _ = attempt.recipe  # it refuses what no recipe can be
    return every


def _names(networks: str | Sequence[str]) -> list[str]:
    listed = networks.split(",") if isinstance(networks, str) else list(networks)
    names = [name.strip() for name in listed if name.strip()]
    if not names:
        raise UsageError("a reproduction needs a network", expected=f"--networks {','.join(IN_THE_TABLE)}, or others")
    return names


def starts(networks: Sequence[str], weights: str | Mapping[str, Path | str]) -> dict[str, str]:
    """Return what each network starts from: `imagenet`, `none`, a file, or another run's folder.

    `weights` is a mapping, or a text such as `imagenet`, `none`, `xception=FILE` or `none,resnet50=FILE`. A network
    that is not named starts from what is said for all, `imagenet` if nothing is; the baseline always from scratch.
    """
    common, own = _parsed(weights) if isinstance(weights, str) else ("imagenet", dict(weights))
    for name in own:
        if name not in networks:
            raise UsageError(
                f'weights are given for "{name}", which is not among the networks',
                received=", ".join(networks),
                way_out=did_you_mean(name, networks),
            )
    return {name: "none" if name == BASELINE else str(own.get(name, common)) for name in networks}


def _parsed(text: str) -> tuple[str, dict[str, str]]:
    common, own = "imagenet", {}
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        name, equals, where = entry.partition("=")
        if equals and name and where:
            own[name] = where
        elif entry in FOR_ALL:
            common = entry
        else:
            raise UsageError(
                f'no weights "{entry}" for all networks',
                expected="imagenet, none, or NETWORK=FILE for each network with weights of its own",
                way_out=did_you_mean(entry, FOR_ALL),
            )
    return common, own


def out_of_reach(network: str, start: str) -> str:
    """Return why the weights that `network` is to start from cannot be had, or an empty text when they can."""
    try:
        if start == "imagenet":
            imagenet_file(network)
        elif start != "none" and not Path(start).exists():
            raise LandmarksError(f"there are no weights {start}")
    except LandmarksError as error:
        return str(error)
    return ""


def changed(attempt: Attempt) -> list[str]:
    """Return in what an attempt differs from the study's training of that network, in words."""
    protocol, recipe, told = attempt.protocol, attempt.recipe, []
    if protocol != PROTOCOLS[0]:
        told += [f"split by {protocol.by}", f"recipe {protocol.recipe}"]
    if attempt.network in DROPPED:
        told.append("dropped by the study")
    elif attempt.network not in IN_THE_TABLE:
        told.append("not in the study")
    size = from_pretrained(pretrained_record(attempt.network)).image_size
    if recipe.image_size not in (None, size):
        told.append(f"{recipe.image_size} px, not {size}")
    epochs = recipe_named(protocol.recipe, backbone=attempt.network, weights=recipe.weights).epochs
    if recipe.epochs != epochs:
        told.append(f"{recipe.epochs} epoch{'' if recipe.epochs == 1 else 's'}, not {epochs}")
    if recipe.weights not in FOR_ALL:
        told.append(f"weights {Path(recipe.weights).name}")
    elif recipe.from_scratch and attempt.network != BASELINE:
        told.append("from scratch")
    return told
