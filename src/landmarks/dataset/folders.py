"""Folders of photographs that people have anyway become a dataset: the verb `import`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.dataset.groups import groups
from landmarks.dataset.intake import UNFINISHED, take_in
from landmarks.dataset.manifest import LABELS, PARTS, PHOTOS, REJECTED, Dataset, open_dataset, write_dataset
from landmarks.dataset.naming import (
    Landmark,
    identified_from,
    identified_in,
    identify,
    identify_among,
    landmarks_of,
    read_labels,
)
from landmarks.dataset.sources import Found, Source, list_source, refuse_foreign
from landmarks.dataset.split import given, store
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, StaleError, UsageError
from landmarks.support.files import (
    digest_of,
    held,
    read_record,
)
from landmarks.support.tables import read_table


def import_(
    source: Path | str,
    out: Path | str,
    *,
    labels: Path | str | None = None,
    copy: bool = True,
    max_side: int = 512,
) -> Dataset:
    """Make a dataset of a folder per landmark, of train/val/test folders of these (which stay parts), or of a CSV.

    Photographs are copied into shards, no side longer than `max_side` pixels, or with `copy=False` left where they are.
    Landmark ids come from the sorted names, or with `labels` from an earlier dataset or run, so that a missing folder
    shifts nothing. Photographs in no folder, or in `_unknown`, show nothing known. What is no whole picture is named in
    `rejected.parquet`. A CSV has the columns `path` (relative to it) and `label`, and where known `id`, `part`,
    `author`, `license`, `title`. An import that was killed goes on where it stopped.
    """
    source, out = Path(source), Path(out)
    refuse_foreign(out, ("dataset.json", UNFINISHED), "dataset")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out} lies inside {source}", way_out="choose a folder outside of what is imported")
    listed = list_source(source)
    names = [one.name for one in listed.found if one.name is not None]
    earlier = read_labels(Path(labels)) if labels is not None else None
    if earlier is None:
        landmarks = identify(names, listed.listed)
        identified = identified_from(source, landmarks.values(), listed.listed)
    else:
        identified = identified_in(Path(labels))  # type: ignore[arg-type]
        landmarks = identify_among(names, earlier, listed.listed)
    if not listed.found or not (landmarks or earlier is not None):
        raise UsageError(
            f"{source} holds no photograph of a named landmark",
            expected="a folder per landmark with pictures inside, or a CSV of paths and labels",
        )
    inputs = digest_of([_fingerprint(one) for one in listed.found], earlier is None or earlier.rows(), copy, max_side)
    with held(out):
        dataset = _finished(out, inputs)
        if dataset is None:
            dataset = _make(
                listed,
                landmarks,
                earlier,
                identified_by=identified,
                source=source,
                out=out,
                inputs=inputs,
                max_side=max_side if copy else None,
            )
        if listed.has_parts and dataset.split is None:
            dataset = _keep_parts(dataset, listed)
        return dataset


def _make(
    listed: Source,
    landmarks: dict[str, Landmark],
    earlier: pl.DataFrame | None,
    *,
    identified_by: str,
    source: Path,
    out: Path,
    inputs: str,
    max_side: int | None,
) -> Dataset:
    """Take the photographs in, then write the tables; `max_side` None leaves the photographs where they are."""
    taken = take_in(listed.found, out, inputs=inputs, max_side=max_side)
    unfit = [("", where, why) for where, why in listed.rejected]
    rejected = pl.concat([taken.rejected, pl.DataFrame(unfit, schema=REJECTED, orient="row")])
    ids = pl.DataFrame(
        [(one.id, landmarks[one.name].landmark_id if one.name is not None else None) for one in listed.found],
        schema={"id": pl.String, "landmark_id": pl.Int64},
        orient="row",
    )
    table = taken.photos.join(ids, on="id", how="left", maintain_order="left")
    table = table.with_columns(
        pl.lit(None).cast(PHOTOS[name]).alias(name) for name in PHOTOS if name not in table.columns
    )
    if table.is_empty():
        raise LandmarksError(f"none of the {len(listed.found)} files in {source} is a picture")
    table = table.sort("id")
    table = table.with_columns(group=groups(table).column)
    known = landmarks_of(earlier) if earlier is not None else list(landmarks.values())
    dataset = write_dataset(
        out,
        verb="import",
        photos=table,
        labels=_labels(table, known, keep_all=earlier is not None),
        rejected=rejected,
        record={
            "set": "import",
            "origin": str(source.absolute()),
            "rule": listed.rule,
            "max_side": max_side,
            "decoders": taken.decoders,
            "identified_by": identified_by,
        },
        inputs=inputs,
    )
    shutil.rmtree(out / UNFINISHED)
    _tell(dataset, listed)
    return dataset


def _labels(photos: pl.DataFrame, landmarks: list[Landmark], *, keep_all: bool) -> pl.DataFrame:
    """Return the table of labels; a landmark without a photograph keeps its label only when labels were given."""
    images = dict(photos["landmark_id"].drop_nulls().value_counts().iter_rows())
    rows = [
        (one.landmark_id, one.name, one.category, images.get(one.landmark_id, 0))
        for one in sorted(landmarks, key=lambda one: one.landmark_id)
        if keep_all or one.landmark_id in images
    ]
    columns = [name for name in LABELS if name != "label"]
    return pl.DataFrame(rows, schema={name: LABELS[name] for name in columns}, orient="row").with_row_index("label")


def _keep_parts(dataset: Dataset, listed: Source) -> Dataset:
    parts = {one.id: PARTS.index(one.part) for one in listed.found if one.part is not None}
    part = np.asarray([parts[id] for id in dataset.photos["id"]], np.uint8)
    return store(dataset, given(dataset.photos, part))


def _fingerprint(one: Found) -> tuple[Any, ...]:
    status = one.path.stat()
    return one.where, one.name, one.part, one.id, one.author, one.license, one.title, status.st_size, status.st_mtime_ns


def _finished(out: Path, inputs: str) -> Dataset | None:
    if not (out / "dataset.json").exists():
        return None
    if read_record(out / "dataset.json")["inputs"] != inputs:
        raise StaleError(f"{out} holds a dataset of other photographs or settings", way_out="choose another folder")
    note(f"{out} already holds exactly this")
    return open_dataset(out)


def _tell(dataset: Dataset, listed: Source) -> None:
    known = dataset.photos["landmark_id"].drop_nulls().len()
    note(f"{len(dataset.photos):,} photographs, {known:,} of {len(dataset.labels):,} landmarks ({listed.rule})")
    rejected = read_table(dataset.folder / "rejected.parquet", REJECTED)
    for _, where, why in rejected.head(5).iter_rows():
        note(f"rejected: {where}: {why}")
    if len(rejected) > 5:
        note(f"rejected: {len(rejected) - 5:,} more, named in rejected.parquet")
    if listed.others:
        note(f"{listed.others:,} files do not call themselves pictures and were left out")
