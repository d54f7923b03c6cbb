"""The division of a dataset into splits: by a rule, extended by new images, or as it came with them; its leakage."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.dataset.copies import copy_positions, read_copies
from landmarks.dataset.divide import (
    FROM_SOURCE,
    MIN_IMAGES_TO_SPLIT,
    TEST,
    TRAIN,
    UNASSIGNED,
    VAL,
    SplitRule,
    divide,
    rule_from_metadata,
)
from landmarks.dataset.groups import RADIUS, RADIUS_ACROSS, Grouping, group_images
from landmarks.dataset.manifest import SPLIT, SPLIT_FILE, SPLITS
from landmarks.support.console import note, plural
from landmarks.support.tables import read_metadata, read_table

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
    copies_looked_for: bool = False

    @property
    def table(self) -> pl.DataFrame:
        """The table of `splits.parquet`."""
        return self.images.select("image_id", split=pl.Series(np.asarray(SPLITS)[self.assigned], dtype=pl.String))

    def metadata(self, corrected: int) -> dict[str, object]:
        """Return the metadata of `splits.parquet`; `corrected` is the number of corrected images."""
        radii = f"near-duplicates within {RADIUS} of 64 bits at one landmark, {RADIUS_ACROSS} across landmarks"
        if self.copies_looked_for:
            radii = f"copies by their pixels{f', of {self.added} added images by their hashes' if self.added else ''}"
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
    by the same rule, seed and shares. A note says how many there were of each. Groups of new images are found by their
    hashes: pixels are compared by `split`.
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
        if earlier.copies is not None:
            note(
                "cropped and otherwise changed copies were not looked for among the new images: some may be in another "
                "split than the original (landmarks split finds them, and divides all images anew)"
            )
    if gone := len(earlier.table) - int((~new).sum()):
        note(f"no longer there: {plural(gone, 'image')} of the splits")
    division = division_of(images, assigned, grouping, rule, earlier.added + int(new.sum()))
    return replace(division, copies_looked_for=earlier.copies is not None)


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
