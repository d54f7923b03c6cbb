"""The data of a run: the images it is trained on, the images it has seen, and its dataset, wherever that is now."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from landmarks.dataset.division import MIN_IMAGES_TO_SPLIT
from landmarks.dataset.groups import NO_HASH, RADIUS
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.naming import Matching, identified_by, match_landmarks
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError, StaleError
from landmarks.support.places import in_shell
from landmarks.training.run import RECORD, SEEN, Run, open_run

if TYPE_CHECKING:
    from landmarks.training.machine import Machine


@dataclass(frozen=True)
class TrainingImages:
    """The images to train on and to validate with, all of known landmarks, with their labels."""

    train: pl.DataFrame
    val: pl.DataFrame
    notes: tuple[str, ...] = ()  # what the user should know about them


def check_data(dataset: Dataset) -> TrainingImages:
    """Return the images to train on and to validate with; raise `LandmarksError` when there are too few."""
    landmarks = len(dataset.labels)
    if landmarks < 2:
        raise LandmarksError(
            f"{dataset.folder} cannot be trained on", received=plural(landmarks, "landmark"), expected="2 or more"
        )
    train, val = _known(dataset, "train"), _known(dataset, "val")
    if dataset.images["landmark_id"].drop_nulls().is_empty():
        removed = int(dataset.corrections["removed"].sum())
        raise LandmarksError(
            f"{dataset.folder} holds no image of a landmark",
            way_out=f"corrections removed {plural(removed, 'image')}: landmarks split {in_shell(dataset.folder)}"
            " --no-corrections takes them back"
            if removed
            else "",
        )
    if not len(train):
        raise LandmarksError(
            f"the train split of {dataset.folder} shows no known landmark",
            way_out=f"divide everything anew with: landmarks split {in_shell(dataset.folder)} --anew",
        )
    if not len(val):
        most = int(train["label"].value_counts()["count"].max() or 0)  # type: ignore[arg-type]
        share = 0.15 if most >= MIN_IMAGES_TO_SPLIT else 0.5  # 0.15 of a few images is none
        way_out = f"divide it with: landmarks split {in_shell(dataset.folder)} --val {share}"
        if dataset.count("test"):
            way_out = (
                "take some out of train, while test stays as it is, with: "
                f"landmarks split {in_shell(dataset.folder)} --val {share} --keep-test"
            )
        if most < 2:
            way_out = "every landmark has a single image to train on: validation takes landmarks of two images or more"
        raise LandmarksError(f"the val split of {dataset.folder} shows no known landmark", way_out=way_out)
    counts = train["label"].value_counts()
    absent = dataset.labels.filter(~pl.col("label").is_in(counts["label"].to_list()))
    notes = []
    if len(absent):
        notes.append(
            f"{len(absent)} of {landmarks} landmarks have no image to train on and will never be answered: "
            + ", ".join(str(name) for name in absent["name"].head(3).fill_null("?"))
            + (", …" if len(absent) > 3 else "")
        )
    single = int((counts["count"] == 1).sum())
    if single:
        notes.append(f"{single} landmark{'s have' if single > 1 else ' has'} a single image to train on")
    unvalidated = counts.filter(~pl.col("label").is_in(val["label"].unique().implode()))
    if len(unvalidated):
        notes.append(
            f"{len(unvalidated):,} of {landmarks:,} landmarks have no validation image: validation says nothing of them"
        )
    unknown = dataset.count("train") - len(train)
    if unknown:
        notes.append(f"left out of training: {plural(unknown, 'image')} of nothing known")
    return TrainingImages(train, val, tuple(notes))


def _known(dataset: Dataset, split: str) -> pl.DataFrame:
    """Return the images of a split that show a known landmark, without the columns that training does not use."""
    images = dataset.split(split).drop("author", "license", "title", "usage", "landmarks")
    return images.filter(pl.col("label").is_not_null()) if images["label"].null_count() else images


# ── The images that a run has seen, through whatever weights it began from ──────────────────────────────────────────


CONTENT = ("length", "width", "height", "phash")
"""Columns of `IMAGES` that describe the content of an image, whatever its id."""

ARCHIVE_ID = "^[0-9a-f]{16}$"
"""Ids of the archive: two images with the same one are the same image, perhaps at different sizes."""


def seen_in_training(train: pl.DataFrame, val: pl.DataFrame, weights: str, machine: Machine) -> pl.DataFrame:
    """Return the table `SEEN` of a training on `train` and `val` (rows of a dataset) that starts from `weights`."""
    tables = [seen_rows(train, "train"), seen_rows(val, "val"), _seen_before(weights, machine)]
    return pl.concat(tables).sort("image_id", "through", nulls_last=False)


def seen_rows(images: pl.DataFrame, split: str) -> pl.DataFrame:
    """Return rows of a dataset as rows of `SEEN`."""
    rows = images.with_columns(split=pl.lit(split), through=None)
    return rows.select(pl.col(name).cast(kind) for name, kind in SEEN.items())


def find_seen(images: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Return which of `images` (columns of `IMAGES`) are among `seen` (columns of `SEEN`).

    The columns are `image_id` and, of its match in `seen`, `seen_id`, `split` and `through`. Images match if they have
    the same perceptual hash, or the same id and the same content: files of one name are different images unless the
    name is an id of the archive, or they look alike.
    """
    images = images.select("image_id", *CONTENT)
    # Most of what a large run has seen cannot match; it is filtered out before anything is copied.
    seen = seen.filter(
        pl.col("image_id").is_in(images["image_id"].implode()) | pl.col("phash").is_in(images["phash"].implode())
    )
    right = seen.select(
        pl.col("image_id").alias("seen_id"),
        *(pl.col(name).alias(f"seen_{name}") for name in CONTENT),
        "split",
        "through",
    ).sort("through", nulls_last=False)
    by_id = images.join(right, left_on="image_id", right_on="seen_id", coalesce=False).filter(_same_content())
    hashed = right.filter(_has_hash("seen_phash")).unique("seen_phash", keep="first", maintain_order=True)
    by_hash = images.filter(_has_hash("phash")).join(hashed, left_on="phash", right_on="seen_phash", coalesce=False)
    columns = ["image_id", "seen_id", "split", "through"]
    matches = pl.concat([by_id.select(columns), by_hash.select(columns)])
    # A match with the same id comes first, then one with an image that this run itself saw.
    matches = matches.sort("image_id", pl.col("image_id") != pl.col("seen_id"), "through", nulls_last=False)
    return matches.unique("image_id", keep="first", maintain_order=True)


def _same_content() -> pl.Expr:
    """Return whether two images with the same id are the same image."""
    both_hashed = _has_hash("phash") & _has_hash("seen_phash")
    alike = (pl.col("phash") ^ pl.col("seen_phash")).bitwise_count_ones() <= RADIUS
    equal = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"seen_{name}")) for name in ("length", "width", "height"))
    return pl.col("image_id").str.contains(ARCHIVE_ID) | pl.when(both_hashed).then(alike).otherwise(equal)


def _has_hash(column: str) -> pl.Expr:
    return pl.col(column).fill_null(NO_HASH) != NO_HASH


def _seen_before(weights: str, machine: Machine) -> pl.DataFrame:
    """Return what the run that `weights` come from saw, with its name in `through`; empty for other weights."""
    empty = pl.DataFrame(schema=SEEN)
    if weights in ("imagenet", "none") or not (Path(weights) / RECORD).is_file():
        return empty
    earlier = open_run(weights)
    table = earlier.seen
    if table is None:
        machine.say(f"{earlier.name}, whose weights it begins from, does not say which images it was trained on")
        return empty
    if (earlier.record.get("best") or {}).get("phase") == "head":  # its backbone was not trained
        table = table.filter(pl.col("through").is_not_null())
    return table.with_columns(through=pl.col("through").fill_null(earlier.name))


# ── The dataset of a run: where it is now, and whether its splits are still those that the run was trained with ─────


TRAIN_AGAIN = "train again to have a run that knows what it has seen"


def location_record(folder: Path, *, relative_to: Path) -> dict[str, str]:
    """Return the location of `folder` for a record: its absolute path, and its path relative to `relative_to`.

    By the relative path, folders that were moved together find each other again.
    """
    path = folder.resolve()
    record = {"folder": str(path)}
    with contextlib.suppress(ValueError):  # on another drive
        record["relative"] = Path(os.path.relpath(path, relative_to.resolve())).as_posix()
    return record


def recorded_locations(record: dict[str, Any], *, relative_to: Path) -> list[Path]:
    """Return the possible locations of a folder by its `location_record`, the likeliest first."""
    relative, folder = (
        path if isinstance(path, str) and "\0" not in path else ""
        for path in (record.get("relative"), record.get("folder"))
    )
    paths = [relative_to.resolve() / relative] if relative else []
    paths += [Path(folder)] if folder else []
    return list(dict.fromkeys(path.resolve() for path in paths))


def find_own_dataset(run: Run) -> Dataset:
    """Return the dataset that `run` was trained on, as it is now: at its relative, then at its absolute location.

    Raises `LandmarksError` when it is at neither, or when the dataset found there holds none of its images.
    """
    record = run.record.get("data") or {}
    paths = [path for path in recorded_locations(record, relative_to=run.folder) if (path / "dataset.json").is_file()]
    if not paths:
        raise LandmarksError(
            f"the dataset that {run.name} was trained on is not at {record.get('folder')} any more",
            way_out="say where its images are with --data DATA",
        )
    datasets = [open_dataset(path) for path in paths]
    if "digest" not in record:
        return datasets[0]
    for dataset in datasets:
        if dataset.digest == record["digest"]:
            return dataset
    seen = run.seen
    for dataset in datasets:
        if seen is None or len(_seen_in_dataset(seen, dataset)):
            return dataset
    raise LandmarksError(
        f"the dataset at {datasets[0].folder} is not the one that {run.name} was trained on: it holds none of its "
        "images",
        way_out="say where its images are with --data DATA",
    )


def open_own_dataset(run: Run) -> Dataset:
    """Return the dataset that `run` was trained on, if the images it saw are still in the same splits.

    If images were added or removed, a note says so. Raises `StaleError` when the dataset was divided anew, because its
    split "test" might hold images that the run was trained on.
    """
    dataset = find_own_dataset(run)
    if (run.record.get("data") or {}).get("digest") in (None, dataset.digest):
        return dataset
    seen = run.seen
    if seen is None:
        raise StaleError(
            f"{dataset.folder} is not as it was when {run.name} was trained, and which images the run was trained "
            "on cannot be known: it was trained before runs kept that",
            way_out=_split_hint(run, dataset) + TRAIN_AGAIN,
        )
    if dataset.splits is None:
        raise StaleError(
            f"{dataset.folder} has no splits any more, and {run.name} was trained on one of them",
            way_out=_split_hint(run, dataset) + "train again, or " + _data_hint(dataset),
        )
    present = _seen_in_dataset(seen, dataset).join(
        dataset.splits.rename({"split": "split_now"}), left_on="seen_id", right_on="image_id"
    )
    moved = present.filter(pl.col("split") != pl.col("split_now"))
    if len(moved):
        tested = int((moved["split_now"] == "test").sum())
        raise StaleError(
            f"{dataset.folder} was divided anew after {run.name} was trained: {len(moved)} images that it was "
            f"trained on or validated with are in another split now, {tested} of them in test",
            way_out=_split_hint(run, dataset) + "train again, or " + _data_hint(dataset),
        )
    _note_changes(run, dataset, len(seen.filter(pl.col("through").is_null())) - len(present))
    return dataset


def is_own_dataset(run: Run, dataset: Dataset) -> bool:
    """Return whether `dataset` has the images and splits that `run` was trained with, wherever it is."""
    return bool((run.record.get("data") or {}).get("digest") == dataset.digest)


def match_dataset(run: Run, dataset: Dataset) -> Matching:
    """Match the landmarks of `dataset` to the labels of `run`."""
    ours = identified_by(run.record.get("data") or {}, run.labels)
    return match_landmarks(run.labels, ours, dataset.labels, identified_by(dataset.record, dataset.labels))


def images_seen(run: Run, dataset: Dataset, split: str) -> pl.DataFrame:
    """Return the images that `run` was trained on (`split` "train") or validated with ("val"), from its dataset.

    These are rows of `IMAGES` sorted by id, with the run's label in `run_label`, whatever splits they are in now.
    Images that are gone, or no longer show a known landmark, are left out. Raises `StaleError` when the run has no
    record of them and its dataset has changed.
    """
    if is_own_dataset(run, dataset):
        images = dataset.split(split)
    elif (seen := run.seen) is None:
        if (run.record.get("data") or {}).get("digest") is not None:
            raise StaleError(f"which images {run.name} was trained on cannot be known", way_out=TRAIN_AGAIN)
        images = dataset.split(split)
    else:
        own = _seen_in_dataset(seen, dataset).filter(pl.col("split") == split)
        images = dataset.split("all").join(own, on="image_id", how="semi", maintain_order="left")
    labels = match_dataset(run, dataset).labels.select("landmark_id", pl.col("label").alias("run_label"))
    return images.join(labels, on="landmark_id", how="inner").sort("image_id")


def _seen_in_dataset(seen: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Return which images of `dataset` a run saw itself, under the same ids; columns of `find_seen`."""
    own = seen.filter(pl.col("through").is_null())
    return find_seen(dataset.images, own).filter(pl.col("image_id") == pl.col("seen_id"))


def _note_changes(run: Run, dataset: Dataset, gone: int) -> None:
    counts = run.record["data"].get("images") or {}
    added = len(dataset.images) + gone - sum(counts.values()) if counts else 0
    line = f"{dataset.folder} has changed since {run.name} was trained"
    if added > 0 and dataset.splits is not None:
        tested = int((dataset.splits["split"] == "test").sum()) - counts.get("test", 0)
        line += f": {plural(added, 'image', 'were')} added, {max(tested, 0)} of them to test"
    if gone:
        line += f"; {gone} that it was trained on or validated with are gone"
    note(f"{line}; what it was trained on and validated with is where it was")


def _split_hint(run: Run, dataset: Dataset) -> str:
    """Return the command that divides `dataset` as when `run` was trained, or an empty text if there is none."""
    record = run.record.get("data") or {}
    split = record.get("split") or {}
    rule = re.match(r"by (group|random), val ([0-9.e-]+), test ([0-9.e-]+);", str(split.get("rule") or ""))
    unchanged = record.get("content_digest") in (None, dataset.content_digest)
    if not (rule and unchanged and str(split.get("seed") or "").isdigit()):
        return ""
    by, val, test = rule.groups()
    folder = in_shell(dataset.folder)
    return (
        f"divide it as it was with: landmarks split {folder} --by {by} --val {val} --test {test} "
        f"--seed {split['seed']}, or "
    )


def _data_hint(dataset: Dataset) -> str:
    return f"name it with --data {in_shell(dataset.folder)}: what the run has seen is left out then"
