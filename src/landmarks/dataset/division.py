"""Which image of a dataset is in which split: made by a rule, taken up again, or given; and what that gives away."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.dataset.copies import placed, stored_copies
from landmarks.dataset.divide import ENOUGH, FROM_SOURCE, NOT_YET, TEST, TRAIN, VAL, Rule, divide, rule_of
from landmarks.dataset.groups import RADIUS, RADIUS_ACROSS, Grouping, groups
from landmarks.dataset.manifest import SPLIT, SPLIT_FILE, SPLITS
from landmarks.support.console import note
from landmarks.support.tables import read_metadata, read_table

SWALLOWED = 0.5
"""A group that holds more than this share of a landmark's images is reported."""


@dataclass(frozen=True)
class Division:
    """Images and the split that each of them is in, with what that gives away."""

    images: pl.DataFrame  # `image_id` and the corrected `landmark_id`, sorted by id
    assigned: np.ndarray[Any, Any]  # (N,) positions in `SPLITS`
    grouping: Grouping
    rule: Rule
    added: int  # images that joined after the division was made
    leakage: dict[str, int]
    swallowed: list[dict[str, Any]]
    copies_looked_for: bool = False

    @property
    def table(self) -> pl.DataFrame:
        """The table of `splits.parquet`."""
        return self.images.select("image_id", split=pl.Series(np.asarray(SPLITS)[self.assigned], dtype=pl.String))

    def metadata(self, corrected: int) -> dict[str, object]:
        """Return what stands beside the table, of which so many images have a `corrected` label."""
        radii = f"near-duplicates within {RADIUS} of 64 bits at one landmark, {RADIUS_ACROSS} across landmarks"
        radii = "copies by their pixels" if self.copies_looked_for else radii
        return {
            "rule": f"{self.rule}; {radii}",
            **self.rule.record(),
            "added": self.added,
            "leakage": json.dumps(self.leakage),
            "corrected": corrected,
            "swallowed": json.dumps(self.swallowed),
        }


@dataclass(frozen=True)
class Earlier:
    """A division that is there already."""

    table: pl.DataFrame  # columns of `SPLIT`
    rule: Rule
    added: int = 0
    copies: pl.DataFrame | None = None  # columns of `COPIES`; None where nobody looked

    def groups_of(self, images: pl.DataFrame) -> Grouping:
        """Return the groups of `images`: by the copies that were found, and by hash where nobody looked."""
        return groups_with(images, self.copies)

    def parts_of(self, images: pl.DataFrame) -> np.ndarray[Any, Any]:
        """Return the split `(N,)` of each of `images`, `NOT_YET` for those it does not know."""
        assigned = images.select("image_id").join(self.table, on="image_id", how="left", maintain_order="left")["split"]
        return assigned.replace_strict(
            list(SPLITS), range(len(SPLITS)), default=NOT_YET, return_dtype=pl.Int64
        ).to_numpy()


def groups_with(images: pl.DataFrame, copies: pl.DataFrame | None) -> Grouping:
    """Return the groups of `images` with the copies found among some of them (columns of `COPIES`), None for none."""
    if copies is None:
        return groups(images)
    pairs, searched = placed(copies, images["image_id"])
    return groups(images, copies=pairs, searched=searched)


def stored(folder: Path) -> Earlier | None:
    """Return the division in a dataset's folder; None where there is none."""
    path = folder / SPLIT_FILE
    if not path.exists():
        return None
    table, metadata = read_table(path, SPLIT), read_metadata(path)
    return Earlier(table, rule_of(metadata, table["split"]), int(metadata.get("added", "0")), stored_copies(folder))


def extended(images: pl.DataFrame, earlier: Earlier) -> Division:
    """Return the division of `images`, sorted by id, in which those that are divided already keep their split.

    Another one joins the split in which most of its group is, where the rule keeps groups together; the rest is divided
    by the same rule, seed and shares. What was done is told in one line.
    """
    known, grouping, rule = earlier.parts_of(images), earlier.groups_of(images), earlier.rule
    group = np.arange(len(images)) if rule.by == "random" else grouping.group
    assigned = divide(images["landmark_id"], group, rule.val, rule.test, rule.seed or 0, known=known)
    new = known == NOT_YET
    if new.any():
        joined = int((new & np.isin(group, group[~new])).sum())
        how = f"by the split's own rule (by group, as in it are val {rule.val:.2g}, test {rule.test:.2g})"
        how = how if rule.by == FROM_SOURCE else f"as all before ({rule}, seed {rule.seed or 0})"
        note(
            f"{int(new.sum()):,} images are new: {joined:,} joined the split of those they are grouped with,"
            f" {int(new.sum()) - joined:,} were divided {how}; the {int((~new).sum()):,} others stay in their splits"
        )
    if gone := len(earlier.table) - int((~new).sum()):
        note(f"{gone:,} images of the splits are no longer there")
    division = division_of(images, assigned, grouping, rule, earlier.added + int(new.sum()))
    return replace(division, copies_looked_for=earlier.copies is not None)


def given(images: pl.DataFrame, assigned: np.ndarray[Any, Any]) -> Division:
    """Return the division of `images`, sorted by id, into splits that came with them."""
    val, test = (float((assigned == which).mean()) for which in (VAL, TEST))
    return division_of(images, assigned, groups(images), Rule(FROM_SOURCE, val, test, None))


def by_rule(
    images: pl.DataFrame, rule: Rule, group: np.ndarray[Any, Any], before: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the split of each image by `rule`; where it keeps test, those that are in it `before` stay there."""
    group = np.arange(len(images)) if rule.by == "random" else group
    others = (before != TEST) | (not rule.test_kept)
    assigned = np.full(len(images), TEST, np.uint8)
    landmarks = images["landmark_id"].filter(pl.Series(others))
    assigned[others] = divide(landmarks, group[others], rule.val, rule.test, rule.seed or 0)
    return assigned


def division_of(
    images: pl.DataFrame, assigned: np.ndarray[Any, Any], grouping: Grouping, rule: Rule, added: int = 0
) -> Division:
    """Return the division that puts `images` `(N,)`, sorted by id, into the splits `assigned` `(N,)`."""
    at_random = by_rule(images, replace(rule, by="random"), grouping.group, assigned)
    leakage, swallowed = _leakage(grouping, assigned, at_random), _swallowed(images, grouping)
    return Division(images.select("image_id", "landmark_id"), assigned, grouping, rule, added, leakage, swallowed)


def with_groups(images: pl.DataFrame, ids: pl.Series, grouping: Grouping) -> pl.DataFrame:
    """Return `images` with the column `group` of a grouping of the images `ids`; removed ones have none."""
    known = pl.DataFrame({"image_id": ids, "group": grouping.column})
    return images.drop("group").join(known, on="image_id", how="left", maintain_order="left").select(images.columns)


def _leakage(grouping: Grouping, assigned: np.ndarray[Any, Any], at_random: np.ndarray[Any, Any]) -> dict[str, int]:
    """Return what a split gives away: near-duplicates in two splits, images of val and test with kin in train."""
    return {
        "near_duplicate_pairs": grouping.near_duplicates,
        "straddling_pairs": grouping.straddling(assigned),
        "straddling_pairs_random": grouping.straddling(at_random),
        "held_out_with_kin_in_train": _with_kin(grouping.group, assigned),
        "held_out_with_kin_in_train_random": _with_kin(grouping.group, at_random),
    }


def _with_kin(group: np.ndarray[Any, Any], assigned: np.ndarray[Any, Any]) -> int:
    """Return how many images of val and test share a group with a training image."""
    return int(np.isin(group[assigned != TRAIN], group[assigned == TRAIN]).sum())


def _swallowed(images: pl.DataFrame, grouping: Grouping) -> list[dict[str, Any]]:
    """Return landmarks of which one group holds more than `SWALLOWED`, the largest share first."""
    shown = images.select("landmark_id", group=pl.Series(grouping.group)).drop_nulls("landmark_id")
    counts = shown.group_by("landmark_id", "group").len()
    counts = counts.with_columns(images=pl.sum("len").over("landmark_id"))
    large = counts.filter(pl.col("images") >= ENOUGH, pl.col("len") > SWALLOWED * pl.col("images"))
    large = large.with_columns(share=pl.col("len") / pl.col("images"))
    large = large.sort("share", "landmark_id", descending=[True, False])
    return large.select("landmark_id", "images", in_one_group="len").to_dicts()
