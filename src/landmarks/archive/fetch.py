"""From a mirror to a dataset: the selected images, upright and small, in one shard per TAR."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.archive.assembling import assemble, finished_dataset
from landmarks.archive.executors import Lease, stoppable, workforce
from landmarks.archive.fetch_data import fetch_from_data
from landmarks.archive.fetch_plan import METHODS, Method, Plan, amount, make_plan
from landmarks.archive.index import read_index
from landmarks.archive.mirror import Mirror, open_mirror
from landmarks.archive.select import dataset_at
from landmarks.archive.tar_to_shard import Outcome, TarTask, finished_part, parts_folder, tar_to_shard, wanted_file
from landmarks.dataset.groups import HASH_FORM
from landmarks.dataset.images import STORED_FORM
from landmarks.dataset.joining import add as add_images
from landmarks.dataset.joining import already_added, ready_folder
from landmarks.dataset.manifest import Dataset
from landmarks.support.console import note, progress
from landmarks.support.disk import make_folder, remove_leftovers, require_free_disk
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.files import (
    digest_of,
    file_digest,
    held,
    read_record,
    refuse_foreign,
    write_record,
    written_whole,
)
from landmarks.support.places import Place
from landmarks.support.tables import read_metadata, read_table

ORDER = "order.json"
"""What a folder was begun for, among its parts."""

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
    selection: Place,
    out: Place,
    *,
    mirror: Place | Mirror | None = None,
    index: Place | None = None,
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
    refuse_foreign(out, ("dataset.json", f"{parts_folder(out).name}/{ORDER}"), "dataset", own=(parts_folder(out).name,))
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


def _read_order(path: Path, mirror: Place | Mirror | None, max_side: int) -> Order:
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
    mark = parts / ORDER
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
