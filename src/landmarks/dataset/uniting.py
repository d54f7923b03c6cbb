"""Uniting the tables of several datasets: which landmarks and images are the same, and their ids in the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from landmarks.dataset.manifest import IMAGES, LABELS, REJECTED, Dataset
from landmarks.dataset.naming import ARCHIVE_IDS, LISTED, NUMBERS, identified_by, match_landmarks
from landmarks.support.console import note, plural
from landmarks.support.files import digest_of
from landmarks.support.tables import read_table

ADDING = ".adding"
"""The folder in a dataset in which images to be added to it are prepared."""

OWN_IDS = 1_000_000
"""The first of the new landmark ids: those of the archive end at 203,093."""

_CONTENT = ("length", "width", "height", "phash")
_CREDITS = ("author", "license", "title")
_ARCHIVE_ID = "^[0-9a-f]{16}$"
_LONGER = "-[0-9a-f]{12}$"


@dataclass(frozen=True)
class United:
    """The tables of several datasets, united."""

    images: pl.DataFrame  # columns of `IMAGES`, and `source`: position of the dataset that holds the bytes
    labels: pl.DataFrame  # columns of `LABELS`
    rejected: pl.DataFrame  # columns of `REJECTED`
    splits: pl.DataFrame | None  # columns of `SPLIT`, of the images that had a split
    identified_by: str  # one of `naming.ID_SOURCES`


def unite(datasets: Sequence[Dataset], images: Sequence[pl.DataFrame] | None = None) -> United:
    """Return the united tables of `datasets`; `images` replaces the images of each, if given.

    Landmarks are matched by the archive's ids or by name (see `match_landmarks`); one whose id belongs to another in an
    earlier dataset gets a new id. An image that two datasets hold occurs once, with the first one's row; another image
    with the same id gets a longer id. Notes tell what was renamed and how many labels differ.
    """
    images = images or [dataset.images for dataset in datasets]
    first = datasets[0]
    labels, by = first.labels, identified_by(first.record, first.labels)
    united = images[0].with_columns(source=pl.lit(0, pl.UInt32))
    rejected, conflicts = [_rejected_of(first)], [pl.DataFrame(schema=REJECTED)]
    splits = [first.splits] if first.splits is not None else []
    for number, (theirs, table) in enumerate(zip(datasets[1:], images[1:], strict=True), 1):
        labels, by, ids = _with_landmarks(labels, by, theirs)
        numbered = _renumbered(table, ids).with_columns(source=pl.lit(number, pl.UInt32))
        new, conflicting, ids_of_images = _without_shared(united, numbered, theirs)
        united = pl.concat([_with_credits(united, ids_of_images.shared), new])
        rejected.append(_rejected_of(theirs))
        conflicts.append(conflicting)
        if theirs.splits is not None:
            renamed = ids_of_images.renamed(theirs.splits)
            splits.append(renamed.join(united.select("image_id"), on="image_id", how="semi"))
    united = united.sort("image_id")
    lost = pl.concat(rejected).join(united.select("image_id"), on="image_id", how="anti")
    return United(
        images=united,
        labels=_counted(labels, united),
        rejected=pl.concat([lost, *conflicts]).unique(maintain_order=True),
        splits=pl.concat(splits).unique("image_id", keep="first").sort("image_id") if splits else None,
        identified_by=by,
    )


def _with_landmarks(labels: pl.DataFrame, by: str, theirs: Dataset) -> tuple[pl.DataFrame, str, dict[int, int]]:
    """Return the labels with those of another dataset, what identifies them, and their id → its id in the result."""
    their_by = identified_by(theirs.record, theirs.labels)
    our_ids = dict(zip(labels["label"], labels["landmark_id"], strict=True))
    matched = match_landmarks(labels, by, theirs.labels, their_by).labels
    partner = {their_id: our_ids[label] for their_id, label in matched.iter_rows()}
    used, taken = set(labels["landmark_id"]), set()
    ids: dict[int, int] = {}
    new: list[tuple[int, str | None, str | None]] = []
    moved = []
    for id, name, category in theirs.labels.sort("label").select("landmark_id", "name", "category").iter_rows():
        ours = partner.get(id)
        if ours is not None and ours not in taken:
            taken.add(ours)
            ids[id] = ours
            continue
        ids[id] = id if id not in used else max(OWN_IDS, max(used) + 1)
        if ids[id] != id:
            moved.append(f"{name or id}: {id} is now {ids[id]}")
        used.add(ids[id])
        new.append((ids[id], name, category))
    if moved:
        some = ", ".join(moved[:5]) + (" …" if len(moved) > 5 else "")
        have = "landmark has an id that stands" if len(moved) == 1 else "landmarks have ids that stand"
        note(f"{len(moved):,} {have} for others before, of {_origin(theirs)}: {some}")
    columns = ["landmark_id", "name", "category"]
    added = pl.DataFrame(new, schema={name: LABELS[name] for name in columns}, orient="row")
    together = pl.concat([labels.select(columns), added]).sort("landmark_id").with_row_index("label")
    ids_decide = {by, their_by} <= {ARCHIVE_IDS, NUMBERS}
    return together, (by if by == their_by else ARCHIVE_IDS if ids_decide else LISTED), ids


def _renumbered(images: pl.DataFrame, ids: dict[int, int]) -> pl.DataFrame:
    """Return `images` with landmark ids replaced by `ids`."""
    changed = {old: new for old, new in ids.items() if old != new}
    if not changed:
        return images
    return images.with_columns(
        pl.col("landmark_id").replace(changed), pl.col("landmarks").list.eval(pl.element().replace(changed))
    )


@dataclass(frozen=True)
class _ImageIds:
    """How the ids of another dataset's images relate to ours."""

    shared: pl.DataFrame  # their rows of images that we hold too, under our ids
    clashing: pl.DataFrame  # their `image_id`s that other images of ours have, and those in the result in `renamed`

    def renamed(self, table: pl.DataFrame) -> pl.DataFrame:
        """Return a table of theirs with the new ids."""
        if self.clashing.is_empty():
            return table
        joined = table.join(self.clashing, on="image_id", how="left", maintain_order="left")
        return joined.with_columns(image_id=pl.coalesce("renamed", "image_id")).select(table.columns)


def _origin(dataset: Dataset) -> str:
    """Return the folder of a dataset, or of one that is being added, which lies in a hidden folder, its origin."""
    adding = dataset.folder.parent.name == ADDING
    return str((dataset.record.get("origin") if adding else None) or dataset.folder)


def _without_shared(
    ours: pl.DataFrame, theirs: pl.DataFrame, dataset: Dataset
) -> tuple[pl.DataFrame, pl.DataFrame, _ImageIds]:
    """Return the images of `theirs` that are not in `ours`, under their new ids.

    Also returned are rows of `REJECTED` for shared images with another label, and the ids. `theirs` are of `dataset`.
    """
    columns = [*_CONTENT, "landmark_id"]
    same_id = theirs.join(
        ours.select("image_id", *(pl.col(name).alias(f"our_{name}") for name in columns)), on="image_id", how="inner"
    )
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"our_{name}")) for name in _CONTENT)
    same_id = same_id.with_columns(same=pl.col("image_id").str.contains(_ARCHIVE_ID) | same)
    others = same_id.filter(~pl.col("same")).select(theirs.columns)
    added_before = others.join(_with_longer_ids(ours), on=["image_id", *_CONTENT], how="inner", nulls_equal=True)
    added_before = added_before.unique("image_id", keep="first", maintain_order=True)
    shared = pl.concat(
        [
            same_id.filter("same").select(*theirs.columns, "our_landmark_id", our_id="image_id"),
            added_before.select(*theirs.columns, "our_landmark_id", "our_id"),
        ]
    )
    differs = shared.filter(pl.col("landmark_id").ne_missing(pl.col("our_landmark_id")))
    why = pl.format("it is there as landmark {}, here {}", *(
        pl.col(name).cast(pl.String).fill_null("unknown") for name in ("our_landmark_id", "landmark_id")
    ))  # fmt: skip
    conflicting = differs.select(image_id="our_id", where=pl.lit(str(dataset.folder)), why=why)
    clashing = others.join(added_before, on="image_id", how="anti").select("image_id")
    new_ids = _longer_ids(clashing["image_id"], str(dataset.content_digest), ours["image_id"])
    clashing = clashing.with_columns(renamed=pl.Series(new_ids, dtype=pl.String))
    renamed = pl.concat([clashing, added_before.select("image_id", renamed="our_id")])
    ids = _ImageIds(shared.with_columns(image_id="our_id").select(list(IMAGES)), renamed)
    new = ids.renamed(theirs.join(shared.select("image_id"), on="image_id", how="anti"))
    if len(shared):
        labels = f"; {len(differs):,} of them with another label there: that of the first is kept"
        note(f"there already: {plural(len(shared), 'image')} of {_origin(dataset)}{labels if len(differs) else ''}")
    if len(clashing):
        which = f"{plural(len(clashing), 'image')} of {_origin(dataset)} with ids of other images"
        note(f"longer ids are given to {which}: {new_ids[0]} …")
    return new, conflicting, ids


def _with_longer_ids(ours: pl.DataFrame) -> pl.DataFrame:
    """Return the images that got longer ids when they were added, `our_id`, with the `image_id` before."""
    longer = ours.filter(pl.col("image_id").str.contains(_LONGER))
    return longer.select(
        pl.col("image_id").str.replace(_LONGER, ""), *_CONTENT, our_id="image_id", our_landmark_id="landmark_id"
    )


def _longer_ids(ids: pl.Series, digest: str, taken: pl.Series) -> list[str]:
    """Return each of `ids` with 12 digits of a digest, none of which is `taken`."""
    longer = [f"{id}-{digest_of(digest, id)[:12]}" for id in ids]
    while ids.len() and taken.is_in(longer).any():
        digest += "+"
        longer = [f"{id}-{digest_of(digest, id)[:12]}" for id in ids]
    return longer


def _with_credits(ours: pl.DataFrame, shared: pl.DataFrame) -> pl.DataFrame:
    """Return `ours` with the credits of shared images that only the other dataset has."""
    if shared.is_empty():
        return ours
    theirs = shared.select("image_id", *(pl.col(name).alias(f"their_{name}") for name in _CREDITS))
    joined = ours.join(theirs, on="image_id", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce(name, f"their_{name}").alias(name) for name in _CREDITS).select(ours.columns)


def _rejected_of(dataset: Dataset) -> pl.DataFrame:
    path: Path = dataset.folder / "rejected.parquet"
    return read_table(path, REJECTED).select(list(REJECTED)) if path.exists() else pl.DataFrame(schema=REJECTED)


def _counted(labels: pl.DataFrame, images: pl.DataFrame) -> pl.DataFrame:
    counts = images.drop_nulls("landmark_id").group_by("landmark_id").agg(images=pl.len())
    counted = labels.select("label", "landmark_id", "name", "category").join(counts, on="landmark_id", how="left")
    return counted.with_columns(pl.col("images").fill_null(0)).select(list(LABELS)).sort("label")
