"""The photographs that a run may be asked about: the right ones, none that it has seen unless that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.matching import Matching
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.training.own_data import find_own, is_own, match_to, open_own
from landmarks.training.run import SEEN, Run
from landmarks.training.seen import as_seen, sightings

NAMED = 5
"""Photographs and landmarks named in a line; the records of numbers name more."""

RECORDED = 100


@dataclass(frozen=True)
class Asked:
    """Photographs to ask a run about, and what was decided on the way to them."""

    dataset: Dataset
    photos: pl.DataFrame  # rows of `dataset.part(part)`
    part: str  # all: of a dataset without parts, or asked for
    own: bool  # whether it is the dataset that the run was trained on, divided as it was
    matching: Matching  # the dataset's landmarks and the run's labels
    seen: pl.DataFrame  # photographs left out because the run has seen them, see `sightings`

    @property
    def labels(self) -> pl.DataFrame:
        """`landmark_id`, in the dataset's ids, and `label`, the run's label of that landmark."""
        return self.matching.labels

    def record(self) -> dict[str, Any]:
        """Return what a record of numbers says about the photographs behind them."""
        return {
            "own_data": self.own,
            "data_digest": self.dataset.digest,
            "matched": {
                "by": self.matching.by,
                "landmarks": self.matching.matched,
                "of": len(self.dataset.labels),
                "without_partner": self.matching.alone[:RECORDED],
            },
            "seen": {"photographs": len(self.seen), "first": self.seen["id"].head(RECORDED).to_list()},
        }


def ask(run: Run, data: Path | str | None, part: str, *, any_landmarks: bool = False, keep_seen: str = "") -> Asked:
    """Return the photographs of a part of the run's own dataset, or of `data`, that the run may be asked about.

    A dataset named with `data` that has no parts is taken whole. What the run was trained on or validated with, or
    what the run had seen whose weights it began from, is left out and named, except in the parts train and val of its
    own dataset, where it is what is asked for; with `keep_seen` it is kept, for the reason given, and named.
    Raises `LandmarksError` when its own dataset was divided anew, when nothing is left, or when it knows none of the
    dataset's landmarks (unless `any_landmarks`).
    """
    dataset = open_own(run) if data is None else open_dataset(data)
    own = data is None or is_own(run, dataset)
    if not own and dataset.split is None:
        part = "all"
    photos = dataset.part(part)
    if not len(photos):
        raise LandmarksError(f'the part "{part}" of {dataset.folder} holds no photographs')
    matching = _matched(run, dataset, required=not any_landmarks, told=not own and not any_landmarks)
    seen = _sightings(run, dataset, photos, part, own=own)
    before = pl.col("through").is_not_null()
    if keep_seen and (kept := len(seen.filter(~before))):
        note(f"{kept} of the {len(photos)} photographs are ones that {run.name} has seen and are kept: {keep_seen}")
        seen = seen.filter(before)
    if len(seen):
        told = f"{len(seen)} of the {len(photos)} photographs of {dataset.folder}"
        if len(seen) == len(photos):
            raise LandmarksError(
                f'{run.name} has seen every photograph of the part "{part}" of {dataset.folder} in its training',
                received=_named(seen["id"].to_list()),
                way_out="name photographs that it was neither trained on nor validated with",
            )
        note(f"{told} are left out, because {run.name} has seen them in its training: {_named(seen['id'].to_list())}")
        photos = photos.join(seen, on="id", how="anti", maintain_order="left")
    return Asked(dataset, photos, part, own, matching, seen)


def _matched(run: Run, dataset: Dataset, *, required: bool, told: bool) -> Matching:
    matching = match_to(run, dataset)
    theirs = len(dataset.labels)
    if required and theirs and not matching.matched:
        names = run.labels["name"].fill_null("?").to_list()
        raise LandmarksError(
            f"the run {run.folder} does not fit the data {dataset.folder}: no landmark has the same {matching.by}",
            received=_named(matching.alone),
            expected=f"some of its {len(names)}: {_named(names)}",
        )
    if told:
        line = f"{matching.matched} of the {theirs} landmarks of {dataset.folder} are known to {run.name}, matched by "
        alone = f"; without a partner, so unknown to it: {_named(matching.alone)}" if matching.alone else ""
        note(line + matching.by + alone)
    return matching


def _sightings(run: Run, dataset: Dataset, photos: pl.DataFrame, part: str, *, own: bool) -> pl.DataFrame:
    """Return which of `photos` are to be left out.

    In the run's own dataset the parts train and val are what it has seen, and the test is apart by the rule of the
    split: copies of a picture on both sides of a random one are told by `split`, and are no matter of this run.
    """
    known = run.seen if own else _known(run)
    if known is None:
        return sightings(photos, pl.DataFrame(schema=SEEN))
    found = sightings(photos, known)
    before = pl.col("through").is_not_null()
    if own and part in ("train", "val"):
        return found.filter(before)
    if own and is_own(run, dataset):
        return found.filter(before | (pl.col("id") == pl.col("seen_id")))
    return found


def _known(run: Run) -> pl.DataFrame | None:
    """Return what `run` has seen; of a run that does not say, from its dataset, while that is as it was."""
    seen = run.seen
    if seen is not None:
        return seen
    try:
        own = find_own(run)
    except LandmarksError:
        own = None
    if own is None or not is_own(run, own) or own.split is None:
        note(
            f"whether {run.name} was trained on some of these photographs cannot be known: it was trained before runs "
            "kept that, and its dataset is not there as it was; train again to have a run that knows"
        )
        return None
    return pl.concat([as_seen(own.part(part).filter(pl.col("label").is_not_null()), part) for part in ("train", "val")])


def _named(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f", … ({len(names)} in all)" if len(names) > NAMED else "")
