"""The two ways in which each network is trained and judged, and the data as each of them divides it.

A dataset folder holds one division into splits, and two are needed. Each protocol therefore gets a dataset folder of
its own, which holds tables only: its `images.parquet` names the shards of the original by their whole paths, so that no
image is copied and the original is left as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import REJECTED, SPLITS, Dataset, open_dataset, write_dataset
from landmarks.dataset.split import split
from landmarks.dataset.trust import AT_AN_ADDRESS, IMAGES_IN
from landmarks.models.backbones import BASELINE, pretrained_record
from landmarks.models.preprocessing import from_pretrained
from landmarks.models.weights import imagenet_file
from landmarks.support.console import options, say, step
from landmarks.support.disk import remove_file
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.files import digest_of, read_record
from landmarks.support.places import Place
from landmarks.support.tables import read_metadata, read_table
from landmarks.training.recipe import Recipe, recipe_named
from landmarks.training.training_images import check_data

VAL, TEST = 0.15, 0.15
"""Shares of the images that are kept out of training; the study's own are not known here."""


@dataclass(frozen=True)
class Protocol:
    """One way to train and to judge: its name is that of the folder its runs are in."""

    name: str
    by: str  # how the images are divided, see `split`; also the name of the dataset's folder
    recipe: str
    meaning: str  # in a sentence


PROTOCOLS = (
    Protocol(
        name="study",
        by="random",
        recipe="study",
        meaning="the study's way: parts drawn image by image, recipe study",
    ),
    Protocol(
        name="corrected",
        by="group",
        recipe="default",
        meaning="near-duplicates, and what one author took of one landmark, in one split; recipe default",
    ),
)
"""The study's first, as its table is what is reproduced."""


def divided(source: Dataset, folder: Path, protocol: Protocol, seed: int) -> Dataset:
    """Return the images of `source` as a dataset in `folder`, divided as `protocol` says.

    What an earlier call made is used again. Raises `LandmarksError` when there would be nothing to train on, to
    validate with or to test on.
    """
    dataset = by_reference(source, folder)
    if dataset.splits is None or not _is_divided(folder, protocol, seed):
        shares: dict[str, Any] = {"by": protocol.by, "val": VAL, "test": TEST, "seed": seed}
        step(["split", folder, *options(shares)], split, folder, **shares)
        dataset = open_dataset(folder)
    if empty := [name for name in SPLITS if not dataset.split(name)["label"].count()]:
        raise LandmarksError(
            f"{source.folder} cannot be divided by {protocol.by}: nothing is left for {' and '.join(empty)}",
            received=f"{len(source.images)} images of {len(source.labels)} landmarks",
            expected="more images of each",
        )
    check_data(dataset)
    return dataset


def _is_divided(folder: Path, protocol: Protocol, seed: int) -> bool:
    """Return whether the splits in `folder` are the protocol's, and nobody has divided it otherwise meanwhile."""
    kept = read_metadata(folder / "splits.parquet")
    return kept["rule"].startswith(f"by {protocol.by}, val {VAL:g}, test {TEST:g};") and kept["seed"] == str(seed)


def by_reference(source: Dataset, folder: Path) -> Dataset:
    """Return a dataset in `folder`, without splits at first, of the images of `source`, which stay where they are.

    Where `source` has moved since an earlier call, the dataset is written and divided again.
    """
    elsewhere = source.images_in
    paths = {shard: source.path_of(shard) for shard in source.images["shard"].unique()}
    places = {shard: str(path.resolve() if elsewhere is None else path) for shard, path in paths.items()}
    left: dict[str, Any] = {IMAGES_IN: str(elsewhere or source.folder.resolve())}
    if source.address is not None:
        places, left = {shard: shard for shard in paths}, {name: source.record[name] for name in AT_AN_ADDRESS}
    images = source.images.with_columns(pl.col("shard").replace_strict(places, return_dtype=pl.String))
    offsets = hashlib.blake2b(images["offset"].to_numpy().tobytes()).hexdigest()  # as text, millions are gigabytes
    inputs = digest_of(source.content_digest, sorted(places.items()), offsets)
    if (folder / "dataset.json").exists() and read_record(folder / "dataset.json")["inputs"] == inputs:
        return open_dataset(folder)
    say(f"{folder}: the images of {source.folder}, which stay where they are")
    remove_file(folder / "splits.parquet")
    kept = ("set", "origin", "rule", "max_side", "identified_by")
    about = {name: value for name, value in source.record.items() if name in kept}
    return write_dataset(
        folder,
        verb="reproduce",
        images=images,
        labels=source.labels,
        rejected=read_table(source.folder / "rejected.parquet", REJECTED),
        record={**about, **left},
        inputs=inputs,
    )


# ── What the study published, as far as it is known here: its networks, its data and its figures ────────────────────


IN_THE_TABLE = ("baseline", "resnet18", "resnet50", "xception", "inception_v3")
"""The networks of the study's table, in its order: the baseline from scratch, the others from ImageNet."""

DROPPED = ("inception_resnet_v2", "nasnet_large")
"""Networks that the study began with and gave up for want of memory."""

LANDMARKS, IMAGES = 20, 15_636
"""Its data: 20 of the 100 landmarks at the ranks 50 to 149, drawn once."""

_FIGURES = {"xception": (0.8595, 0.8531)}


def published(network: str) -> dict[str, float | None] | None:
    """Return the study's top-1 `validation` and `test` accuracy of a network.

    The shares are None where its table's figure is not known here; None for a network that is not in its table.
    """
    if network not in IN_THE_TABLE:
        return None
    validation, test = _FIGURES.get(network, (None, None))
    return {"validation": validation, "test": test}


# Which trainings a reproduction consists of, what each starts from, and in what it differs from the study's.


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
    weights: str | Mapping[str, Place],
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


def starts(networks: Sequence[str], weights: str | Mapping[str, Place]) -> dict[str, str]:
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
