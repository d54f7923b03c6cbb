"""The images that a run may be asked about: the right ones, none that it has seen unless that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from landmarks.dataset.manifest import SPLITS, Dataset, open_dataset
from landmarks.dataset.naming import Matching
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.support.places import Place
from landmarks.training.own_data import as_seen, find_own, is_own, match_to, open_own, sightings
from landmarks.training.run import SEEN, Run
from landmarks.training.seen_copies import copies_of_seen

NAMED = 5
"""Images and landmarks named in a line; the records of numbers name more."""

RECORDED = 100


@dataclass(frozen=True)
class Asked:
    """Images to ask a run about, and what was decided on the way to them."""

    dataset: Dataset
    images: pl.DataFrame  # rows of `dataset.split(part)`
    split: str  # all: of a dataset without splits, or asked for
    own: bool  # whether it is the dataset that the run was trained on, divided as it was
    matching: Matching  # the dataset's landmarks and the run's labels
    seen: pl.DataFrame  # images left out because the run has seen them, see `sightings`, or a copy of them
    copies: int = 0  # how many of those are changed copies, see `copies_of_seen`

    @property
    def labels(self) -> pl.DataFrame:
        """`landmark_id`, in the dataset's ids, and `label`, the run's label of that landmark."""
        return self.matching.labels

    def record(self) -> dict[str, Any]:
        """Return what a record of numbers says about the images behind them."""
        return {
            "own_data": self.own,
            "data_digest": self.dataset.digest,
            "matched": {
                "by": self.matching.by,
                "landmarks": self.matching.matched,
                "of": len(self.dataset.labels),
                "without_partner": self.matching.alone[:RECORDED],
            },
            "seen": {
                "images": len(self.seen),
                "copies": self.copies,
                "first": self.seen["image_id"].head(RECORDED).to_list(),
            },
        }


def ask(run: Run, data: Place | None, split: str, *, any_landmarks: bool = False, keep_seen: str = "") -> Asked:
    """Return the images of a split of the run's own dataset, or of `data`, that the run may be asked about.

    A dataset named with `data` that has no splits is taken whole. What the run was trained on or validated with, or
    what the run had seen whose weights it began from, is left out and named, except in the splits train and val of its
    own dataset, where it is what is asked for; so are changed copies of it in `data`. With `keep_seen` what the run
    itself has seen is kept, for the reason given, and counted; copies of it are not looked for.
    Raises `LandmarksError` when its own dataset was divided anew, when nothing is left, or when it knows none of the
    dataset's landmarks (unless `any_landmarks`).
    """
    dataset = open_own(run) if data is None else open_dataset(data)
    own = data is None or is_own(run, dataset)
    if not own and dataset.splits is None:
        split = "all"
    images = dataset.split(split)
    if not len(images):
        filled = [name for name in SPLITS if dataset.splits is not None and dataset.count(name)]
        raise LandmarksError(
            f'the split "{split}" of {dataset.folder} holds no images',
            way_out=f"name another with --split: {', '.join(filled)}" if filled else "",
        )
    matching = _matched(run, dataset, required=not any_landmarks, told=not own and not any_landmarks)
    seen = _sightings(run, dataset, images, split, own=own)
    copies = 0
    if not own and not keep_seen and (known := run.seen) is not None:
        rest = images.join(seen, on="image_id", how="anti", maintain_order="left")
        changed = copies_of_seen(run, dataset, rest, known)
        copies, seen = len(changed), pl.concat([seen, changed.select(seen.columns)])
    before = pl.col("through").is_not_null()
    if keep_seen and (kept := len(seen.filter(~before))):
        note(f"{kept} of the {len(images)} images are ones that {run.name} has seen and are kept: {keep_seen}")
        seen = seen.filter(before)
    if len(seen):
        told = f"{len(seen)} of the {len(images)} images of {dataset.folder}"
        if len(seen) == len(images):
            raise LandmarksError(
                f'{run.name} has seen every image of the split "{split}" of {dataset.folder} in its training',
                received=_named(seen["image_id"].to_list()),
                way_out="name images that it was neither trained on nor validated with",
            )
        which = _named(seen["image_id"].to_list())
        changed_too = f" ({copies} of them cropped, framed, recoloured or otherwise changed)" if copies else ""
        note(f"{told} are left out, because {run.name} has seen them in its training{changed_too}: {which}")
        images = images.join(seen, on="image_id", how="anti", maintain_order="left")
    return Asked(dataset, images, split, own, matching, seen, copies)


def kin_of_training(asked: Asked) -> int:
    """Return how many of the images asked for are grouped with images that the run learned from or was chosen by.

    Groups are near-duplicates: a split that came with the images, or was drawn at random, may part them.
    """
    if not asked.own or asked.split not in SPLITS:
        return 0
    learned = [asked.dataset.split(name)["group"] for name in ("train", "val") if name != asked.split]
    return int(asked.images["group"].drop_nulls().is_in(pl.concat(learned).drop_nulls().implode()).sum())


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


def _sightings(run: Run, dataset: Dataset, images: pl.DataFrame, split: str, *, own: bool) -> pl.DataFrame:
    """Return which of `images` are to be left out.

    In the run's own dataset the splits train and val are what it has seen, and the test is apart by the rule of the
    split: copies of an image on both sides of a random one are told by `split`, and are no matter of this run.
    """
    known = run.seen if own else _known(run)
    if known is None:
        return sightings(images, pl.DataFrame(schema=SEEN))
    found = sightings(images, known)
    before = pl.col("through").is_not_null()
    if own and split in ("train", "val"):
        return found.filter(before)
    if own and is_own(run, dataset):
        return found.filter(before | (pl.col("image_id") == pl.col("seen_id")))
    return found


def _known(run: Run) -> pl.DataFrame | None:
    """Return what `run` has seen; of a run that does not say, from its dataset, while that is as it was."""
    seen = run.seen
    if seen is not None:
        return seen
    if run.record.get("export"):
        note(
            f"{run.name} does not say which images it was trained on: some of these may be among them (evaluating its "
            "run leaves them out)"
        )
        return None
    try:
        own = find_own(run)
    except LandmarksError:
        own = None
    if own is None or not is_own(run, own) or own.splits is None:
        note(
            f"whether {run.name} was trained on some of these images cannot be known: it was trained before runs "
            "kept that, and its dataset is not there as it was; train again to have a run that knows"
        )
        return None
    return pl.concat(
        [as_seen(own.split(split).filter(pl.col("label").is_not_null()), split) for split in ("train", "val")]
    )


def _named(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f", … ({len(names)} in all)" if len(names) > NAMED else "")
