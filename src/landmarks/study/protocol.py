"""The two protocols by which each network is trained and evaluated, and the data divided for each of them.

A dataset folder holds only one division into splits. Each protocol therefore gets a dataset folder of its own, with
tables only: its `images.parquet` refers to the original's shards by absolute paths, so that no image is copied and the
original remains unchanged.
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
from landmarks.models.backbones import BASELINE, names_of_parts, pretrained_record
from landmarks.models.preprocessing import from_pretrained
from landmarks.models.weights import imagenet_file
from landmarks.support.console import command_options, note_after_gap, run_step
from landmarks.support.disk import remove_file
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.files import digest_of, read_record
from landmarks.support.places import Place
from landmarks.support.tables import read_metadata, read_table
from landmarks.training.own_data import check_data
from landmarks.training.recipe import Recipe, recipe_named

VAL, TEST = 0.15, 0.15
"""Shares of each landmark's images for validation and test; the study's own shares are not known here."""


@dataclass(frozen=True)
class Protocol:
    """A way to train and evaluate networks; `name` is also that of the folder of its runs."""

    name: str
    by: str  # how images are divided, see `split`; also the name of the dataset's folder
    recipe: str
    meaning: str  # a sentence for the report


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
"""The study's own protocol comes first."""


def divided(source: Dataset, folder: Path, protocol: Protocol, seed: int) -> Dataset:
    """Return a dataset in `folder` of the images of `source`, divided by `protocol`.

    The result of an earlier call is reused. Raises `LandmarksError` when a split would hold no known image.
    """
    dataset = by_reference(source, folder)
    if dataset.splits is None or not _is_divided(folder, protocol, seed):
        shares: dict[str, Any] = {"by": protocol.by, "val": VAL, "test": TEST, "seed": seed}
        run_step(["split", folder, *command_options(shares)], split, folder, **shares)
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
    """Return whether the splits in `folder` are still those of the protocol and the seed."""
    metadata = read_metadata(folder / "splits.parquet")
    rule = f"by {protocol.by}, val {VAL:g}, test {TEST:g};"
    return metadata["rule"].startswith(rule) and metadata["seed"] == str(seed)


def by_reference(source: Dataset, folder: Path) -> Dataset:
    """Return a dataset in `folder` that refers to the images of `source`; a new one has no splits.

    If `source` has moved since an earlier call, the dataset is written again, without splits.
    """
    images_in = source.images_in
    paths = {shard: source.path_of(shard) for shard in source.images["shard"].unique()}
    shards = {shard: str(path.resolve() if images_in is None else path) for shard, path in paths.items()}
    reference: dict[str, Any] = {IMAGES_IN: str(images_in or source.folder.resolve())}
    if source.address is not None:
        shards, reference = {shard: shard for shard in paths}, {name: source.record[name] for name in AT_AN_ADDRESS}
    images = source.images.with_columns(pl.col("shard").replace_strict(shards, return_dtype=pl.String))
    offsets = hashlib.blake2b(images["offset"].to_numpy().tobytes()).hexdigest()  # as JSON, millions take gigabytes
    inputs = digest_of(source.content_digest, sorted(shards.items()), offsets)
    if (folder / "dataset.json").exists() and read_record(folder / "dataset.json")["inputs"] == inputs:
        return open_dataset(folder)
    note_after_gap(f"{folder}: the images of {source.folder}, which stay where they are")
    remove_file(folder / "splits.parquet")
    copied = ("set", "origin", "rule", "max_side", "identified_by")
    record = {name: value for name, value in source.record.items() if name in copied}
    return write_dataset(
        folder,
        verb="reproduce",
        images=images,
        labels=source.labels,
        rejected=read_table(source.folder / "rejected.parquet", REJECTED),
        record={**record, **reference},
        inputs=inputs,
    )


# ── What the study published, as far as it is known here: its networks, its data and its results ────────────────────


IN_THE_TABLE = ("baseline", "resnet18", "resnet50", "xception", "inception_v3")
"""The networks of the study's table, in its order: the baseline from scratch, the others from ImageNet."""

DROPPED = ("inception_resnet_v2", "nasnet_large")
"""Networks that the study began with and gave up because memory was too small."""

LANDMARKS, IMAGES = 20, 15_636
"""The size of the study's data: 20 landmarks, drawn once from the 100 at ranks 50 to 149."""

_PUBLISHED_ACCURACY = {"xception": (0.8595, 0.8531)}


def published(network: str) -> dict[str, float | None] | None:
    """Return the study's top-1 accuracy of a network on `validation` and `test`, or None if it has not this network.

    Values that are not known here are None.
    """
    if network not in IN_THE_TABLE:
        return None
    validation, test = _PUBLISHED_ACCURACY.get(network, (None, None))
    return {"validation": validation, "test": test}


# The trainings of a reproduction, the weights that each starts from, and its differences from the study's.


FOR_ALL = ("imagenet", "none")
"""Weights that can be given for all networks at once."""


@dataclass(frozen=True)
class Attempt:
    """The training of one network by one protocol; `settings` are the arguments of `train`."""

    protocol: Protocol
    network: str
    settings: dict[str, Any]

    def run(self, folder: Path) -> Path:
        """Return the folder of its run in the reproduction's `folder`."""
        return folder / self.protocol.name / self.network

    @property
    def recipe(self) -> Recipe:
        """The complete recipe of the training."""
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
    """Return all trainings, protocol by protocol; what is None is left to the protocol's recipe.

    `networks` are names, or a string of names separated by commas; for `weights` see `starting_weights`. Raises
    `UsageError` for unknown names and invalid settings.
    """
    names = list(dict.fromkeys(_names(networks)))
    for name in names:
        pretrained_record(name)  # raises for an unknown network
    starts = starting_weights(names, weights)
    options = {"image_size": image_size, "epochs": epochs, "seed": seed}
    settings = {name: value for name, value in options.items() if value is not None}
    trainings = [
        Attempt(protocol, name, {"recipe": protocol.recipe, "backbone": name, "weights": starts[name], **settings})
        for protocol in PROTOCOLS
        for name in names
    ]
    for attempt in trainings:
        _ = attempt.recipe  # raises for invalid settings
    return trainings


def _names(networks: str | Sequence[str]) -> list[str]:
    entries = networks.split(",") if isinstance(networks, str) else networks
    names = [entry.strip() for entry in entries if entry.strip()]
    if not names:
        raise UsageError("a reproduction needs a network", expected=f"--networks {','.join(IN_THE_TABLE)}, or others")
    return names


def starting_weights(networks: Sequence[str], weights: str | Mapping[str, Place]) -> dict[str, str]:
    """Return the weights that each network starts from: `imagenet`, `none`, a file, or another run's folder.

    `weights` is a mapping, or a string such as `imagenet`, `none`, `xception=FILE` or `none,resnet50=FILE`. Networks
    that it does not name start from its common entry, `imagenet` by default; the baseline always from scratch.
    """
    common, own = _parse_weights(weights) if isinstance(weights, str) else ("imagenet", dict(weights))
    for name in own:
        if name not in networks:
            raise UsageError(
                f'weights are given for "{name}", which is not among the networks',
                received=", ".join(networks),
                way_out=did_you_mean(name, networks),
            )
    return {name: "none" if name == BASELINE else str(own.get(name, common)) for name in networks}


def _parse_weights(text: str) -> tuple[str, dict[str, str]]:
    """Return the weights for all networks, and those of single networks by name."""
    common, own = "imagenet", {}
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        name, _, file = entry.partition("=")
        if name and file:
            own[name] = file
        elif entry in FOR_ALL:
            common = entry
        else:
            raise UsageError(
                f'no weights "{entry}" for all networks',
                expected="imagenet, none, or NETWORK=FILE for each network with weights of its own",
                way_out=did_you_mean(entry, FOR_ALL),
            )
    return common, own


def weights_problem(network: str, start: str) -> str:
    """Return why the weights that `network` starts from are not available, or an empty string when they are."""
    try:
        if start == "imagenet":
            for name in names_of_parts(network):
                imagenet_file(name)
        elif start != "none" and not Path(start).exists():
            raise LandmarksError(f"there are no weights {start}")
    except LandmarksError as error:
        return str(error)
    return ""


def differences_from_study(attempt: Attempt) -> list[str]:
    """Return descriptions of all differences from the study's training of this network."""
    protocol, recipe, differences = attempt.protocol, attempt.recipe, []
    if protocol != PROTOCOLS[0]:
        differences += [f"split by {protocol.by}", f"recipe {protocol.recipe}"]
    if attempt.network in DROPPED:
        differences.append("dropped by the study")
    elif attempt.network not in IN_THE_TABLE:
        differences.append("not in the study")
    size = from_pretrained(pretrained_record(attempt.network)).image_size
    if recipe.image_size not in (None, size):
        differences.append(f"{recipe.image_size} px, not {size}")
    epochs = recipe_named(protocol.recipe, backbone=attempt.network, weights=recipe.weights).epochs
    if recipe.epochs != epochs:
        differences.append(f"{recipe.epochs} epoch{'' if recipe.epochs == 1 else 's'}, not {epochs}")
    if recipe.weights not in FOR_ALL:
        differences.append(f"weights {Path(recipe.weights).name}")
    elif recipe.from_scratch and attempt.network != BASELINE:
        differences.append("from scratch")
    return differences
