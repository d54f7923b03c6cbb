"""A run's own dataset: where it lies now, and whether its parts are still those that the run was trained with."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.matching import Matching, match_landmarks
from landmarks.dataset.naming import identified_by
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, StaleError
from landmarks.training.run import Run
from landmarks.training.seen import sightings

TRAIN_AGAIN = "train again to have a run that knows what it has seen"


def whereabouts(folder: Path, *, beside: Path) -> dict[str, str]:
    """Return where `folder` lies, as a record in the folder `beside` keeps it: whole, and as seen from there.

    A pair of folders that is moved together is found again by the second.
    """
    place = folder.resolve()
    told = {"folder": str(place)}
    with contextlib.suppress(ValueError):  # another drive
        told["relative"] = Path(os.path.relpath(place, beside.resolve())).as_posix()
    return told


def places_of(told: dict[str, Any], *, beside: Path) -> list[Path]:
    """Return where what `whereabouts` told of may lie, the likeliest first."""
    relative, folder = (
        place if isinstance(place, str) and "\0" not in place else ""
        for place in (told.get("relative"), told.get("folder"))
    )
    places = [beside.resolve() / relative] if relative else []
    places += [Path(folder)] if folder else []
    return list(dict.fromkeys(place.resolve() for place in places))


def find_own(run: Run) -> Dataset:
    """Return the dataset that `run` was trained on, as it is now; beside the run first, then where it was then.

    Raises `LandmarksError` when it is at neither place, or when what lies there holds none of its photographs.
    """
    told = run.record.get("data") or {}
    there = [place for place in places_of(told, beside=run.folder) if (place / "dataset.json").is_file()]
    if not there:
        raise LandmarksError(
            f"the dataset that {run.name} was trained on is not at {told.get('folder')} any more",
            way_out="say where its photographs are with --data DATA",
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
        f"the dataset at {found[0].folder} is not the one that {run.name} was trained on: it holds none of its "
        "photographs",
        way_out="say where its photographs are with --data DATA",
    )


def open_own(run: Run) -> Dataset:
    """Return the dataset that `run` was trained on, when what it has seen is still in the parts it was in then.

    A dataset to which photographs were added is told and returned. Raises `StaleError` when it was divided anew: its
    part "test" would hold photographs that the run was trained on.
    """
    dataset = find_own(run)
    told = run.record.get("data") or {}
    if told.get("digest") in (None, dataset.digest):
        return dataset
    seen = run.seen
    if seen is None:
        raise StaleError(
            f"{dataset.folder} is not as it was when {run.name} was trained, and which photographs the run was trained "
            "on cannot be known: it was trained before runs kept that",
            way_out=_ways_out(run, dataset) + TRAIN_AGAIN,
        )
    if dataset.split is None:
        raise StaleError(
            f"{dataset.folder} has no parts any more, and {run.name} was trained on one of them",
            way_out=_ways_out(run, dataset) + "train again, or " + _left_out(dataset),
        )
    then = _here(seen, dataset).join(dataset.split.rename({"part": "part_now"}), left_on="seen_id", right_on="id")
    moved = then.filter(pl.col("part") != pl.col("part_now"))
    if len(moved):
        tested = int((moved["part_now"] == "test").sum())
        raise StaleError(
            f"{dataset.folder} was divided anew after {run.name} was trained: {len(moved)} photographs that it was "
            f"trained on or validated with are in another part now, {tested} of them in test",
            way_out=_ways_out(run, dataset) + "train again, or " + _left_out(dataset),
        )
    _tell_changes(run, dataset, len(seen.filter(pl.col("through").is_null())) - len(then))
    return dataset


def is_own(run: Run, dataset: Dataset) -> bool:
    """Return whether `dataset`, wherever it lies, is what `run` was trained on, divided as it was then."""
    return bool((run.record.get("data") or {}).get("digest") == dataset.digest)


def match_to(run: Run, dataset: Dataset) -> Matching:
    """Return which landmarks of `dataset` are which labels of `run`."""
    ours = identified_by(run.record.get("data") or {}, run.labels)
    return match_landmarks(run.labels, ours, dataset.labels, identified_by(dataset.record, dataset.labels))


def photographs_seen(run: Run, dataset: Dataset, part: str) -> pl.DataFrame:
    """Return the photographs that `run` was trained on (`part` "train") or validated with ("val"), from its dataset.

    Rows of `PHOTOS` sorted by id, with `run_label`, the run's label of what each shows, whatever parts they are in now.
    Photographs that are gone, or show nothing known any more, are left out. Raises `StaleError` when the run does not
    say which they are and its dataset is not as it was.
    """
    seen = run.seen
    if seen is None:
        if (run.record.get("data") or {}).get("digest") not in (None, dataset.digest):
            raise StaleError(f"which photographs {run.name} was trained on cannot be known", way_out=TRAIN_AGAIN)
        photos = dataset.part(part)
    else:
        wanted = _here(seen, dataset).filter(pl.col("part") == part)
        photos = dataset.part("all").join(wanted, on="id", how="semi", maintain_order="left")
    labels = match_to(run, dataset).labels.select("landmark_id", pl.col("label").alias("run_label"))
    return photos.join(labels, on="landmark_id", how="inner").sort("id")


def _here(seen: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Return which photographs of `dataset` are, under their own ids, those that a run saw in its own training."""
    own = seen.filter(pl.col("through").is_null())
    return sightings(dataset.photos, own).filter(pl.col("id") == pl.col("seen_id"))


def _tell_changes(run: Run, dataset: Dataset, gone: int) -> None:
    counts = run.record["data"].get("photographs") or {}
    added = len(dataset.photos) + gone - sum(counts.values()) if counts else 0
    told = f"{dataset.folder} has changed since {run.name} was trained"
    if added > 0 and dataset.split is not None:
        tested = int((dataset.split["part"] == "test").sum()) - counts.get("test", 0)
        told += f": {added} photographs were added, {max(tested, 0)} of them to test"
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
