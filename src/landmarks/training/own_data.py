"""What a run has seen, and the dataset it was trained on, wherever that lies now."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from landmarks.dataset.groups import NO_HASH, RADIUS
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.naming import Matching, identified_by, match_landmarks
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, StaleError
from landmarks.training.run import RECORD, SEEN, Run, open_run

if TYPE_CHECKING:
    from landmarks.training.machine import Machine


CONTENT = ("length", "width", "height", "phash")
"""What an image is, whatever it is called: columns of `IMAGES`."""

ARCHIVE_ID = "^[0-9a-f]{16}$"
"""Ids of the archive: two images with one of them are the same, however they were shrunk."""


def seen_in_training(train: pl.DataFrame, val: pl.DataFrame, weights: str, machine: Machine) -> pl.DataFrame:
    """Return the table `SEEN` of a training on `train` and `val` (rows of a dataset) that begins from `weights`."""
    tables = [seen_rows(train, "train"), seen_rows(val, "val"), _seen_before(weights, machine)]
    return pl.concat(tables).sort("image_id", "through", nulls_last=False)


def seen_rows(images: pl.DataFrame, split: str) -> pl.DataFrame:
    """Return rows of a dataset in the columns of `SEEN`."""
    rows = images.with_columns(split=pl.lit(split), through=None)
    return rows.select(pl.col(name).cast(kind) for name, kind in SEEN.items())


def find_seen(images: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Return which of `images` (columns of `IMAGES`) are among `seen`: `id`, and `seen_id`, `split`, `through` there.

    The same image has the same id, or the same perceptual hash; two files of one name are two images unless
    the name is an id of the archive, or they look alike.
    """
    asked = images.select("image_id", *CONTENT)
    # Most of what a large run has seen is far from what is asked for: it is put aside before anything is copied.
    seen = seen.filter(
        pl.col("image_id").is_in(asked["image_id"].implode()) | pl.col("phash").is_in(asked["phash"].implode())
    )
    known = seen.select(pl.col("image_id").alias("seen_id"), *(pl.col(name).alias(f"seen_{name}") for name in CONTENT))
    known = known.with_columns(seen.select("split", "through")).sort("through", nulls_last=False)
    by_id = asked.join(known, left_on="image_id", right_on="seen_id", coalesce=False).filter(_same_under_one_id())
    hashed = known.filter(_has_hash("seen_phash")).unique("seen_phash", keep="first", maintain_order=True)
    by_hash = asked.filter(_has_hash("phash")).join(hashed, left_on="phash", right_on="seen_phash", coalesce=False)
    columns = ["image_id", "seen_id", "split", "through"]
    found = pl.concat([by_id.select(columns), by_hash.select(columns)])
    found = found.sort(
        "image_id", pl.col("image_id") != pl.col("seen_id"), "through", nulls_last=False
    )  # this training's first
    return found.unique("image_id", keep="first", maintain_order=True)


def _same_under_one_id() -> pl.Expr:
    both_hashed = _has_hash("phash") & _has_hash("seen_phash")
    alike = (pl.col("phash") ^ pl.col("seen_phash")).bitwise_count_ones() <= RADIUS
    equal = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"seen_{name}")) for name in ("length", "width", "height"))
    return pl.col("image_id").str.contains(ARCHIVE_ID) | pl.when(both_hashed).then(alike).otherwise(equal)


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
        machine.say(f"{earlier.name}, whose weights it begins from, does not say which images it was trained on")
        return nothing
    if (earlier.record.get("best") or {}).get("phase") == "head":  # which leaves the backbone as it was
        table = table.filter(pl.col("through").is_not_null())
    return table.with_columns(through=pl.col("through").fill_null(earlier.name))


# A run's own dataset: where it lies now, and whether its splits are still those that the run was trained with.


TRAIN_AGAIN = "train again to have a run that knows what it has seen"


def location_record(folder: Path, *, beside: Path) -> dict[str, str]:
    """Return where `folder` lies, as a record in the folder `beside` keeps it: whole, and as seen from there.

    A pair of folders that is moved together is found again by the second.
    """
    place = folder.resolve()
    told = {"folder": str(place)}
    with contextlib.suppress(ValueError):  # another drive
        told["relative"] = Path(os.path.relpath(place, beside.resolve())).as_posix()
    return told


def recorded_locations(told: dict[str, Any], *, beside: Path) -> list[Path]:
    """Return where what `location_record` told of may lie, the likeliest first."""
    relative, folder = (
        place if isinstance(place, str) and "\0" not in place else ""
        for place in (told.get("relative"), told.get("folder"))
    )
    places = [beside.resolve() / relative] if relative else []
    places += [Path(folder)] if folder else []
    return list(dict.fromkeys(place.resolve() for place in places))


def find_own_dataset(run: Run) -> Dataset:
    """Return the dataset that `run` was trained on, as it is now; beside the run first, then where it was then.

    Raises `LandmarksError` when it is at neither place, or when what lies there holds none of its images.
    """
    told = run.record.get("data") or {}
    there = [place for place in recorded_locations(told, beside=run.folder) if (place / "dataset.json").is_file()]
    if not there:
        raise LandmarksError(
            f"the dataset that {run.name} was trained on is not at {told.get('folder')} any more",
            way_out="say where its images are with --data DATA",
        )
    found = [open_dataset(place) for place in there]
    if "digest" not in told:
        return found[0]
    for dataset in found:
        if dataset.digest == told["digest"]:
            return dataset
    seen = run.seen
    for dataset in found:
        if seen is None or len(_here(seen, dataset)):
            return dataset
    raise LandmarksError(
        f"the dataset at {found[0].folder} is not the one that {run.name} was trained on: it holds none of its images",
        way_out="say where its images are with --data DATA",
    )


def open_own_dataset(run: Run) -> Dataset:
    """Return the dataset that `run` was trained on, when what it has seen is still in the splits it was in then.

    A dataset to which images were added is told and returned. Raises `StaleError` when it was divided anew: its
    split "test" would hold images that the run was trained on.
    """
    dataset = find_own_dataset(run)
    told = run.record.get("data") or {}
    if told.get("digest") in (None, dataset.digest):
        return dataset
    seen = run.seen
    if seen is None:
        raise StaleError(
            f"{dataset.folder} is not as it was when {run.name} was trained, and which images the run was trained "
            "on cannot be known: it was trained before runs kept that",
            way_out=_ways_out(run, dataset) + TRAIN_AGAIN,
        )
    if dataset.splits is None:
        raise StaleError(
            f"{dataset.folder} has no splits any more, and {run.name} was trained on one of them",
            way_out=_ways_out(run, dataset) + "train again, or " + _left_out(dataset),
        )
    then = _here(seen, dataset).join(
        dataset.splits.rename({"split": "part_now"}), left_on="seen_id", right_on="image_id"
    )
    moved = then.filter(pl.col("split") != pl.col("part_now"))
    if len(moved):
        tested = int((moved["part_now"] == "test").sum())
        raise StaleError(
            f"{dataset.folder} was divided anew after {run.name} was trained: {len(moved)} images that it was "
            f"trained on or validated with are in another split now, {tested} of them in test",
            way_out=_ways_out(run, dataset) + "train again, or " + _left_out(dataset),
        )
    _tell_changes(run, dataset, len(seen.filter(pl.col("through").is_null())) - len(then))
    return dataset


def is_own_dataset(run: Run, dataset: Dataset) -> bool:
    """Return whether `dataset`, wherever it lies, is what `run` was trained on, divided as it was then."""
    return bool((run.record.get("data") or {}).get("digest") == dataset.digest)


def match_dataset(run: Run, dataset: Dataset) -> Matching:
    """Return which landmarks of `dataset` are which labels of `run`."""
    ours = identified_by(run.record.get("data") or {}, run.labels)
    return match_landmarks(run.labels, ours, dataset.labels, identified_by(dataset.record, dataset.labels))


def images_seen(run: Run, dataset: Dataset, split: str) -> pl.DataFrame:
    """Return the images that `run` was trained on (`split` "train") or validated with ("val"), from its dataset.

    Rows of `IMAGES` sorted by id, with `run_label`, the run's label of what each shows, whatever splits they are in
    now. Images that are gone, or show nothing known any more, are left out. Raises `StaleError` when the run does not
    say which they are and its dataset is not as it was.
    """
    if is_own_dataset(run, dataset):
        images = dataset.split(split)
    elif (seen := run.seen) is None:
        if (run.record.get("data") or {}).get("digest") is not None:
            raise StaleError(f"which images {run.name} was trained on cannot be known", way_out=TRAIN_AGAIN)
        images = dataset.split(split)
    else:
        wanted = _here(seen, dataset).filter(pl.col("split") == split)
        images = dataset.split("all").join(wanted, on="image_id", how="semi", maintain_order="left")
    labels = match_dataset(run, dataset).labels.select("landmark_id", pl.col("label").alias("run_label"))
    return images.join(labels, on="landmark_id", how="inner").sort("image_id")


def _here(seen: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Return which images of `dataset` are, under their own ids, those that a run saw in its own training."""
    own = seen.filter(pl.col("through").is_null())
    return find_seen(dataset.images, own).filter(pl.col("image_id") == pl.col("seen_id"))


def _tell_changes(run: Run, dataset: Dataset, gone: int) -> None:
    counts = run.record["data"].get("images") or {}
    added = len(dataset.images) + gone - sum(counts.values()) if counts else 0
    told = f"{dataset.folder} has changed since {run.name} was trained"
    if added > 0 and dataset.splits is not None:
        tested = int((dataset.splits["split"] == "test").sum()) - counts.get("test", 0)
        told += f": {added} images were added, {max(tested, 0)} of them to test"
    if gone:
        told += f"; {gone} that it was trained on or validated with are gone"
    note(f"{told}; what it was trained on and validated with is where it was")


def _ways_out(run: Run, dataset: Dataset) -> str:
    """Return the command that divides `dataset` as it was when `run` was trained, where that can be done."""
    told = run.record.get("data") or {}
    split = told.get("split") or {}
    found = re.match(r"by (group|random), val ([0-9.e-]+), test ([0-9.e-]+);", str(split.get("rule") or ""))
    same = told.get("content_digest") in (None, dataset.content_digest)
    if not (found and same and str(split.get("seed") or "").isdigit()):
        return ""
    by, val, test = found.groups()
    folder = shlex.quote(str(dataset.folder))
    return (
        f"divide it as it was with: landmarks split {folder} --by {by} --val {val} --test {test} "
        f"--seed {split['seed']}, or "
    )


def _left_out(dataset: Dataset) -> str:
    return f"name it with --data {shlex.quote(str(dataset.folder))}: what the run has seen is left out then"
