"""Several datasets as one: which landmarks are the same, which images, and what each is called then. Tables alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from landmarks.dataset.manifest import IMAGES, LABELS, REJECTED, Dataset
from landmarks.dataset.naming import ARCHIVE_IDS, LISTED, NUMBERS, identified_by, match_landmarks
from landmarks.support.console import note
from landmarks.support.files import digest_of
from landmarks.support.tables import read_table

ADDING = ".adding"
"""The folder in a dataset in which images are made ready that are to be added to it."""

OWN_IDS = 1_000_000
"""New landmark ids begin here: the archive's end at 203,093."""

_CONTENT = ("length", "width", "height", "phash")
_CREDITS = ("author", "license", "title")
_ARCHIVE_ID = "^[0-9a-f]{16}$"


@dataclass(frozen=True)
class United:
    """The tables of several datasets as those of one."""

    images: pl.DataFrame  # columns of `IMAGES`, and `source`: which of the datasets the bytes are in
    labels: pl.DataFrame  # columns of `LABELS`
    rejected: pl.DataFrame
    splits: pl.DataFrame | None  # of the images that had one
    identified_by: str


def unite(datasets: Sequence[Dataset], images: Sequence[pl.DataFrame] | None = None) -> United:
    """Return the tables of `datasets` as one; `images` stand for those of each, if given.

    Landmarks are the same by the archive's ids or by name (see `match_landmarks`); one whose id stands for another in
    an earlier dataset gets a new id. An image that two datasets hold is there once, as the first has it; another image
    of the same id gets a longer one. What was renamed, and where labels differ, is said and stored.
    """
    images = images or [dataset.images for dataset in datasets]
    first = datasets[0]
    labels, by = first.labels, identified_by(first.record, first.labels)
    united = images[0].with_columns(source=pl.lit(0, pl.UInt32))
    rejected, contradicted = [_rejected_of(first)], [pl.DataFrame(schema=REJECTED)]
    splits = [first.splits] if first.splits is not None else []
    for number, (theirs, table) in enumerate(zip(datasets[1:], images[1:], strict=True), 1):
        labels, by, ids = _with_landmarks(labels, by, theirs)
        numbered = _renumbered(table, ids).with_columns(source=pl.lit(number, pl.UInt32))
        new, clashes, names = _without_copies(united, numbered, theirs)
        united = pl.concat([_with_credits(united, names.shared), new])
        rejected.append(_rejected_of(theirs))
        contradicted.append(clashes)
        if theirs.splits is not None:
            splits.append(names.renamed(theirs.splits).join(united.select("image_id"), on="image_id", how="semi"))
    united = united.sort("image_id")
    lost = pl.concat(rejected).join(united.select("image_id"), on="image_id", how="anti")
    return United(
        images=united,
        labels=_counted(labels, united),
        rejected=pl.concat([lost, *contradicted]).unique(maintain_order=True),
        splits=pl.concat(splits).unique("image_id", keep="first").sort("image_id") if splits else None,
        identified_by=by,
    )


def _with_landmarks(labels: pl.DataFrame, by: str, theirs: Dataset) -> tuple[pl.DataFrame, str, dict[int, int]]:
    """Return the labels with those of another dataset, what identifies them, and which id each of theirs has then."""
    their_by = identified_by(theirs.record, theirs.labels)
    known = dict(zip(labels["label"], labels["landmark_id"], strict=True))
    found = match_landmarks(labels, by, theirs.labels, their_by).labels
    partner = {of_theirs: known[label] for of_theirs, label in found.iter_rows()}
    used, taken = set(labels["landmark_id"]), set()
    ids: dict[int, int] = {}
    new: list[tuple[int, str | None, str | None]] = []
    moved = []
    for id, name, category in theirs.labels.sort("label").select("landmark_id", "name", "category").iter_rows():
        mine = partner.get(id)
        if mine is not None and mine not in taken:
            taken.add(mine)
            ids[id] = mine
            continue
        ids[id] = id if id not in used else max(OWN_IDS, max(used) + 1)
        if ids[id] != id:
            moved.append(f"{name or id}: {id} is now {ids[id]}")
        used.add(ids[id])
        new.append((ids[id], name, category))
    if moved:
        told = ", ".join(moved[:5]) + (" …" if len(moved) > 5 else "")
        have = "landmark has an id that stands" if len(moved) == 1 else "landmarks have ids that stand"
        note(f"{len(moved):,} {have} for others before, of {_called(theirs)}: {told}")
    columns = ["landmark_id", "name", "category"]
    added = pl.DataFrame(new, schema={name: LABELS[name] for name in columns}, orient="row")
    together = pl.concat([labels.select(columns), added]).sort("landmark_id").with_row_index("label")
    ids_decide = {by, their_by} <= {ARCHIVE_IDS, NUMBERS}
    return together, (by if by == their_by else ARCHIVE_IDS if ids_decide else LISTED), ids


def _renumbered(images: pl.DataFrame, ids: dict[int, int]) -> pl.DataFrame:
    """Return images with the ids that their landmarks have now."""
    changed = {old: new for old, new in ids.items() if old != new}
    if not changed:
        return images
    return images.with_columns(
        pl.col("landmark_id").replace(changed), pl.col("landmarks").list.eval(pl.element().replace(changed))
    )


@dataclass(frozen=True)
class _Names:
    """What came of the ids of another dataset's images."""

    shared: pl.DataFrame  # rows of theirs that are images of ours
    new: pl.DataFrame  # `image_id`, and `renamed` where another image of ours has that id

    def renamed(self, table: pl.DataFrame) -> pl.DataFrame:
        """Return a table of theirs under the ids that its images have now."""
        if self.new.is_empty():
            return table
        joined = table.join(self.new, on="image_id", how="left", maintain_order="left")
        return joined.with_columns(image_id=pl.coalesce("renamed", "image_id")).select(table.columns)


def _called(dataset: Dataset) -> str:
    """Return what a person knows a dataset by: what is being added lies in no folder of theirs."""
    adding = dataset.folder.parent.name == ADDING
    return str((dataset.record.get("origin") if adding else None) or dataset.folder)


def _without_copies(ours: pl.DataFrame, theirs: pl.DataFrame, of: Dataset) -> tuple[pl.DataFrame, pl.DataFrame, _Names]:
    """Return the rows of `theirs` that are other images than `ours`, what is to be said of labels, and the names."""
    columns = [*_CONTENT, "landmark_id"]
    met = theirs.join(
        ours.select("image_id", *(pl.col(name).alias(f"our_{name}") for name in columns)), on="image_id", how="inner"
    )
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"our_{name}")) for name in _CONTENT)
    met = met.with_columns(same=pl.col("image_id").str.contains(_ARCHIVE_ID) | same)
    shared = met.filter("same")
    differs = shared.filter(pl.col("landmark_id").ne_missing(pl.col("our_landmark_id")))
    told = pl.format("it is there as landmark {}, here {}", *(
        pl.col(name).cast(pl.String).fill_null("unknown") for name in ("our_landmark_id", "landmark_id")
    ))  # fmt: skip
    clashes = differs.select("image_id", where=pl.lit(str(of.folder)), why=told)
    other = met.filter(~pl.col("same")).select("image_id")
    new = other.with_columns(
        renamed=pl.Series(
            [f"{id}-{digest_of(str(of.content_digest), id)[:12]}" for id in other["image_id"]], dtype=pl.String
        )
    )
    names = _Names(shared.select(list(IMAGES)), new)
    rows = names.renamed(theirs.join(shared.select("image_id"), on="image_id", how="anti"))
    if len(shared):
        apart = (
            f"; {len(differs):,} of them have another label there, that of the first is kept" if len(differs) else ""
        )
        note(f"{len(shared):,} images of {_called(of)} are there already{apart}")
    if len(new):
        note(
            f"{len(new):,} images of {_called(of)} have ids of other images, and get longer ones: {new['renamed'][0]} …"
        )
    return rows, clashes, names


def _with_credits(ours: pl.DataFrame, shared: pl.DataFrame) -> pl.DataFrame:
    """Return `ours` with the credits that only the other dataset knows of an image that both hold."""
    if shared.is_empty():
        return ours
    told = shared.select("image_id", *(pl.col(name).alias(f"their_{name}") for name in _CREDITS))
    joined = ours.join(told, on="image_id", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce(name, f"their_{name}").alias(name) for name in _CREDITS).select(ours.columns)


def _rejected_of(dataset: Dataset) -> pl.DataFrame:
    path: Path = dataset.folder / "rejected.parquet"
    return read_table(path, REJECTED).select(list(REJECTED)) if path.exists() else pl.DataFrame(schema=REJECTED)


def _counted(labels: pl.DataFrame, images: pl.DataFrame) -> pl.DataFrame:
    counts = images.drop_nulls("landmark_id").group_by("landmark_id").agg(images=pl.len())
    counted = labels.select("label", "landmark_id", "name", "category").join(counts, on="landmark_id", how="left")
    return counted.with_columns(pl.col("images").fill_null(0)).select(list(LABELS)).sort("label")
