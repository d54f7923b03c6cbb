"""Fetch selected images from a mirror into a dataset, upright and scaled down, in one shard per TAR.

Images selected from a dataset are taken from that dataset instead, as they are.
"""

from __future__ import annotations

import functools
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

from landmarks.archive.assembling import assemble, complete_dataset
from landmarks.archive.executors import Lease, stoppable, workforce
from landmarks.archive.fetch_plan import METHODS, FetchPlan, Method, amount, make_plan
from landmarks.archive.locate import read_index
from landmarks.archive.mirror import Mirror, open_mirror
from landmarks.archive.select import dataset_at
from landmarks.archive.tar_to_shard import (
    Outcome,
    TarTask,
    finished_part,
    naming_tar,
    parts_folder,
    tar_to_shard,
    wanted_file,
)
from landmarks.archive.transfer import Report
from landmarks.dataset.division import EarlierDivision, read_division
from landmarks.dataset.groups import HASH_FORM
from landmarks.dataset.images import STORED_FORM
from landmarks.dataset.joining import add as add_images
from landmarks.dataset.joining import already_added, gather, ready_folder, require_growing
from landmarks.dataset.manifest import REJECTED, Dataset, digest_of_rows
from landmarks.dataset.naming import counted_labels, identified_by
from landmarks.dataset.storing import UNFINISHED, finished_dataset
from landmarks.dataset.uniting import United
from landmarks.support.console import note, plural, progress
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
from landmarks.support.places import Place, in_shell
from landmarks.support.tables import read_metadata, read_table

ORDER = "order.json"
"""The record of the order that a folder was begun for, in its folder of parts."""

SPARE_BYTES = 100_000_000
"""Disk space that must be free beyond the images themselves."""

DIGEST_COLUMNS = ("image_id", "landmark_id", "usage", "landmarks", "name", "category", "author", "license", "title")
"""Columns of a selection that its digest covers; with others, no fetch begun by an earlier version could go on."""


@dataclass(frozen=True)
class Order:
    """A selection with the metadata of its file, its mirror, and the size at which images are stored."""

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
) -> Dataset | FetchPlan:
    """Fetch the images of a selection into the dataset folder `out` and return the dataset.

    `mirror` is the path or address of the TARs, by default that of the selection; `index` a byte index (path or
    address), with which only the images are transferred; `max_side` the longest side of stored images, in pixels;
    `workers` the number of TARs worked on at once; `cluster` the address of a Dask scheduler; `method` "auto", "ranges"
    or "stream". With `dry_run` nothing is written; the plan with its cost is shown and returned.

    A selection made from a dataset is taken from that dataset instead of a mirror: image bytes are copied unchanged, or
    with `by_reference` read from where they are, and splits are kept. With `add`, the images join those of the dataset
    that is already in `out`, which keep their ids, splits and cached features.

    TARs that could not be fetched are listed in `record["failed"]` of the dataset. Running again tries only those
    again.

    Raises:
        LandmarksError: the selection, index or mirror is at fault, `out` holds something else, or the disk is too full.
        UsageError: options are unknown or contradict each other.
        BusyError: another process is writing to `out`.
    """
    if method not in METHODS:
        raise UsageError(f'no method "{method}"', expected=", ".join(METHODS), way_out=did_you_mean(method, METHODS))
    if max_side < 16:
        raise UsageError("--max-side is too small", received=max_side, expected="at least 16 pixels")
    if workers is not None and workers < 1:
        raise UsageError("--workers must be at least 1", received=workers)
    _refuse_no_selection(Path(selection))
    out, data = Path(out), dataset_at(mirror or read_metadata(Path(selection)).get("mirror") or "")
    if by_reference and data is None:
        raise UsageError("--by-reference takes images out of a dataset", way_out="leave it out, or --mirror DATASET")
    if add and (out / "dataset.json").exists():
        fetch_into = functools.partial(
            fetch,
            selection,
            mirror=mirror,
            index=index,
            max_side=max_side,
            workers=workers,
            cluster=cluster,
            method=method,
            dry_run=dry_run,
            by_reference=by_reference,
        )
        inputs = digest_of(str(data and data.digest), file_digest(selection), max_side, by_reference)
        return fetch_and_add(out, inputs, fetch_into)
    if data is not None:
        return fetch_from_data(
            Path(selection), data, out, max_side=max_side, by_reference=by_reference, dry_run=dry_run
        )
    order = _read_order(Path(selection), mirror, max_side)
    template = TarTask(out=out, mirror=order.mirror, set=order.set, tar=0, max_side=max_side, digest=order.digest)
    ids = np.sort(order.images["image_id"].str.to_integer(base=16, dtype=pl.UInt64).to_numpy())
    if dry_run:
        plan = make_plan(template, ids, None if index is None else read_index(index), method)
        note(str(plan))
        return plan
    refuse_foreign(out, ("dataset.json", f"{parts_folder(out).name}/{ORDER}"), "dataset", own=(parts_folder(out).name,))
    with held(out):
        dataset = complete_dataset(out, order.digest)
        if dataset is not None:
            note(f"{out} is complete already; nothing is fetched")
            return dataset
        _refuse_grown(out)
        if (unpacked := order.mirror.unpacked(order.set)) is not None:
            raise unpacked
        _claim_folder(out, order.digest, ids)
        plan = make_plan(template, ids, None if index is None else read_index(index), method)
        note(str(plan))
        to_do = [task for task in plan.tasks if finished_part(task) is None]
        if len(to_do) < len(plan.tasks):
            note(f"{plural(len(plan.tasks) - len(to_do), 'TAR', 'are')} done already")
        require_free_disk(out, plan.disk_bytes * len(to_do) // max(1, len(plan.tasks)) + SPARE_BYTES)
        outcomes = _run_tasks(to_do, out, workers, cluster)
        return assemble(template, order.images, order.metadata, plan, outcomes)


def fetch_and_add(out: Path, inputs: str, fetch_into: Callable[[Path], Dataset | FetchPlan]) -> Dataset | FetchPlan:
    """Fetch into a folder inside `out`, and add its images to the dataset in `out` unless they already were."""
    if (dataset := already_added(out, inputs)) is not None:
        return dataset
    folder = ready_folder(out, inputs)
    if not (folder / "tables" / "dataset.json").exists():
        require_growing(out)
        fetched = fetch_into(folder)
        if not isinstance(fetched, Dataset):
            return fetched
        if fetched.record.get("failed"):
            note(f"nothing is added to {out} yet, as TARs are missing: run the same command again")
            return fetched
    return add_images(out, inputs)


def _refuse_grown(out: Path) -> None:
    """Raise `LandmarksError` when the dataset in `out` has grown by other images, which a new fetch would drop."""
    if (out / "dataset.json").exists() and read_record(out / "dataset.json").get("added"):
        raise LandmarksError(
            f"{out} has grown since by other images", way_out="fetch what is missing with --add, or into another folder"
        )


def _refuse_no_selection(selection: Path) -> None:
    if selection.is_dir():
        is_dataset = (selection / "dataset.json").is_file()
        raise UsageError(
            f"{selection} is a {'dataset' if is_dataset else 'folder'}, and no selection",
            expected="a table that landmarks select wrote",
            way_out=f"landmarks select {in_shell(selection) if is_dataset else 'MIRROR'} -o NAME.parquet",
        )
    if not selection.is_file():
        raise LandmarksError(f"there is no selection {selection}", way_out="landmarks select MIRROR -o NAME.parquet")


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
    digest = digest_of(_digest_of_selection(images), set, max_side)
    return Order(images, metadata, set, open_mirror(source), max_side, digest)


def _digest_of_selection(images: pl.DataFrame) -> str:
    """Return a digest of a selection's rows, which is the same for files of any version; 32 hex digits."""
    columns = [pl.col(name) if name in images.columns else pl.lit(None).alias(name) for name in DIGEST_COLUMNS]
    table = images.select(columns).with_columns(
        pl.col("landmarks").cast(pl.List(pl.Int64)).list.eval(pl.element().cast(pl.String)).list.join(" ")
    )
    return digest_of_rows(table.sort("image_id"))


def _claim_folder(out: Path, digest: str, ids: np.ndarray[Any, Any]) -> None:
    """Record the order in the folder, remove half-written files of a killed run, and write the ids for the workers."""
    parts, forms = parts_folder(out), {"stored": STORED_FORM, "hash": HASH_FORM}
    make_folder(parts)
    for folder in (parts, out / "shards"):
        remove_leftovers(folder)
    record_file = parts / ORDER
    if record_file.exists():
        record = read_record(record_file)
        if record.get("order") != digest:
            raise LandmarksError(
                f"{out} holds images of another selection or size", way_out="choose another folder, or delete it"
            )
        if record.get("forms") != forms:
            raise LandmarksError(
                f"{out} was begun by version {record.get('version')}, which stores images otherwise",
                way_out="go on with that version, or choose another folder",
            )
        return
    if (out / "dataset.json").exists():
        raise LandmarksError(f"{out} holds another dataset", way_out="choose another folder, or delete it")
    file = io.BytesIO()
    np.save(file, ids)
    with written_whole(wanted_file(out)) as temporary:
        temporary.write_bytes(file.getbuffer())  # np.save to a file does not raise when the disk is full
    write_record(record_file, {"order": digest, "forms": forms}, verb="fetch")


def _run_tasks(tasks: Sequence[TarTask], out: Path, workers: int | None, cluster: str | None) -> list[Outcome]:
    total = sum(_bytes_to_move(task) for task in tasks)
    lease, stopped, lock = Lease(parts_folder(out)), threading.Event(), threading.Lock()
    moved = images = 0
    with progress("fetching", total=max(total, 1)) as advance:

        def count(new_bytes: int, new_images: int) -> None:
            nonlocal moved, images
            with lock:
                moved, images = moved + new_bytes, images + new_images
                advance(new_bytes, f"{amount(moved)} of {amount(total)}, {images:,} images")

        with lease.renewed(), workforce(workers, cluster) as pool:
            try:
                if cluster is None:
                    return _collect_outcomes(pool, tasks, stoppable(count, stopped))
                return _collect_outcomes(pool, tasks, lease, count_finished=count)
            except BaseException:
                stopped.set()
                pool.shutdown(wait=cluster is None, cancel_futures=True)
                raise


def _collect_outcomes(
    pool: Executor, tasks: Sequence[TarTask], report: Report, count_finished: Report | None = None
) -> list[Outcome]:
    """Run the tasks in the pool and return their outcomes by TAR, with a note of each failure and remark.

    `report` is called by the workers; `count_finished` is called here for each finished task.
    """
    futures = {pool.submit(tar_to_shard, task, report): task for task in tasks}
    outcomes = []
    for future in as_completed(futures):
        outcome = future.result()
        for remark in outcome.remarks:
            note(remark)
        if outcome.failure:
            note(f"{naming_tar(futures[future], outcome.failure)}: this TAR contributes nothing")
        if count_finished is not None:
            count_finished(_bytes_to_move(futures[future]), outcome.images)
        outcomes.append(outcome)
    return sorted(outcomes, key=lambda outcome: outcome.tar)


def _bytes_to_move(task: TarTask) -> int:
    if task.places is None:
        return task.size or 0
    return sum(span.end - span.start for span in task.spans)


# ── From a dataset: the selected images of one that is there, without any mirror ────────────────────────────────────


def fetch_from_data(
    selection: Path, data: Dataset, out: Path, *, max_side: int, by_reference: bool, dry_run: bool
) -> Dataset | FetchPlan:
    """Make a dataset in `out` of the selected images of `data`; see `fetch`.

    Raises `LandmarksError` when `data` lacks selected images, or `out` holds something else.
    """
    chosen, metadata = read_table(selection, {"image_id": pl.String, "landmark_id": pl.Int64}), read_metadata(selection)
    images = data.images.drop("landmark_id", "landmarks").join(_landmarks_of(chosen), on="image_id", how="inner")
    if len(images) < len(chosen):
        absent = chosen.join(images.select("image_id"), on="image_id", how="anti")["image_id"]
        raise LandmarksError(
            f"{data.folder} lacks {len(absent):,} of the {len(chosen):,} selected images",
            received=absent[0],
            way_out="select from it anew, or name the mirror that has them with --mirror",
        )
    if dry_run:
        total = int(images["length"].sum() or 0)
        moved = 0 if by_reference else total
        plan = FetchPlan(
            tasks=(),
            requests=0,
            bytes=moved,
            disk_bytes=moved,
            seconds=total / 1e9,
            bytes_per_second=1e9,
            why="no mirror is asked",
        )
        note(str(plan))
        return plan
    inputs = digest_of(data.digest, file_digest(selection), max_side, by_reference)
    refuse_foreign(out, ("dataset.json", UNFINISHED), "dataset")
    with held(out):
        if (dataset := finished_dataset(out, inputs)) is not None:
            return dataset
        earlier = read_division(data.folder)
        if earlier is not None:
            kept = earlier.table.join(images.select("image_id"), on="image_id", how="semi")
            earlier = EarlierDivision(kept, earlier.rule)
        united = United(
            images=images.with_columns(source=pl.lit(0, pl.UInt32)).sort("image_id"),
            labels=_labels_of(images, chosen, data),
            rejected=pl.DataFrame(schema=REJECTED),
            splits=None if earlier is None else earlier.table,
            identified_by=identified_by(data.record, data.labels),
        )
        record = {
            "set": data.record.get("set"),
            "origin": str(data.folder.absolute()),
            "rule": metadata.get("rule", ""),
            "max_side": min(max_side, data.record.get("max_side") or max_side),
            "identified_by": united.identified_by,
            "digests": json.loads(metadata.get("digests", "{}")),
            "decoders": data.record.get("decoders") or [],
            "failed": [],
        }
        return gather(
            [data], united, out, verb="fetch", record=record, inputs=inputs, earlier=earlier,
            by_reference=by_reference, max_side=max_side,
        )  # fmt: skip


def _landmarks_of(chosen: pl.DataFrame) -> pl.DataFrame:
    """Return the landmarks of a selection's images."""
    if "landmarks" not in chosen.columns:
        chosen = chosen.with_columns(landmarks=pl.lit(None, pl.List(pl.Int64)))
    return chosen.select("image_id", "landmark_id", pl.col("landmarks").cast(pl.List(pl.Int64)))


def _labels_of(images: pl.DataFrame, chosen: pl.DataFrame, data: Dataset) -> pl.DataFrame:
    """Return a label for each selected landmark, with its name in the dataset."""
    ids = chosen.select("landmark_id").drop_nulls().unique()
    landmarks = ids.join(data.labels.select("landmark_id", "name", "category"), on="landmark_id", how="left")
    return counted_labels(landmarks, images)
