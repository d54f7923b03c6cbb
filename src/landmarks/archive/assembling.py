"""Assemble a dataset from the tables of finished TARs: its manifest, labels, rejected images and byte index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from landmarks.archive.fetch_plan import FetchPlan
from landmarks.archive.locate import MEMBERS, IndexedTar, write_index
from landmarks.archive.mirror import tar_path
from landmarks.archive.tar_to_shard import Outcome, TarTask, finished_part, members_file
from landmarks.dataset.division import extend_division, read_division, with_groups
from landmarks.dataset.groups import group_images
from landmarks.dataset.manifest import (
    IMAGES,
    REJECTED,
    Dataset,
    effective_corrections,
    open_dataset,
    stored_corrections,
    with_corrections,
    write_dataset,
)
from landmarks.dataset.naming import ARCHIVE_IDS, counted_labels
from landmarks.dataset.split import note_division
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError
from landmarks.support.files import write_record
from landmarks.support.tables import read_metadata, read_table

MAX_NOTED = 10
"""How many rejected images are named in notes; the table has all."""


def complete_dataset(out: Path, order: str) -> Dataset | None:
    """Return the dataset in `out` if it was made for the same order and is complete, else None."""
    try:
        dataset = open_dataset(out)
    except LandmarksError:
        return None
    complete = dataset.record.get("order") == order and not dataset.record.get("failed")
    lengths = dataset.images.group_by("shard").agg(end=(pl.col("offset") + pl.col("length")).max())
    for shard, end in lengths.iter_rows():
        path = dataset.path_of(shard)
        complete = complete and path.is_file() and path.stat().st_size >= end
    return dataset if complete else None


def assemble(
    template: TarTask, selection: pl.DataFrame, metadata: dict[str, str], plan: FetchPlan, outcomes: Sequence[Outcome]
) -> Dataset:
    """Write the dataset of all TARs that are done, and note what is missing.

    `template` has the fields that all tasks share, `metadata` is that of the selection's file.
    """
    parts, decoders = _read_parts(plan.tasks)
    duplicates = parts.filter(pl.col("why").is_null()).filter(pl.col("image_id").is_duplicated())
    # Of an image in several TARs the first is kept, but no damaged one in place of a sound one.
    parts = parts.sort(pl.col("why").is_not_null(), "shard").unique("image_id", keep="first", maintain_order=True)
    kept = parts.filter(pl.col("why").is_null()).drop("why")
    failures = {outcome.tar: outcome.failure for outcome in outcomes if outcome.failure}
    rejected = _rejected(template, selection, parts, plan, outcomes)
    images, labels = _images(kept, selection).sort("image_id"), _labels(kept, selection)
    corrections = stored_corrections(template.out)
    corrected, earlier = with_corrections(images, corrections), read_division(template.out)
    division = None if earlier is None else extend_division(corrected, earlier)
    grouping = group_images(corrected) if division is None else division.grouping
    remarks = [remark for outcome in outcomes for remark in outcome.remarks]
    if len(decoders) > 1:
        remarks.append(f"decoded by {' and '.join(decoders)}, which differ by some grey levels")
        note(remarks[-1])
    if len(duplicates):
        remarks.append(f"{duplicates['image_id'].n_unique()} images lie in several TARs; the first is kept")
    host = template.mirror.host
    transfer = {
        "plan": str(plan),
        "requests_of_this_process": host.requests,
        "repeated": host.retries,
        "remarks": remarks,
    }
    write_record(template.out / "transfer.json", transfer, verb="fetch")
    _write_byte_index(template, plan)
    dataset = write_dataset(
        template.out,
        verb="fetch",
        images=with_groups(images, corrected["image_id"], grouping),
        labels=labels,
        split=None
        if division is None
        else (division.table, division.metadata(len(effective_corrections(corrections)))),
        rejected=rejected,
        record={
            "set": template.set,
            "origin": str(template.mirror.root or template.mirror.place),
            "rule": metadata.get("rule", ""),
            "max_side": template.max_side,
            "order": template.digest,
            "identified_by": ARCHIVE_IDS,
            "digests": json.loads(metadata.get("digests", "{}")),
            "decoders": decoders,
            "failed": [{"tar": tar_path(template.set, tar), "why": why} for tar, why in sorted(failures.items())],
        },
    )
    _note_result(dataset, host.retries, failures)
    if division is not None:
        note_division(division, labels)
    return dataset


def _read_parts(tasks: Sequence[TarTask]) -> tuple[pl.DataFrame, list[str]]:
    """Return the tables of all TARs that are done, as one, and the decoders of their images."""
    tables, decoders = [], set()
    for task in tasks:
        part = finished_part(task)
        if part is not None:
            tables.append(part.with_columns(shard=pl.lit(task.name)))
            if part["why"].null_count():
                decoders.add(read_metadata(task.part).get("decoder", "unknown"))
    if not tables:
        raise LandmarksError("no TAR could be had", way_out="see the lines above, and run the same command again")
    return pl.concat(tables), sorted(decoders)


def _images(kept: pl.DataFrame, selection: pl.DataFrame) -> pl.DataFrame:
    selected = [name for name in IMAGES if name in selection.columns]
    images = kept.join(selection.select(selected), on="image_id", how="left")
    missing = [name for name in IMAGES if name not in images.columns]
    return images.with_columns(pl.lit(None).cast(IMAGES[name]).alias(name) for name in missing)


def _labels(kept: pl.DataFrame, selection: pl.DataFrame) -> pl.DataFrame:
    """Return one label per selected landmark, including landmarks of which no image could be fetched."""
    known = selection.drop_nulls("landmark_id")
    for name in ("name", "category"):
        if name not in known.columns:
            known = known.with_columns(pl.lit(None, pl.String).alias(name))
    landmarks = known.group_by("landmark_id").agg(pl.col("name", "category").drop_nulls().first())
    return counted_labels(landmarks, known.join(kept.select("image_id"), on="image_id", how="semi"))


def _rejected(
    template: TarTask, selection: pl.DataFrame, parts: pl.DataFrame, plan: FetchPlan, outcomes: Sequence[Outcome]
) -> pl.DataFrame:
    """Return the selected images that are not in the dataset, with where they were looked for and the reason."""
    undecodable = parts.filter(pl.col("why").is_not_null()).select(
        "image_id", (template.set + "/" + pl.col("shard")).alias("where"), "why"
    )
    lost = [(id, tar_path(template.set, outcome.tar), outcome.failure) for outcome in outcomes for id in outcome.lost]
    rows = pl.concat([undecodable, pl.DataFrame(lost, REJECTED, orient="row").unique("image_id", keep="first")])
    rows = rows.join(parts.filter(pl.col("why").is_null()), on="image_id", how="anti").unique("image_id", keep="first")
    missing = selection.select("image_id").join(parts, on="image_id", how="anti").join(rows, on="image_id", how="anti")
    failed = [tar_path(template.set, outcome.tar) for outcome in outcomes if outcome.failure]
    damaged = [task.name for task in plan.tasks if _damaged_headers(task)]
    why = "in no TAR"
    if failed:
        why += f" that could be had ({', '.join(failed[:3])}{' …' if len(failed) > 3 else ''} could not)"
    elif damaged:
        why += f" ({', '.join(damaged[:3])}{' …' if len(damaged) > 3 else ''}: damaged)"
    absent = missing.with_columns(pl.lit(f"{template.set}/").alias("where"), pl.lit(why).alias("why"))
    return pl.concat([rows.select(list(REJECTED)), absent.select(list(REJECTED))])


def _damaged_headers(task: TarTask) -> int:
    try:
        return int(read_metadata(members_file(task)).get("damaged", "0"))
    except LandmarksError:
        return 0


def _write_byte_index(template: TarTask, plan: FetchPlan) -> None:
    """Write a byte index of the streamed TARs, with which another fetch from them can use byte ranges."""
    streamed = {task.tar: task for task in plan.tasks if task.places is None and task.size is not None}
    members = {}
    for tar, task in streamed.items():
        if members_file(task).exists() and finished_part(task) is not None:
            members[tar] = read_table(members_file(task), MEMBERS)
    if not members:
        return
    mirror = template.mirror
    tars = {
        tar: IndexedTar(tar, task.size or 0, task.etag, mirror.md5(template.set, tar)) for tar, task in streamed.items()
    }
    count = mirror.tar_count(template.set)
    write_index(template.out / "index.parquet", members, tars, set=template.set, mirror=mirror.place, count=count)


def _note_result(dataset: Dataset, retries: int, failures: dict[int, str]) -> None:
    rejected = read_table(dataset.folder / "rejected.parquet", REJECTED)
    for id, where, why in rejected.head(MAX_NOTED).iter_rows():
        note(f"rejected {id} ({where}): {why}")
    if len(rejected) > MAX_NOTED:
        note(f"… and {len(rejected) - MAX_NOTED:,} more, all in {dataset.folder / 'rejected.parquet'}")
    counts = f"{plural(len(dataset.images), 'image')} of {plural(len(dataset.labels), 'landmark')}"
    counts += f", {len(rejected):,} rejected"
    note(counts + (f", {retries} requests were repeated" if retries else ""))
    if failures:
        note(f"{plural(len(failures), 'TAR')} could not be had; run the same command again to try only those")
