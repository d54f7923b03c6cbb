"""The images that a run may be evaluated on: those of a split, without the ones it saw in its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from landmarks.dataset.copies import copies_between
from landmarks.dataset.manifest import SPLITS, Dataset, open_dataset, require_split
from landmarks.dataset.naming import Matching
from landmarks.dataset.sketches import Sketches, kept_sketches
from landmarks.dataset.spelling import alike_names
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError
from landmarks.support.places import Place, in_shell
from landmarks.training.own_data import (
    find_own_dataset,
    find_seen,
    is_own_dataset,
    match_dataset,
    open_own_dataset,
    seen_rows,
)
from landmarks.training.run import SEEN, Run

NAMED = 5
"""How many images or landmarks a message names; records of metrics name up to `RECORDED`."""

RECORDED = 100

MOST_COMPARED = 50_000
"""Images of both datasets together up to which copies are searched for by default."""


@dataclass(frozen=True)
class EligibleImages:
    """Images that a run may be evaluated on, and how they were chosen."""

    dataset: Dataset
    images: pl.DataFrame  # rows of `dataset.split(split)`
    split: str  # "all" for a dataset without splits, or when the caller chose it
    own: bool  # whether `dataset` is what the run was trained on, with the same splits
    matching: Matching  # of the dataset's landmarks to the run's labels
    seen: pl.DataFrame  # images left out because the run saw them or a copy of them; columns of `find_seen`
    copies: int = 0  # how many of `seen` are changed copies, see `copies_of_seen`

    @property
    def labels(self) -> pl.DataFrame:
        """`landmark_id` (the dataset's ids) and `label` (the run's labels) of each matched landmark."""
        return self.matching.labels

    def record(self) -> dict[str, Any]:
        """Return the description of these images that is stored with their metrics, as JSON."""
        return {
            "own_data": self.own,
            "data_digest": self.dataset.digest,
            "matched": {
                "by": self.matching.by,
                "landmarks": self.matching.matched,
                "of": len(self.dataset.labels),
                "without_partner": self.matching.unmatched[:RECORDED],
            },
            "seen": {
                "images": len(self.seen),
                "copies": self.copies,
                "first": self.seen["image_id"].head(RECORDED).to_list(),
            },
        }


def eligible_images(
    run: Run, data: Place | None, split: str, *, any_landmarks: bool = False, keep_seen: str = ""
) -> EligibleImages:
    """Return the images of a split of the run's own dataset, or of `data`, that the run may be evaluated on.

    If `data` has no splits, all its images are used. Images that the run was trained on or validated with are left out
    with a note, and so are changed copies of them in `data`, or in the run's own dataset if that has changed since, and
    images seen by the run whose weights this one began from. The splits train and val of the run's own dataset are an
    exception: they keep the run's own images. With `keep_seen` (the reason, shown in the note) images that the run
    itself saw are kept and counted, and copies are not searched.

    Raises `LandmarksError` when the run's own dataset was divided anew, when no image is left, or when the run knows
    none of the dataset's landmarks (unless `any_landmarks`).
    """
    require_split(split)
    dataset = open_own_dataset(run) if data is None else open_dataset(data)
    own = data is None or is_own_dataset(run, dataset)
    if not own and dataset.splits is None:
        split = "all"
    images = dataset.split(split)
    if not len(images):
        filled = [name for name in SPLITS if dataset.splits is not None and dataset.count(name)]
        raise LandmarksError(
            f'the split "{split}" of {dataset.folder} holds no images',
            way_out=f"name another with --split: {', '.join(filled)}" if filled else "",
        )
    matching = _matched(run, dataset, required=not any_landmarks, verbose=not own and not any_landmarks)
    seen = _find_seen(run, dataset, images, split, own=own)
    copies = 0
    as_trained = own and (is_own_dataset(run, dataset) or split in ("train", "val"))
    if not as_trained and not keep_seen and (run_seen := run.seen) is not None:
        rest = images.join(seen, on="image_id", how="anti", maintain_order="left")
        changed = copies_of_seen(run, dataset, rest, run_seen)
        copies, seen = len(changed), pl.concat([seen, changed.select(seen.columns)])
    by_earlier_run = pl.col("through").is_not_null()
    if keep_seen and (kept := len(seen.filter(~by_earlier_run))):
        note(f"{kept} of the {len(images)} images are ones that {run.name} has seen and are kept: {keep_seen}")
        seen = seen.filter(by_earlier_run)
    if len(seen):
        if len(seen) == len(images):
            raise LandmarksError(
                f'{run.name} has seen every image of the split "{split}" of {dataset.folder} in its training',
                received=_first_names(seen["image_id"].to_list()),
                way_out="name images that it was neither trained on nor validated with",
            )
        names = _first_names(seen["image_id"].to_list())
        changed_too = f" ({copies} of them cropped, framed, recoloured or otherwise changed)" if copies else ""
        note(
            f"{len(seen)} of the {len(images)} images of {dataset.folder} are left out, because {run.name} has seen "
            f"them in its training{changed_too}: {names}"
        )
        images = images.join(seen, on="image_id", how="anti", maintain_order="left")
    return EligibleImages(dataset, images, split, own, matching, seen, copies)


def near_duplicates_of_training(eligible: EligibleImages) -> int:
    """Return how many eligible images share a group with images that the run was trained on or validated with.

    Groups are near-duplicates. Only a split that came with the images, or one drawn at random, divides a group.
    """
    if not eligible.own or eligible.split not in SPLITS:
        return 0
    groups = [eligible.dataset.split(name)["group"] for name in ("train", "val") if name != eligible.split]
    return int(eligible.images["group"].drop_nulls().is_in(pl.concat(groups).drop_nulls().implode()).sum())


def _matched(run: Run, dataset: Dataset, *, required: bool, verbose: bool) -> Matching:
    matching = match_dataset(run, dataset)
    landmarks = len(dataset.labels)
    names = run.labels["name"].fill_null("?").to_list()
    spelled = _spelled_otherwise(matching, names)
    if required and landmarks and not matching.matched:
        raise LandmarksError(
            f"the run {run.folder} does not fit the data {dataset.folder}: no landmark has the same {matching.by}",
            received=_first_names(matching.unmatched),
            expected=f"some of its {len(names)}: {_first_names(names)}",
            way_out=spelled,
        )
    if verbose:
        unknown = (
            f"; without a partner, so unknown to it: {_first_names(matching.unmatched)}" if matching.unmatched else ""
        )
        note(
            f"{matching.matched} of the {plural(landmarks, 'landmark')} of {dataset.folder} "
            f"{'is' if matching.matched == 1 else 'are'} known to {run.name}, matched by {matching.by}{unknown}"
        )
        if spelled:
            note(spelled)
    return matching


def _spelled_otherwise(matching: Matching, names: list[str]) -> str:
    """Return which landmarks without a partner may be ones of the run in another spelling; empty if none."""
    known = set(names)
    pairs = [
        f'"{one}" may be "{name}"'
        for same in alike_names([*matching.unmatched, *names])
        for one in same
        for name in same
        if one in matching.unmatched and one not in known and name in known
    ]
    return f"{_first_names(pairs)}: if so, rename its folder, and import the images anew" if pairs else ""


def _find_seen(run: Run, dataset: Dataset, images: pl.DataFrame, split: str, *, own: bool) -> pl.DataFrame:
    """Return which of `images` to leave out; columns of `find_seen`.

    In the run's own dataset, train and val keep what the run itself saw, and test keeps images that merely look like
    ones in train: a random split may divide such copies, and `split` reports them.
    """
    seen = run.seen if own else _seen_by(run)
    if seen is None and is_own_dataset(run, dataset):  # an export, or a run from before this was kept
        seen = _seen_of_splits(dataset)
    if seen is None:
        return find_seen(images, pl.DataFrame(schema=SEEN))
    found = find_seen(images, seen)
    by_earlier_run = pl.col("through").is_not_null()
    if own and split in ("train", "val"):
        return found.filter(by_earlier_run)
    if own and is_own_dataset(run, dataset):
        return found.filter(by_earlier_run | (pl.col("image_id") == pl.col("seen_id")))
    return found


def _seen_by(run: Run) -> pl.DataFrame | None:
    """Return what `run` saw: from its record or, for an older run, from its dataset if that is unchanged.

    None, with a note, when neither says.
    """
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
        own = find_own_dataset(run)
    except LandmarksError:
        own = None
    if own is None or not is_own_dataset(run, own) or own.splits is None:
        note(
            f"whether {run.name} was trained on some of these images cannot be known: it was trained before runs "
            "kept that, and its dataset is not there as it was; train again to have a run that knows"
        )
        return None
    return _seen_of_splits(own)


def _seen_of_splits(dataset: Dataset) -> pl.DataFrame | None:
    """Return what a run saw that was trained on the splits of `dataset`; None if it has none."""
    if dataset.splits is None:
        return None
    splits = [(name, dataset.split(name)) for name in ("train", "val")]
    return pl.concat([seen_rows(images.filter(pl.col("label").is_not_null()), name) for name, images in splits])


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f", … ({len(names)} in all)" if len(names) > NAMED else "")


# ── Copies of images that the run has seen: cropped, framed, recoloured or mirrored, so that hashes differ ──────────


def copies_of_seen(run: Run, dataset: Dataset, images: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Return which of `images`, rows of `dataset`, are copies of images `seen` by `run`; columns of `find_seen`.

    The images of both datasets are read. If they are gone, unreadable or too many, a note says so and nothing is
    returned.
    """
    empty = pl.DataFrame(schema={"image_id": pl.String, "seen_id": pl.String, "split": pl.String, "through": pl.String})
    try:
        own = find_own_dataset(run)
    except LandmarksError:
        note(f"whether some are changed copies of images {run.name} has seen is not known: its dataset is not there")
        return empty
    if len(images) + len(seen) > MOST_COMPARED:
        note(
            f"changed copies of images {run.name} has seen are not looked for among so many; to see them: "
            f"landmarks join {in_shell(own.folder)} {in_shell(dataset.folder)} -o BOTH, then landmarks split BOTH"
        )
        return empty
    seen_images = own.images.join(
        seen.filter(pl.col("through").is_null()).select("image_id", "split"), on="image_id", how="inner"
    )
    if not len(images) or not len(seen_images):
        return empty
    sketches = _sketches(run, dataset, images)
    seen_sketches = _sketches(run, own, seen_images) if sketches is not None else None
    if sketches is None or seen_sketches is None:
        return empty
    pairs = copies_between(sketches, seen_sketches)
    copies, originals = images[pairs[:, 0]], seen_images[pairs[:, 1]]
    table = copies.select("image_id").with_columns(originals.select(pl.col("image_id").alias("seen_id"), "split"))
    return table.with_columns(through=pl.lit(None, pl.String)).unique("image_id", keep="first", maintain_order=True)


def _sketches(run: Run, dataset: Dataset, images: pl.DataFrame) -> Sketches | None:
    """Return the sketches of some images of a dataset; those of all its images are computed and cached.

    None, with a note, when none of the images can be read.
    """
    sketches = kept_sketches(dataset, dataset.images)
    row_of = dict(zip(dataset.images["image_id"], range(len(dataset.images)), strict=True))
    rows = np.array([row_of[image_id] for image_id in images["image_id"]])
    if sketches is None or not sketches.counts[rows].any():
        note(
            f"whether some are changed copies of images {run.name} has seen is not known: no image of "
            f"{dataset.folder} can be read"
        )
        return None
    return sketches.of(rows)
