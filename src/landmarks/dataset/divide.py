"""Which split each image goes to: whole groups, landmark by landmark, by shares; what has a split keeps it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from landmarks.support.seeds import generator

ENOUGH = 4
"""A landmark of so many images or more gets at least one in every split, where its groups allow it."""

NOT_YET = -1
"""Stands for the split of an image that has none."""

TRAIN, VAL, TEST = range(3)

FROM_SOURCE = "source"


@dataclass(frozen=True)
class Rule:
    """How the images of a dataset are divided, as `splits.parquet` keeps it for whatever is added later."""

    by: str  # group, random, or source: every split is as it came with the images
    val: float  # shares
    test: float  # 0 where the test split is kept
    seed: int | None
    test_kept: str = ""  # source or split: the test split came with the images, or is that of an earlier split

    @property
    def test_is_given(self) -> bool:
        """Whether there is a test split that came with the images."""
        return self.test_kept == FROM_SOURCE or (self.by == FROM_SOURCE and self.test > 0)

    def __str__(self) -> str:
        if self.by == FROM_SOURCE:
            return "kept from the source"
        if self.test_kept:
            origin = "the source" if self.test_kept == FROM_SOURCE else "an earlier split"
            return f"test kept from {origin}, val {self.val:g} of the others by {self.by}"
        return f"by {self.by}, val {self.val:g}, test {self.test:g}"

    def record(self) -> dict[str, object]:
        """Return this as metadata of a table."""
        seed = "" if self.seed is None else self.seed
        return {"by": self.by, "val": self.val, "test": self.test, "seed": seed, "test_kept": self.test_kept}


def rule_of(metadata: Mapping[str, str], splits: pl.Series) -> Rule:
    """Return the rule in a split's metadata; where an older one holds words only, with the shares that `splits`
    have."""
    seed, told = metadata.get("seed", ""), metadata.get("rule", "")
    if "by" in metadata:
        val, test = float(metadata["val"]), float(metadata["test"])
        return Rule(metadata["by"], val, test, int(seed) if seed else None, metadata.get("test_kept", ""))
    by = "random" if told.startswith("by random") else "group"
    by = FROM_SOURCE if told.startswith("kept from the source") else by
    shares = re.match(r"by \w+, val ([\d.e-]+), test ([\d.e-]+)", told)
    if shares is not None:
        val, test = float(shares[1]), float(shares[2])
    else:
        val, test = (float((splits == name).mean() or 0) for name in ("val", "test"))  # type: ignore[arg-type]
    return Rule(by, val, test, int(seed) if seed else None)


def divide(
    landmark_id: pl.Series,
    group: np.ndarray[Any, Any],
    val: float,
    test: float,
    seed: int,
    *,
    known: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:
    """Return the split `(N,)` of each image (a position in `SPLITS`); whole groups, landmark by landmark.

    A group belongs to the landmark that it shows most. Each landmark's groups are visited in an order drawn from
    (seed, landmark); each goes to test, else to val, where it still fits into that split's share, else to train. Where
    `known` `(N,)` tells the split of some images already (`NOT_YET` for the others), they keep it and take up its
    share, and what shares a group with them joins the split in which most of the group is.
    """
    known = np.full(len(group), NOT_YET) if known is None else known
    group = np.unique(group, return_inverse=True)[1]
    split_of_group, free = _parts_of_known(group, known)
    images = pl.DataFrame({"landmark": landmark_id, "group": group})
    shown = images.group_by("group", "landmark").len().sort("len", "landmark", descending=[True, False])
    owners = shown.group_by("group", maintain_order=True).agg(pl.first("landmark"), size=pl.sum("len")).sort("group")
    owners = owners.with_columns(free=pl.Series(free), **_sizes_of_known(group, known, split_of_group, free))
    of_landmarks = owners.with_row_index("row").group_by("landmark")
    strata = of_landmarks.agg(pl.col("row", "size").filter("free"), pl.col("train", "val", "test").sum())
    for landmark, rows, sizes, *taken in strata.sort("landmark", nulls_last=True).iter_rows():
        order = generator(seed, "split", "nothing known" if landmark is None else landmark).permutation(len(rows))
        visited = np.asarray(sizes, np.int64)[order]
        split_of_group[np.asarray(rows, np.int64)[order]] = _parts_of(visited, val, test, np.asarray(taken, np.int64))
    assigned = _with_training(landmark_id, group, split_of_group, free)
    return np.asarray(np.where(known == NOT_YET, assigned, known), np.uint8)


def _parts_of_known(
    group: np.ndarray[Any, Any], known: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the split `(G,)` in which most of each group is, train if in several alike, and which groups have none."""
    divided = known != NOT_YET
    counts = np.bincount(group[divided] * 3 + known[divided], minlength=3 * (int(group.max(initial=-1)) + 1))
    counts = counts.reshape(-1, 3)
    return counts.argmax(axis=1).astype(np.uint8), counts.sum(axis=1) == 0


def _sizes_of_known(
    group: np.ndarray[Any, Any],
    known: np.ndarray[Any, Any],
    split_of_group: np.ndarray[Any, Any],
    free: np.ndarray[Any, Any],
) -> dict[str, pl.Series]:
    """Return how many images `(G,)` of each group are in train, val and test already, or join them there."""
    assigned = np.where(known == NOT_YET, split_of_group[group], known)
    fixed = ~free[group]
    counts = np.bincount(group[fixed] * 3 + assigned[fixed], minlength=3 * len(free)).reshape(-1, 3)
    return {name: pl.Series(counts[:, which]) for which, name in enumerate(("train", "val", "test"))}


def _parts_of(
    sizes: np.ndarray[Any, Any], val: float, test: float, taken: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the split of each of one landmark's groups, visited in the order given.

    `taken` says how many of its images are in train, val and test already.
    """
    images = int(sizes.sum() + taken.sum()) - (0 if test else int(taken[TEST]))  # a kept test split is apart
    assigned = np.zeros(len(sizes), np.uint8)
    wanted = [(which, share) for which, share in ((TEST, test), (VAL, val)) if share]
    left = {which: int(images * share + 0.5) for which, share in wanted}
    if images >= ENOUGH:
        left = {which: max(1, room) for which, room in left.items()}
    left = {which: room - int(taken[which]) for which, room in left.items()}
    to_visit = sizes if taken[TRAIN] else sizes[:-1]  # else the last one stays in train
    for position, size in enumerate(to_visit):
        for which, room in left.items():
            if size <= room:
                assigned[position] = which
                left[which] -= int(size)
                break
    for which, _ in wanted:
        if images >= ENOUGH and which not in assigned and not taken[which]:
            _give_smallest(assigned, sizes, which, taken)
    return assigned


def _give_smallest(
    assigned: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], which: int, taken: np.ndarray[Any, Any]
) -> None:
    """Give the smallest training group to an empty split, unless train would keep less than half of the landmark."""
    training = np.flatnonzero(assigned == TRAIN)
    if not len(training):
        return
    smallest = training[np.argmin(sizes[training])]
    stay = taken[TRAIN] + sizes[training].sum() - sizes[smallest]
    if 2 * stay >= sizes.sum() + taken.sum():
        assigned[smallest] = which


def _with_training(
    landmark_id: pl.Series,
    group: np.ndarray[Any, Any],
    split_of_group: np.ndarray[Any, Any],
    free: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """Return the split of each image; a landmark left without training images gets its smallest group back.

    That happens only where a group shows several landmarks.
    """
    images = pl.DataFrame({"landmark": landmark_id, "group": group}).drop_nulls()
    size = np.bincount(group)
    trained = images.filter(pl.Series(split_of_group[images["group"].to_numpy()] == TRAIN))
    lacking = images.join(trained, on="landmark", how="anti").unique().sort("landmark", "group")
    for (_,), rows in lacking.group_by("landmark", maintain_order=True):
        candidates = rows["group"].to_numpy()
        candidates = candidates[free[candidates]]
        if len(candidates) and not (split_of_group[candidates] == TRAIN).any():
            split_of_group[candidates[np.argmin(size[candidates])]] = TRAIN
    return np.asarray(split_of_group[group])
