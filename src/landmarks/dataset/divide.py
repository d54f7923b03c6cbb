"""The split of each image: whole groups, landmark by landmark, in given shares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from landmarks.support.seeds import generator

MIN_IMAGES_TO_SPLIT = 4
"""A landmark with at least this many images gets one or more in every split, if its groups allow it."""

UNASSIGNED = -1
"""The split of an image that has none yet."""

TRAIN, VAL, TEST = range(3)

FROM_SOURCE = "source"


@dataclass(frozen=True)
class SplitRule:
    """How the images of a dataset are divided; `splits.parquet` keeps it for images that are added later."""

    by: str  # group, random, or source: all splits came with the images
    val: float  # shares
    test: float  # 0 if the test split is kept
    seed: int | None
    test_kept: str = ""  # source or split: the test split came with the images, or was kept from an earlier split

    @property
    def test_from_source(self) -> bool:
        """Whether the test split came with the images."""
        return self.test_kept == FROM_SOURCE or (self.by == FROM_SOURCE and self.test > 0)

    def __str__(self) -> str:
        if self.by == FROM_SOURCE:
            return "kept from the source"
        if self.test_kept:
            origin = "the source" if self.test_kept == FROM_SOURCE else "an earlier split"
            return f"test kept from {origin}, val {self.val:g} of the others by {self.by}"
        return f"by {self.by}, val {self.val:g}, test {self.test:g}"

    def record(self) -> dict[str, object]:
        """Return the rule as metadata of a table."""
        seed = "" if self.seed is None else self.seed
        return {"by": self.by, "val": self.val, "test": self.test, "seed": seed, "test_kept": self.test_kept}


def rule_from_metadata(metadata: Mapping[str, str], splits: pl.Series) -> SplitRule:
    """Return the rule in the metadata of `splits.parquet`.

    Earlier versions stored it as a sentence only; shares that the sentence lacks are those of the column `splits`.
    """
    seed, sentence = metadata.get("seed", ""), metadata.get("rule", "")
    if "by" in metadata:
        val, test = float(metadata["val"]), float(metadata["test"])
        return SplitRule(metadata["by"], val, test, int(seed) if seed else None, metadata.get("test_kept", ""))
    by = "random" if sentence.startswith("by random") else "group"
    by = FROM_SOURCE if sentence.startswith("kept from the source") else by
    shares = re.match(r"by \w+, val ([\d.e-]+), test ([\d.e-]+)", sentence)
    if shares is not None:
        val, test = float(shares[1]), float(shares[2])
    else:
        val, test = (float((splits == name).mean() or 0) for name in ("val", "test"))  # type: ignore[arg-type]
    return SplitRule(by, val, test, int(seed) if seed else None)


def divide(
    landmark_id: pl.Series,
    group: np.ndarray[Any, Any],
    val: float,
    test: float,
    seed: int,
    *,
    fixed: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:
    """Return the split `(N,)` of each image, as a position in `SPLITS`; whole groups, landmark by landmark.

    A group belongs to the landmark that most of its images show. Each landmark's groups are visited in an order drawn
    from (seed, landmark). A group goes to test or else to val if it still fits into that split's share, otherwise to
    train.

    `fixed` `(N,)` holds the splits of images that keep theirs, and `UNASSIGNED` for the others. Fixed images count
    towards their split's share; other images of their group join the split that holds most of the group.
    """
    fixed = np.full(len(group), UNASSIGNED) if fixed is None else fixed
    group = np.unique(group, return_inverse=True)[1]
    split_of_group, free = _splits_of_fixed(group, fixed)
    images = pl.DataFrame({"landmark": landmark_id, "group": group})
    shown = images.group_by("group", "landmark").len().sort("len", "landmark", descending=[True, False])
    owners = shown.group_by("group", maintain_order=True).agg(pl.first("landmark"), size=pl.sum("len")).sort("group")
    owners = owners.with_columns(free=pl.Series(free), **_sizes_of_fixed(group, fixed, split_of_group, free))
    of_landmarks = owners.with_row_index("row").group_by("landmark")
    strata = of_landmarks.agg(pl.col("row", "size").filter("free"), pl.col("train", "val", "test").sum())
    for landmark, rows, sizes, *taken in strata.sort("landmark", nulls_last=True).iter_rows():
        order = generator(seed, "split", "nothing known" if landmark is None else landmark).permutation(len(rows))
        visited = np.asarray(sizes, np.int64)[order]
        split_of_group[np.asarray(rows, np.int64)[order]] = _splits_of(visited, val, test, np.asarray(taken, np.int64))
    assigned = _with_training_images(landmark_id, group, split_of_group, free)
    return np.asarray(np.where(fixed == UNASSIGNED, assigned, fixed), np.uint8)


def _splits_of_fixed(
    group: np.ndarray[Any, Any], fixed: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the split `(G,)` that holds most fixed images of each group, and which groups `(G,)` have none.

    Of splits that hold equally many, the first in the order train, val, test.
    """
    has_split = fixed != UNASSIGNED
    counts = np.bincount(group[has_split] * 3 + fixed[has_split], minlength=3 * (int(group.max(initial=-1)) + 1))
    counts = counts.reshape(-1, 3)
    return counts.argmax(axis=1).astype(np.uint8), counts.sum(axis=1) == 0


def _sizes_of_fixed(
    group: np.ndarray[Any, Any],
    fixed: np.ndarray[Any, Any],
    split_of_group: np.ndarray[Any, Any],
    free: np.ndarray[Any, Any],
) -> dict[str, pl.Series]:
    """Return the number of images `(G,)` that each group with fixed images has in train, val and test."""
    assigned = np.where(fixed == UNASSIGNED, split_of_group[group], fixed)
    settled = ~free[group]
    counts = np.bincount(group[settled] * 3 + assigned[settled], minlength=3 * len(free)).reshape(-1, 3)
    return {name: pl.Series(counts[:, which]) for which, name in enumerate(("train", "val", "test"))}


def _splits_of(
    sizes: np.ndarray[Any, Any], val: float, test: float, taken: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the split of each of one landmark's groups, visited in the order of `sizes`.

    `taken` `(3,)` is the number of its images that are in train, val and test already.
    """
    images = int(sizes.sum() + taken.sum()) - (0 if test else int(taken[TEST]))  # a kept test split does not count
    assigned = np.zeros(len(sizes), np.uint8)
    wanted = [(which, share) for which, share in ((TEST, test), (VAL, val)) if share]
    left = {which: int(images * share + 0.5) for which, share in wanted}
    if images >= MIN_IMAGES_TO_SPLIT:
        left = {which: max(1, room) for which, room in left.items()}
    left = {which: room - int(taken[which]) for which, room in left.items()}
    to_visit = sizes if taken[TRAIN] else sizes[:-1]  # with no image in train yet, the last group stays there
    for position, size in enumerate(to_visit):
        for which, room in left.items():
            if size <= room:
                assigned[position] = which
                left[which] -= int(size)
                break
    for which, _ in wanted:
        if images >= MIN_IMAGES_TO_SPLIT and which not in assigned and not taken[which]:
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


def _with_training_images(
    landmark_id: pl.Series,
    group: np.ndarray[Any, Any],
    split_of_group: np.ndarray[Any, Any],
    free: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """Return the split `(N,)` of each image, where a landmark without training images gets its smallest group back.

    Such landmarks occur only if a group shows several landmarks.
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
