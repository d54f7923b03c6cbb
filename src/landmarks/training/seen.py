"""Which photographs a run has seen: those it was trained on and validated with, kept beside its weights.

A run whose weights began from another run's has seen what that one was trained on, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from landmarks.dataset.groups import NO_HASH, RADIUS
from landmarks.training.run import RECORD, SEEN, open_run

if TYPE_CHECKING:
    from landmarks.training.machine import Machine

CONTENT = ("length", "width", "height", "phash")
"""What a photograph is, whatever it is called: columns of `PHOTOS`."""

ARCHIVE_ID = "^[0-9a-f]{16}$"
"""Ids of the archive: two photographs with one of them are the same, however they were shrunk."""


def seen_in_training(train: pl.DataFrame, val: pl.DataFrame, weights: str, machine: Machine) -> pl.DataFrame:
    """Return the table `SEEN` of a training on `train` and `val` (rows of a dataset) that begins from `weights`."""
    tables = [as_seen(train, "train"), as_seen(val, "val"), _seen_before(weights, machine)]
    return pl.concat(tables).sort("id", "through", nulls_last=False)


def as_seen(photos: pl.DataFrame, part: str) -> pl.DataFrame:
    """Return rows of a dataset in the columns of `SEEN`."""
    rows = photos.with_columns(part=pl.lit(part), through=None)
    return rows.select(pl.col(name).cast(kind) for name, kind in SEEN.items())


def sightings(photos: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Return which of `photos` (columns of `PHOTOS`) are among `seen`: `id`, and `seen_id`, `part`, `through` there.

    The same photograph has the same id, or the same perceptual hash; two files of one name are two photographs unless
    the name is an id of the archive, or they look alike.
    """
    asked = photos.select("id", *CONTENT)
    known = seen.select(pl.col("id").alias("seen_id"), *(pl.col(name).alias(f"seen_{name}") for name in CONTENT))
    known = known.with_columns(seen.select("part", "through")).sort("through", nulls_last=False)
    by_id = asked.join(known, left_on="id", right_on="seen_id", coalesce=False).filter(_same_under_one_id())
    hashed = known.filter(_has_hash("seen_phash")).unique("seen_phash", keep="first", maintain_order=True)
    by_hash = asked.filter(_has_hash("phash")).join(hashed, left_on="phash", right_on="seen_phash", coalesce=False)
    columns = ["id", "seen_id", "part", "through"]
    found = pl.concat([by_id.select(columns), by_hash.select(columns)])
    found = found.sort("id", pl.col("id") != pl.col("seen_id"), "through", nulls_last=False)  # this training's first
    return found.unique("id", keep="first", maintain_order=True)


def _same_under_one_id() -> pl.Expr:
    both_hashed = _has_hash("phash") & _has_hash("seen_phash")
    alike = (pl.col("phash") ^ pl.col("seen_phash")).bitwise_count_ones() <= RADIUS
    equal = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"seen_{name}")) for name in ("length", "width", "height"))
    return pl.col("id").str.contains(ARCHIVE_ID) | pl.when(both_hashed).then(alike).otherwise(equal)


def _has_hash(column: str) -> pl.Expr:
    return pl.col(column).fill_null(NO_HASH) != NO_HASH


def _seen_before(weights: str, machine: Machine) -> pl.DataFrame:
    """Return what the run that `weights` come from had seen, with its name in `through`; nothing for other weights."""
    nothing = pl.DataFrame(schema=SEEN)
    if weights in ("imagenet", "none") or not (Path(weights) / RECORD).is_file():
        return nothing
    earlier = open_run(weights)
    table = earlier.seen
    if table is None:
        machine.say(f"{earlier.name}, whose weights it begins from, does not say which photographs it was trained on")
        return nothing
    if (earlier.record.get("best") or {}).get("phase") == "warmup":  # which leaves the trunk as it was
        table = table.filter(pl.col("through").is_not_null())
    return table.with_columns(through=pl.col("through").fill_null(earlier.name))
