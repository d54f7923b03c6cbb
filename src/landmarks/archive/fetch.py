"""From a mirror to a dataset: the selected images, upright and small, in one shard per TAR."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.archive.executors import Lease, stoppable, workforce
from landmarks.archive.fetch_data import fetch_from_data
from landmarks.archive.fetch_plan import METHODS, Method, Plan, amount, make_plan
from landmarks.archive.index import MEMBERS, IndexedTar, read_index, write_index
from landmarks.archive.mirror import Mirror, open_mirror, tar_path
from landmarks.archive.select import dataset_at
from landmarks.archive.tar_to_shard import (
    Outcome,
    TarTask,
    finished_part,
    members_file,
    parts_folder,
    tar_to_shard,
    wanted_file,
)
from landmarks.dataset.groups import HASH_FORM, groups
from landmarks.dataset.images import STORED_FORM
from landmarks.dataset.joining import add as add_images
from landmarks.dataset.joining import already_added, ready_folder
from landmarks.dataset.manifest import (
    IMAGES,
    LABELS,
    REJECTED,
    Dataset,
    changing,
    open_dataset,
    stored_corrections,
    with_corrections,
    write_dataset,
)
from landmarks.dataset.naming import ARCHIVE_IDS
from landmarks.dataset.split import extended, stored, tell
from landmarks.support.console import note, progress
from landmarks.support.disk import make_folder, remove_leftovers, require_free_disk
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.files import digest_of, file_digest, held, read_record, write_record, written_whole
from landmarks.support.tables import read_metadata, read_table

SPARE_BYTES = 100_000_000
"""Disk that is wanted free beyond the images themselves."""

TOLD = ("image_id", "landmark_id", "usage", "landmarks", "name", "category", "author", "license", "title")
"""Columns of a selection that reach the dataset."""


@dataclass(frozen=True)
class Order:
    """A selection with what its file says about itself, and how it is to be stored."""

    images: pl.DataFrame
    metadata: dict[str, str]
    set: str
    mirror: Mirror
    max_side: int
    digest: str


def fetch(
    selection: str | Path,
    out: str | Path,
    *,
    mirror: str | Path | Mirror | None = None,
    index: str | Path | None = None,
    max_side: int = 512,
    workers: int | None = None,
    cluster: str | None = None,
    method: Method = "auto",
    dry_run: bool = False,
    by_reference: bool = False,
    add: bool = False,
) -> Dataset | Plan:
    """Fetch the images of a selection into the dataset folder `out`, and return it; with `dry_run`, only the plan.

    `mirror` is where the TARs are, if not where the selection was made; `index` a byte index (path or address), with
    which only the images travel; `max_side` the longest side stored, in pixels; `workers` the TARs worked on at
    once; `cluster` a Dask scheduler's address; `method` one of auto, ranges and stream; with `dry_run`
    nothing is written, and what it would cost is told and returned.

    A selection of a dataset is taken out of that dataset, and no mirror is asked: bytes are copied as they lie, or with
    `by_reference` read from where they lie; splits are kept. With `add`, the images join those of the dataset that is
    in `out` already, which keep their ids, splits and cached features.

    TARs that could not be had stand in `record["failed"]` of the dataset; running again tries them again and repeats
    nothing else.

    Raises:
        LandmarksError: the selection, the index or the mirror is at fault; the folder holds something else; no disk.
        UsageError: options that are unknown or contradict each other.
        BusyError: another process writes to `out`.
    """
    if method not in METHODS:
        raise UsageError(f'no method "{method}"', expected=", ".join(METHODS), way_out=did_you_mean(method, METHODS))
    if max_side < 16:
        raise UsageError("--max-side is too small", received=max_side, expected="at least 16 pixels")
    out, data = Path(out), dataset_at(mirror or read_metadata(Path(selection)).get("mirror") or "")
    if by_reference and data is None:
        raise UsageError("--by-reference takes images out of a dataset", way_out="leave it out, or --mirror DATASET")
    if add and (out / "dataset.json").exists():

        def ready(folder: Path) -> Dataset | Plan:
            return fetch(
                selection,
                folder,
                mirror=mirror,
                index=index,
                max_side=max_side,
                workers=workers,
                cluster=cluster,
                method=method,
                dry_run=dry_run,
                by_reference=by_reference,
            )

        return added(out, digest_of(str(data and data.digest), file_digest(selection), max_side, by_reference), ready)
    if data is not None:
        return fetch_from_data(
            Path(selection), data, out, max_side=max_side, by_reference=by_reference, dry_run=dry_run
        )
    order = _read_order(Path(selection), mirror, max_side)
    blank = TarTask(out=out, mirror=order.mirror, set=order.set, tar=0, max_side=max_side, digest=order.digest)
    ids = np.sort(order.images["image_id"].str.to_integer(base=16, dtype=pl.UInt64).to_numpy())
    if dry_run:
        plan = make_plan(blank, ids, None if index is None else read_index(index), method)
        note(str(plan))
        return plan
    with held(out):
        whole = finished_dataset(out, order.digest)
        if whole is not None:
            note(f"{out} is complete already; nothing is fetched")
            return whole
        _refuse_grown(out)
        _take_possession(out, order.digest, ids)
        plan = make_plan(blank, ids, None if index is None else read_index(index), method)
        note(str(plan))
        to_do = [task for task in plan.tasks if finished_part(task) is None]
        if len(to_do) < len(plan.tasks):
            note(f"{len(plan.tasks) - len(to_do)} TARs are done already")
        require_free_disk(out, plan.disk_bytes * len(to_do) // max(1, len(plan.tasks)) + SPARE_BYTES)
        outcomes = _work(to_do, out, workers, cluster)
        return assemble(blank, order.images, order.metadata, plan, outcomes)


def added(out: Path, inputs: str, ready: Callable[[Path], Dataset | Plan]) -> Dataset | Plan:
    """Have `ready` fetch into a folder of its own, and add what came of it to the dataset in `out`, once."""
    if (whole := already_added(out, inputs)) is not None:
        return whole
    folder = ready_folder(out, inputs)
    if not (folder / "tables" / "dataset.json").exists():
        made = ready(folder)
        if not isinstance(made, Dataset):
            return made
        if made.record.get("failed"):
            note(f"nothing is added to {out} yet, as TARs are missing: run the same command again")
            return made
    return add_images(out, inputs)


def _refuse_grown(out: Path) -> None:
    """Raise where a dataset has grown by other fetches: made anew from this one's TARs alone it would shrink."""
    if (out / "dataset.json").exists() and read_record(out / "dataset.json").get("added"):
        raise LandmarksError(
            f"{out} has grown since by other images", way_out="fetch what is missing with --add, or into another folder"
        )


def _read_order(path: Path, mirror: str | Path | Mirror | None, max_side: int) -> Order:
    images = read_table(path, {"image_id": pl.String, "landmark_id": pl.Int64})
    metadata = read_metadata(path)
    if len(images) == 0:
        raise LandmarksError(f"{path} holds no image")
    if not images["image_id"].str.contains("^[0-9a-f]{16}$").all() or images["image_id"].is_duplicated().any():
        raise LandmarksError(f"{path} is no selection", expected="unique ids of 16 hex digits")
    source = mirror or metadata.get("mirror")
    if source is None:
        raise UsageError(f"{path} does not say which mirror it was made from", way_out="name it with --mirror")
    set = metadata.get("set", "train")
    digest = digest_of(_digest_of_rows(images), set, max_side)
    return Order(images, metadata, set, open_mirror(source), max_side, digest)


def _digest_of_rows(images: pl.DataFrame) -> str:
    """Return the digest of what a selection tells, whichever version wrote the file; a slice of its rows at a time."""
    digest = hashlib.blake2b(digest_size=16)
    columns = [pl.col(name) if name in images.columns else pl.lit(None).alias(name) for name in TOLD]
    table = images.select(columns).with_columns(
        pl.col("landmarks").cast(pl.List(pl.Int64)).list.eval(pl.element().cast(pl.String)).list.join(" ")
    )
    for rows in table.sort("image_id").iter_slices(100_000):
        digest.update(rows.write_csv(include_header=False).encode())
    return digest.hexdigest()


def _take_possession(out: Path, digest: str, ids: np.ndarray[Any, Any]) -> None:
    """Mark the folder as this order's, clear what a killed run left half-written, and leave word for the workers."""
    parts, forms = parts_folder(out), {"stored": STORED_FORM, "hash": HASH_FORM}
    make_folder(parts)
    for folder in (parts, out / "shards"):
        remove_leftovers(folder)
    mark = parts / "order.json"
    if mark.exists():
        begun = read_record(mark)
        if begun.get("order") != digest:
            raise LandmarksError(
                f"{out} holds images of another selection or size", way_out="choose another folder, or delete it"
            )
        if begun.get("forms") != forms:
            raise LandmarksError(
                f"{out} was begun by version {begun.get('version')}, which stores images otherwise",
                way_out="go on with that version, or choose another folder",
            )
        return
    if (out / "dataset.json").exists():
        raise LandmarksError(f"{out} holds another dataset", way_out="choose another folder, or delete it")
    wanted = io.BytesIO()
    np.save(wanted, ids)
    with written_whole(wanted_file(out)) as aside:
        aside.write_bytes(wanted.getbuffer())  # numpy's own writing hides that a disk is full
    write_record(mark, {"order": digest, "forms": forms}, verb="fetch")


def _work(tasks: Sequence[TarTask], out: Path, workers: int | None, cluster: str | None) -> list[Outcome]:
    total = sum(_bytes_of(task) for task in tasks)
    lease, stopped, lock = Lease(parts_folder(out)), threading.Event(), threading.Lock()
    moved = images = 0
    with progress("fetching", total=max(total, 1)) as advance:

        def count(bytes: int, more: int) -> None:
            nonlocal moved, images
            with lock:
                moved, images = moved + bytes, images + more
                advance(bytes, f"{amount(moved)} of {amount(total)}, {images:,} images")

        with lease.kept(), workforce(workers, cluster) as pool:
            report = stoppable(count, stopped) if cluster is None else lease
            try:
                return _gather(pool, tasks, report, count if cluster is not None else None)
            except BaseException:
                stopped.set()
                pool.shutdown(wait=cluster is None, cancel_futures=True)
                raise


def _gather(pool: Executor, tasks: Sequence[TarTask], report: Any, count: Any) -> list[Outcome]:
    futures = {pool.submit(tar_to_shard, task, report): task for task in tasks}
    outcomes = []
    for future in as_completed(futures):
        outcome = future.result()
        for remark in outcome.remarks:
            note(remark)
        if outcome.failure:
            note(f"{outcome.failure}: this TAR contributes nothing")
        if count is not None:  # the workers are elsewhere, and told nothing on the way
            count(_bytes_of(futures[future]), outcome.images)
        outcomes.append(outcome)
    return sorted(outcomes, key=lambda outcome: outcome.tar)


def _bytes_of(task: TarTask) -> int:
    if task.places is None:
        return task.size or 0
    return sum(span.end - span.start for span in task.spans)


# The tables of finished TARs become one dataset: its manifest, its labels, what was rejected, and a byte index.


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
    corrected, earlier = with_corrections(images, corrections), stored(blank.out)
    division = None if earlier is None else extended(corrected, earlier)
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
        images=images.with_columns(group=grouping.column),
        labels=labels,
        split=None if division is None else (division.table, division.metadata(len(changing(corrections)))),
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
        tell(division, labels)
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
    counts = f"{len(dataset.images):,} images of {len(dataset.labels):,} landmarks, {len(rejected):,} rejected"
    note(counts + (f", {retries} requests were repeated" if retries else ""))
    if failures:
        note(f"{len(failures)} TARs could not be had; run the same command again to try only those")
