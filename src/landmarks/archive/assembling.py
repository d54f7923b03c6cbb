"""The tables of finished TARs become one dataset: its manifest, its labels, what was rejected, and a byte index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from landmarks.archive.fetch_plan import Plan
from landmarks.archive.index import MEMBERS, IndexedTar, write_index
from landmarks.archive.mirror import tar_path
from landmarks.archive.tar_to_shard import Outcome, TarTask, finished_part, members_file
from landmarks.dataset.division import extend_division, read_division, with_groups
from landmarks.dataset.groups import groups
from landmarks.dataset.manifest import (
    IMAGES,
    LABELS,
    REJECTED,
    Dataset,
    effective_corrections,
    open_dataset,
    stored_corrections,
    with_corrections,
    write_dataset,
)
from landmarks.dataset.naming import ARCHIVE_IDS
from landmarks.dataset.split import note_division
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError
from landmarks.support.files import write_record
from landmarks.support.tables import read_metadata, read_table

SHOWN = 10
"""How many rejected images are named on the screen; the table has all."""


def finished_dataset(out: Path, order: str) -> Dataset | None:
    """Return the dataset in `out` when it was made from the same order and lacks no TAR."""
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
    blank: TarTask, selection: pl.DataFrame, metadata: dict[str, str], plan: Plan, outcomes: Sequence[Outcome]
) -> Dataset:
    """Write the dataset of all TARs that are done, and say what is missing."""
    parts, decoders = _parts(plan.tasks)
    twice = parts.filter(pl.col("why").is_null() & pl.col("image_id").is_duplicated())
    parts = parts.sort("shard").unique("image_id", keep="first", maintain_order=True)
    kept = parts.filter(pl.col("why").is_null()).drop("why")
    failures = {outcome.tar: outcome.failure for outcome in outcomes if outcome.failure}
    rejected = _rejected(blank, selection, parts, plan, outcomes)
    images, labels = _images(kept, selection).sort("image_id"), _labels(kept, selection)
    corrections = stored_corrections(blank.out)
    corrected, earlier = with_corrections(images, corrections), read_division(blank.out)
    division = None if earlier is None else extend_division(corrected, earlier)
    grouping = groups(corrected) if division is None else division.grouping
    remarks = [remark for outcome in outcomes for remark in outcome.remarks]
    if len(decoders) > 1:
        remarks.append(f"decoded by {' and '.join(decoders)}, which differ by some grey levels")
        note(remarks[-1])
    if len(twice):
        remarks.append(f"{twice['image_id'].n_unique()} images lie in several TARs; the first is kept")
    host = blank.mirror.host
    asked = {"requests_of_this_process": host.requests, "repeated": host.retries}
    how = {"plan": str(plan), **asked, "remarks": remarks}
    write_record(blank.out / "transfer.json", how, verb="fetch")
    _write_byte_index(blank, plan)
    dataset = write_dataset(
        blank.out,
        verb="fetch",
        images=with_groups(images, corrected["image_id"], grouping),
        labels=labels,
        split=None
        if division is None
        else (division.table, division.metadata(len(effective_corrections(corrections)))),
        rejected=rejected,
        record={
            "set": blank.set,
            "origin": str(blank.mirror.root or blank.mirror.place),
            "rule": metadata.get("rule", ""),
            "max_side": blank.max_side,
            "order": blank.digest,
            "identified_by": ARCHIVE_IDS,
            "digests": json.loads(metadata.get("digests", "{}")),
            "decoders": decoders,
            "failed": [{"tar": tar_path(blank.set, tar), "why": why} for tar, why in sorted(failures.items())],
        },
    )
    _tell(dataset, host.retries, failures)
    if division is not None:
        note_division(division, labels)
    return dataset


def _parts(tasks: Sequence[TarTask]) -> tuple[pl.DataFrame, list[str]]:
    """Return the tables of all TARs that are done, as one, and what decoded their images."""
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
    told = [name for name in IMAGES if name in selection.columns]
    images = kept.join(selection.select(told), on="image_id", how="left")
    unknown = [name for name in IMAGES if name not in images.columns]
    return images.with_columns(pl.lit(None).cast(IMAGES[name]).alias(name) for name in unknown)


def _labels(kept: pl.DataFrame, selection: pl.DataFrame) -> pl.DataFrame:
    """Return one label per selected landmark, also for one all of whose images were lost."""
    told = selection.drop_nulls("landmark_id")
    for name in ("name", "category"):
        if name not in told.columns:
            told = told.with_columns(pl.lit(None, pl.String).alias(name))
    here = told.join(kept.select("image_id"), on="image_id", how="semi").group_by("landmark_id").agg(images=pl.len())
    labels = told.group_by("landmark_id").agg(pl.col("name", "category").drop_nulls().first())
    labels = labels.join(here, on="landmark_id", how="left").sort("landmark_id").with_row_index("label")
    named = pl.coalesce("name", pl.col("landmark_id").cast(pl.String))
    return labels.with_columns(named.alias("name"), pl.col("images").fill_null(0)).select(list(LABELS))


def _rejected(
    blank: TarTask, selection: pl.DataFrame, parts: pl.DataFrame, plan: Plan, outcomes: Sequence[Outcome]
) -> pl.DataFrame:
    """Name every selected image that is not in the dataset, where it was looked for, and why it is not there."""
    undecodable = parts.filter(pl.col("why").is_not_null()).select(
        "image_id", (blank.set + "/" + pl.col("shard")).alias("where"), "why"
    )
    lost = [(id, tar_path(blank.set, one.tar), one.failure) for one in outcomes for id in one.lost]
    rows = pl.concat([undecodable, pl.DataFrame(lost, REJECTED, orient="row").unique("image_id", keep="first")])
    rows = rows.join(parts.filter(pl.col("why").is_null()), on="image_id", how="anti").unique("image_id", keep="first")
    missing = selection.select("image_id").join(parts, on="image_id", how="anti").join(rows, on="image_id", how="anti")
    failed = [tar_path(blank.set, outcome.tar) for outcome in outcomes if outcome.failure]
    damaged = [task.name for task in plan.tasks if _damaged_headers(task)]
    why = "in no TAR"
    if failed:
        why += f" that could be had ({', '.join(failed[:3])}{' …' if len(failed) > 3 else ''} could not)"
    elif damaged:
        why += f" ({', '.join(damaged[:3])}{' …' if len(damaged) > 3 else ''}: damaged headers)"
    absent = missing.with_columns(pl.lit(f"{blank.set}/").alias("where"), pl.lit(why).alias("why"))
    return pl.concat([rows.select(list(REJECTED)), absent.select(list(REJECTED))])


def _damaged_headers(task: TarTask) -> int:
    try:
        return int(read_metadata(members_file(task)).get("damaged", "0"))
    except LandmarksError:
        return 0


def _write_byte_index(blank: TarTask, plan: Plan) -> None:
    """Write the byte index of the TARs that were streamed: another fetch from them moves only images."""
    streamed = {task.tar: task for task in plan.tasks if task.places is None and task.size is not None}
    members = {}
    for tar, task in streamed.items():
        if members_file(task).exists() and finished_part(task) is not None:
            members[tar] = read_table(members_file(task), MEMBERS)
    if not members:
        return
    tars = {
        tar: IndexedTar(tar, one.size or 0, one.etag, blank.mirror.md5(blank.set, tar)) for tar, one in streamed.items()
    }
    count = blank.mirror.tar_count(blank.set)
    write_index(blank.out / "index.parquet", members, tars, set=blank.set, mirror=blank.mirror.place, count=count)


def _tell(dataset: Dataset, retries: int, failures: dict[int, str]) -> None:
    rejected = read_table(dataset.folder / "rejected.parquet", REJECTED)
    for id, where, why in rejected.head(SHOWN).iter_rows():
        note(f"rejected {id} ({where}): {why}")
    if len(rejected) > SHOWN:
        note(f"… and {len(rejected) - SHOWN:,} more, all in {dataset.folder / 'rejected.parquet'}")
    counts = f"{plural(len(dataset.images), 'image')} of {plural(len(dataset.labels), 'landmark')}"
    counts += f", {len(rejected):,} rejected"
    note(counts + (f", {retries} requests were repeated" if retries else ""))
    if failures:
        note(f"{len(failures)} TARs could not be had; run the same command again to try only those")
