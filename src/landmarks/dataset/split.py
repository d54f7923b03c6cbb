"""Divide a dataset into train, val and test, so that nothing in one part gives away what is asked in another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.dataset.corrections import add_corrections, read_corrections, remove_corrections
from landmarks.dataset.groups import RADIUS, RADIUS_ACROSS, Grouping, groups
from landmarks.dataset.manifest import PARTS, Dataset, open_dataset
from landmarks.support.console import note
from landmarks.support.errors import UsageError, did_you_mean
from landmarks.support.files import held
from landmarks.support.seeds import generator
from landmarks.support.tables import write_table

ENOUGH = 4
"""A landmark of so many photographs or more gets at least one in every part, where its groups allow it."""

SWALLOWED = 0.5
"""A group that holds more than this share of a landmark's photographs is reported."""

_TRAIN, _VAL, _TEST = range(3)


def split(
    data: Path | str,
    *,
    by: str = "group",
    val: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
    corrections: Path | str | None = None,
    keep_corrections: bool = True,
) -> Dataset:
    """Divide the photographs of a dataset folder; write `split.parquet` and the column `group`.

    `by="group"` puts whole groups (see `groups`) into one part, `by="random"` each photograph by itself. Either way it
    is done landmark by landmark, photographs that show nothing known included; `val` and `test` are shares, 0 for none.
    Every landmark keeps a training photograph. The leakage of this split and of a random one is printed and stored.
    `corrections` is a CSV of what photographs truly show (see `read_corrections`): it is kept beside the labels, added
    to earlier ones, and holds from here on; `keep_corrections=False` takes the earlier ones back.
    """
    if by not in ("group", "random"):
        raise UsageError(
            f'cannot split by "{by}"', expected="group or random", way_out=did_you_mean(by, ["group", "random"])
        )
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UsageError(
            "impossible shares", received=f"val {val}, test {test}", expected="0 or more, below 1 together"
        )
    with held(open_dataset(data).folder):
        dataset = _corrected(open_dataset(data), corrections, keep_corrections)
        grouping = groups(dataset.photos)
        at_random = divide(dataset.photos["landmark_id"], np.arange(len(dataset.photos)), val, test, seed)
        part = at_random
        if by == "group":
            part = divide(dataset.photos["landmark_id"], grouping.group, val, test, seed)
        rule = f"by {by}, val {val:g}, test {test:g}"
        return store_split(dataset, part, grouping, at_random, rule=rule, seed=seed)


def _corrected(dataset: Dataset, csv: Path | str | None, keep: bool) -> Dataset:
    """Return the dataset with the corrections asked for, and say how many there are."""
    if csv is not None:
        decided = read_corrections(dataset, csv)  # before anything is taken back, since it may not be readable
    if not keep:
        note(f"{remove_corrections(dataset):,} earlier corrections taken back")
        dataset = open_dataset(dataset.folder)
    if csv is not None:
        add_corrections(dataset, decided)
        note(f"{len(decided):,} decisions in {csv}" + ("" if len(decided) else ": no row of it is filled in"))
        dataset = open_dataset(dataset.folder)
    if len(dataset.corrections):
        corrected = len(dataset.corrected)
        confirmed = len(dataset.corrections) - corrected
        note(f"{corrected:,} labels corrected, {confirmed:,} confirmed; photos.parquet keeps them as fetched")
    return dataset


def divide(
    landmark_id: pl.Series, group: np.ndarray[Any, Any], val: float, test: float, seed: int
) -> np.ndarray[Any, Any]:
    """Return the part `(N,)` of each photograph (a position in `PARTS`); whole groups, landmark by landmark.

    A group belongs to the landmark that it shows most. Each landmark's groups are visited in an order drawn from
    (seed, landmark); each goes to test, else to val, where it still fits into that part's share, else to train.
    """
    photos = pl.DataFrame({"landmark": landmark_id, "group": group})
    shown = photos.group_by("group", "landmark").len().sort("len", "landmark", descending=[True, False])
    owners = shown.group_by("group", maintain_order=True).agg(pl.first("landmark"), size=pl.sum("len")).sort("group")
    part_of_group = np.zeros(len(owners), np.uint8)
    strata = owners.with_row_index("row").group_by("landmark").agg("row", "size").sort("landmark", nulls_last=True)
    for landmark, rows, sizes in strata.iter_rows():
        order = generator(seed, "split", "nothing known" if landmark is None else landmark).permutation(len(rows))
        part_of_group[np.asarray(rows)[order]] = _parts_of(np.asarray(sizes)[order], val, test)
    return _with_training(landmark_id, group, part_of_group)


def store_split(
    dataset: Dataset,
    part: np.ndarray[Any, Any],
    grouping: Grouping,
    at_random: np.ndarray[Any, Any],
    *,
    rule: str,
    seed: int | None,
) -> Dataset:
    """Write a split and its leakage beside a random one's, say what a reader should know, and open the dataset anew.

    `part` and `at_random` are positions in `PARTS`, in the order of `dataset.photos`. The caller holds the folder.
    """
    leakage = _leakage(grouping, part, at_random)
    swallowed = _swallowed(dataset.photos, grouping)
    photos = dataset.as_fetched().with_columns(group=pl.Series(grouping.group, dtype=pl.UInt32))
    write_table(dataset.folder / "photos.parquet", photos)
    table = photos.select("id", part=pl.Series(np.asarray(PARTS)[part], dtype=pl.String))
    write_table(
        dataset.folder / "split.parquet",
        table,
        rule=f"{rule}; near-duplicates within {RADIUS} of 64 bits at one landmark, {RADIUS_ACROSS} across landmarks",
        seed="" if seed is None else seed,
        leakage=json.dumps(leakage),
        corrected=len(dataset.corrected),
        swallowed=json.dumps(swallowed),
    )
    _tell(dataset, part, grouping, leakage, swallowed)
    return open_dataset(dataset.folder)


def _parts_of(sizes: np.ndarray[Any, Any], val: float, test: float) -> np.ndarray[Any, Any]:
    """Return the part of each of one landmark's groups, visited in the order given."""
    photographs = int(sizes.sum())
    part = np.zeros(len(sizes), np.uint8)
    wanted = [(which, share) for which, share in ((_TEST, test), (_VAL, val)) if share]
    left = {which: int(photographs * share + 0.5) for which, share in wanted}
    if photographs >= ENOUGH:
        left = {which: max(1, room) for which, room in left.items()}
    for position, size in enumerate(sizes[:-1]):  # the last one visited stays in train
        for which, room in left.items():
            if size <= room:
                part[position] = which
                left[which] -= int(size)
                break
    for which, _ in wanted:
        if photographs >= ENOUGH and which not in part:
            _give_smallest(part, sizes, which)
    return part


def _give_smallest(part: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], which: int) -> None:
    """Give the smallest training group to an empty part, unless train would keep less than half of the landmark."""
    training = np.flatnonzero(part == _TRAIN)
    smallest = training[np.argmin(sizes[training])]
    if 2 * (sizes[training].sum() - sizes[smallest]) >= sizes.sum():
        part[smallest] = which


def _with_training(
    landmark_id: pl.Series, group: np.ndarray[Any, Any], part_of_group: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the part of each photograph; a landmark left without training photographs gets its smallest group back.

    That happens only where a group shows several landmarks.
    """
    photos = pl.DataFrame({"landmark": landmark_id, "group": group}).drop_nulls()
    size = np.bincount(group)
    trained = photos.filter(pl.Series(part_of_group[photos["group"].to_numpy()] == _TRAIN))
    lacking = photos.join(trained, on="landmark", how="anti").unique().sort("landmark", "group")
    for (_,), rows in lacking.group_by("landmark", maintain_order=True):
        candidates = rows["group"].to_numpy()
        if not (part_of_group[candidates] == _TRAIN).any():
            part_of_group[candidates[np.argmin(size[candidates])]] = _TRAIN
    return np.asarray(part_of_group[group])


def _leakage(grouping: Grouping, part: np.ndarray[Any, Any], at_random: np.ndarray[Any, Any]) -> dict[str, int]:
    """Return what a split gives away: near-duplicates in two parts, photographs of val and test with kin in train."""
    return {
        "near_duplicate_pairs": grouping.near_duplicates,
        "straddling_pairs": grouping.straddling(part),
        "straddling_pairs_random": grouping.straddling(at_random),
        "held_out_with_kin_in_train": _with_kin(grouping.group, part),
        "held_out_with_kin_in_train_random": _with_kin(grouping.group, at_random),
    }


def _with_kin(group: np.ndarray[Any, Any], part: np.ndarray[Any, Any]) -> int:
    """Return how many photographs of val and test share a group with a training photograph."""
    return int(np.isin(group[part != _TRAIN], group[part == _TRAIN]).sum())


def _swallowed(photos: pl.DataFrame, grouping: Grouping) -> list[dict[str, Any]]:
    """Return landmarks of which one group holds more than `SWALLOWED`, the largest share first."""
    shown = photos.select("landmark_id", group=pl.Series(grouping.group)).drop_nulls("landmark_id")
    counts = shown.group_by("landmark_id", "group").len()
    counts = counts.with_columns(photographs=pl.sum("len").over("landmark_id"))
    large = counts.filter(pl.col("photographs") >= ENOUGH, pl.col("len") > SWALLOWED * pl.col("photographs"))
    large = large.with_columns(share=pl.col("len") / pl.col("photographs"))
    large = large.sort("share", "landmark_id", descending=[True, False])
    return large.select("landmark_id", "photographs", in_one_group="len").to_dicts()


def _tell(
    dataset: Dataset,
    part: np.ndarray[Any, Any],
    grouping: Grouping,
    leakage: dict[str, int],
    swallowed: list[dict[str, Any]],
) -> None:
    counts = np.bincount(part, minlength=len(PARTS))
    note(", ".join(f"{name} {count:,}" for name, count in zip(PARTS, counts, strict=True)) + " photographs")
    note(
        f"{grouping.count:,} groups; of {leakage['near_duplicate_pairs']:,} near-duplicate pairs"
        f" {leakage['straddling_pairs']:,} straddle this split, {leakage['straddling_pairs_random']:,} a random one;"
        f" {leakage['held_out_with_kin_in_train']:,} photographs of val and test have kin in train,"
        f" {leakage['held_out_with_kin_in_train_random']:,} at random"
    )
    landmark_of, size = dataset.photos["landmark_id"], dataset.photos["landmark_id"].drop_nulls().value_counts()
    alone = int((size["count"] == 1).sum())
    if alone:
        note(f"{alone:,} landmarks have a single photograph, which is in train")
    for which, name in ((_VAL, "val"), (_TEST, "test")):
        absent = len(size) - landmark_of.filter(pl.Series(part == which)).drop_nulls().n_unique()
        if counts[which] and absent:
            note(f"{absent:,} landmarks have no photograph in {name}")
    for one in swallowed[:5]:
        label = dataset.labels.filter(pl.col("landmark_id") == one["landmark_id"])["name"]
        name = label[0] if len(label) else one["landmark_id"]
        note(f"one group holds {one['in_one_group']:,} of the {one['photographs']:,} photographs of {name}")
    if len(swallowed) > 5:
        note(f"and so for {len(swallowed) - 5:,} more landmarks")
