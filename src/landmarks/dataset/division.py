"""The division of a dataset into splits: by a rule, extended by new images, or as it came with them; its leakage.

A rule divides whole groups, landmark by landmark, in given shares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.dataset.copies import copy_positions, read_copies
from landmarks.dataset.groups import RADIUS, RADIUS_ACROSS, Grouping, group_images
from landmarks.dataset.manifest import SPLIT, SPLIT_FILE, SPLITS
from landmarks.support.console import note, plural
from landmarks.support.seeds import generator
from landmarks.support.tables import read_metadata, read_table

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


# ── The division as it is made and stored: its leakage, and how new images extend it ────────────────────────────────


SWALLOWED = 0.5
"""A group that holds more than this share of a landmark's images is reported."""


@dataclass(frozen=True)
class Division:
    """The split of each image, and how much information leaks between splits."""

    images: pl.DataFrame  # `image_id` and the corrected `landmark_id`, sorted by id
    assigned: np.ndarray[Any, Any]  # (N,) positions in `SPLITS`
    grouping: Grouping
    rule: SplitRule
    added: int  # images that were added after the division was made
    leakage: dict[str, int]
    swallowed: list[dict[str, Any]]
    not_searched: int | None = None  # images whose copies were not looked for; None if no image's were

    @property
    def table(self) -> pl.DataFrame:
        """The table of `splits.parquet`."""
        return self.images.select("image_id", split=pl.Series(np.asarray(SPLITS)[self.assigned], dtype=pl.String))

    def metadata(self, corrected: int) -> dict[str, object]:
        """Return the metadata of `splits.parquet`; `corrected` is the number of corrected images."""
        radii = f"near-duplicates within {RADIUS} of 64 bits at one landmark, {RADIUS_ACROSS} across landmarks"
        if self.not_searched is not None:
            others = f", of {self.not_searched} added images by their hashes" if self.not_searched else ""
            radii = f"copies by their pixels{others}"
        return {
            "rule": f"{self.rule}; {radii}",
            **self.rule.record(),
            "added": self.added,
            "leakage": json.dumps(self.leakage),
            "corrected": corrected,
            "swallowed": json.dumps(self.swallowed),
        }


@dataclass(frozen=True)
class EarlierDivision:
    """A division made earlier, whose images keep their split."""

    table: pl.DataFrame  # columns of `SPLIT`
    rule: SplitRule
    added: int = 0
    copies: pl.DataFrame | None = None  # columns of `COPIES`; None if none were looked for

    def groups_of(self, images: pl.DataFrame) -> Grouping:
        """Return the groups of `images`: by the copies found, and by hash where none were looked for."""
        return groups_with_copies(images, self.copies)

    def splits_of(self, images: pl.DataFrame) -> np.ndarray[Any, Any]:
        """Return the split `(N,)` of each of `images`, `UNASSIGNED` for new ones."""
        assigned = images.select("image_id").join(self.table, on="image_id", how="left", maintain_order="left")["split"]
        return assigned.replace_strict(
            list(SPLITS), range(len(SPLITS)), default=UNASSIGNED, return_dtype=pl.Int64
        ).to_numpy()


def groups_with_copies(images: pl.DataFrame, copies: pl.DataFrame | None) -> Grouping:
    """Return the groups of `images`, given the copies found among some of them (columns of `COPIES`)."""
    if copies is None:
        return group_images(images)
    pairs, searched = copy_positions(copies, images["image_id"])
    return group_images(images, copies=pairs, searched=searched)


def read_division(folder: Path) -> EarlierDivision | None:
    """Return the division in a dataset's folder; None if there is none."""
    path = folder / SPLIT_FILE
    if not path.exists():
        return None
    table, metadata = read_table(path, SPLIT), read_metadata(path)
    return EarlierDivision(
        table, rule_from_metadata(metadata, table["split"]), int(metadata.get("added", "0")), read_copies(folder)
    )


def extend_division(images: pl.DataFrame, earlier: EarlierDivision) -> Division:
    """Return the division of `images`, sorted by id, in which images of the `earlier` division keep their split.

    If the rule keeps groups together, a new image joins the split that holds most of its group. The others are divided
    by the same rule, seed and shares. A note says how many there were of each. New images that the `earlier` copies do
    not hold are grouped by their hashes.
    """
    before, grouping, rule = earlier.splits_of(images), earlier.groups_of(images), earlier.rule
    group = np.arange(len(images)) if rule.by == "random" else grouping.group
    assigned = divide(images["landmark_id"], group, rule.val, rule.test, rule.seed or 0, fixed=before)
    new = before == UNASSIGNED
    if new.any():
        joined = int((new & np.isin(group, group[~new])).sum())
        how = f"by the split's own rule (by group, as in it are val {rule.val:.2g}, test {rule.test:.2g})"
        how = how if rule.by == FROM_SOURCE else f"as all before ({rule}, seed {rule.seed or 0})"
        note(
            f"{int(new.sum()):,} images are new: {joined:,} joined the split of those they are grouped with,"
            f" {int(new.sum()) - joined:,} were divided {how}; the {int((~new).sum()):,} others stay in their splits"
        )
    if gone := len(earlier.table) - int((~new).sum()):
        note(f"no longer there: {plural(gone, 'image')} of the splits")
    searched = None if earlier.copies is None else images["image_id"].is_in(earlier.copies["image_id"].implode())
    not_searched = None if searched is None else int((~searched).sum())
    if not_searched:
        note(
            f"{plural(not_searched, 'image')} could not be compared with the others: changed copies of them may be in "
            "another split (landmarks split looks again, and divides all images anew)"
        )
    division = division_of(images, assigned, grouping, rule, earlier.added + int(new.sum()))
    return replace(division, not_searched=not_searched)


def division_from_source(images: pl.DataFrame, assigned: np.ndarray[Any, Any]) -> Division:
    """Return the division of `images` `(N,)`, sorted by id, into the splits `assigned` `(N,)` that came with them."""
    val, test = (float((assigned == which).mean()) for which in (VAL, TEST))
    return division_of(images, assigned, group_images(images), SplitRule(FROM_SOURCE, val, test, None))


def assign_by_rule(
    images: pl.DataFrame, rule: SplitRule, group: np.ndarray[Any, Any], before: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the split `(N,)` of each image by `rule`; if that keeps test, images in it `before` `(N,)` stay there."""
    group = np.arange(len(images)) if rule.by == "random" else group
    others = (before != TEST) | (not rule.test_kept)
    assigned = np.full(len(images), TEST, np.uint8)
    landmarks = images["landmark_id"].filter(pl.Series(others))
    assigned[others] = divide(landmarks, group[others], rule.val, rule.test, rule.seed or 0)
    return assigned


def division_of(
    images: pl.DataFrame, assigned: np.ndarray[Any, Any], grouping: Grouping, rule: SplitRule, added: int = 0
) -> Division:
    """Return the division that puts `images` `(N,)`, sorted by id, into the splits `assigned` `(N,)`."""
    at_random = assign_by_rule(images, replace(rule, by="random"), grouping.group, assigned)
    leakage, swallowed = _leakage(grouping, assigned, at_random), _swallowed(images, grouping)
    return Division(images.select("image_id", "landmark_id"), assigned, grouping, rule, added, leakage, swallowed)


def with_groups(images: pl.DataFrame, ids: pl.Series, grouping: Grouping) -> pl.DataFrame:
    """Return `images` with the column `group` of a grouping of the images `ids`; null for any other image."""
    group = pl.DataFrame({"image_id": ids, "group": grouping.column})
    return images.drop("group").join(group, on="image_id", how="left", maintain_order="left").select(images.columns)


def _leakage(grouping: Grouping, assigned: np.ndarray[Any, Any], at_random: np.ndarray[Any, Any]) -> dict[str, int]:
    """Return counts of near-duplicates in different splits, and of images in val and test with kin in train."""
    return {
        "near_duplicate_pairs": grouping.near_duplicates,
        "straddling_pairs": grouping.straddling(assigned),
        "straddling_pairs_random": grouping.straddling(at_random),
        "held_out_with_kin_in_train": _with_kin(grouping.group, assigned),
        "held_out_with_kin_in_train_random": _with_kin(grouping.group, at_random),
    }


def _with_kin(group: np.ndarray[Any, Any], assigned: np.ndarray[Any, Any]) -> int:
    """Return the number of images in val and test that share a group with a training image."""
    return int(np.isin(group[assigned != TRAIN], group[assigned == TRAIN]).sum())


def _swallowed(images: pl.DataFrame, grouping: Grouping) -> list[dict[str, Any]]:
    """Return the landmarks of which one group holds more than `SWALLOWED`, the largest share first."""
    shown = images.select("landmark_id", group=pl.Series(grouping.group)).drop_nulls("landmark_id")
    counts = shown.group_by("landmark_id", "group").len()
    counts = counts.with_columns(images=pl.sum("len").over("landmark_id"))
    large = counts.filter(pl.col("images") >= MIN_IMAGES_TO_SPLIT, pl.col("len") > SWALLOWED * pl.col("images"))
    large = large.with_columns(share=pl.col("len") / pl.col("images"))
    large = large.sort("share", "landmark_id", descending=[True, False])
    return large.select("landmark_id", "images", in_one_group="len").to_dicts()
