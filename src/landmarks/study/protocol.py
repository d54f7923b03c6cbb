"""The two ways in which each network is trained and judged, and the data as each of them divides it.

A dataset folder holds one division into parts, and two are needed. Each protocol therefore gets a dataset folder of its
own, which holds tables only: its `photos.parquet` names the shards of the original by their whole paths, so that no
photograph is copied and the original is left as it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from landmarks.dataset.manifest import PARTS, REJECTED, Dataset, open_dataset, write_dataset
from landmarks.dataset.split import split
from landmarks.study.steps import options, say, step
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of, read_record
from landmarks.support.tables import read_metadata, read_table
from landmarks.training.checks import check_data

VAL, TEST = 0.15, 0.15
"""Shares of the photographs that are kept out of training; the study's own are not known here."""


@dataclass(frozen=True)
class Protocol:
    """One way to train and to judge: its name is that of the folder its runs are in."""

    name: str
    by: str  # how the photographs are divided, see `split`; also the name of the dataset's folder
    recipe: str
    meaning: str  # in a sentence


PROTOCOLS = (
    Protocol(
        name="study",
        by="random",
        recipe="study",
        meaning="the study's way: parts drawn photograph by photograph, recipe study",
    ),
    Protocol(
        name="corrected",
        by="group",
        recipe="default",
        meaning="near-duplicates, and what one author took of one landmark, in one part; recipe default",
    ),
)
"""The study's first, as its table is what is reproduced."""


def divided(source: Dataset, folder: Path, protocol: Protocol, seed: int) -> Dataset:
    """Return the photographs of `source` as a dataset in `folder`, divided as `protocol` says.

    What an earlier call made is used again. Raises `LandmarksError` when there would be nothing to train on, to
    validate with or to test on.
    """
    dataset = by_reference(source, folder)
    if dataset.split is None or not _is_divided(folder, protocol, seed):
        shares: dict[str, object] = {"by": protocol.by, "val": VAL, "test": TEST, "seed": seed}
        step(["split", folder, *options(shares)], split, folder, **shares)
        dataset = open_dataset(folder)
    if empty := [part for part in PARTS if not dataset.part(part)["label"].count()]:
        raise LandmarksError(
            f"{source.folder} cannot be divided by {protocol.by}: nothing is left for {' and '.join(empty)}",
            received=f"{len(source.photos)} photographs of {len(source.labels)} landmarks",
            expected="more photographs of each",
        )
    check_data(dataset)
    return dataset


def _is_divided(folder: Path, protocol: Protocol, seed: int) -> bool:
    """Return whether the parts in `folder` are the protocol's, and nobody has divided it otherwise meanwhile."""
    kept = read_metadata(folder / "split.parquet")
    return kept["rule"].startswith(f"by {protocol.by}, val {VAL:g}, test {TEST:g};") and kept["seed"] == str(seed)


def by_reference(source: Dataset, folder: Path) -> Dataset:
    """Return a dataset in `folder`, without parts at first, of the photographs of `source`, which stay where they are.

    Where `source` has moved since an earlier call, the dataset is written and divided again.
    """
    places = {shard: str(source.path_of(shard).resolve()) for shard in source.photos["shard"].unique()}
    photos = source.photos.with_columns(pl.col("shard").replace_strict(places, return_dtype=pl.String))
    offsets = hashlib.blake2b(photos["offset"].to_numpy().tobytes()).hexdigest()  # as text, millions are gigabytes
    inputs = digest_of(source.content_digest, sorted(places.items()), offsets)
    if (folder / "dataset.json").exists() and read_record(folder / "dataset.json")["inputs"] == inputs:
        return open_dataset(folder)
    say(f"{folder}: the photographs of {source.folder}, which stay where they are")
    (folder / "split.parquet").unlink(missing_ok=True)
    kept = ("set", "origin", "rule", "max_side", "identified_by")
    about = {name: value for name, value in source.record.items() if name in kept}
    return write_dataset(
        folder,
        verb="reproduce",
        photos=photos,
        labels=source.labels,
        rejected=read_table(source.folder / "rejected.parquet", REJECTED),
        record={**about, "photographs_in": str(source.folder.resolve())},
        inputs=inputs,
    )
