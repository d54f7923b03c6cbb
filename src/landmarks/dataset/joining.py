"""The verb `join`, and adding images to a dataset as `fetch` and `import` do.

Images are not decoded again unless they must be shrunk: their bytes are copied or referred to, and sizes, hashes and
authors come from the tables. Groups and leakage are computed again from the hashes, over all images together.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import polars as pl

from landmarks.dataset.copies import COPIES_FILE, copies_with_added, write_copies
from landmarks.dataset.division import Division, EarlierDivision, extend_division, read_division, with_groups
from landmarks.dataset.groups import group_images, note_contradictions, perceptual_hash
from landmarks.dataset.images import ImageError, prepare
from landmarks.dataset.manifest import (
    IMAGES,
    REJECTED,
    SPLIT_FILE,
    Dataset,
    effective_corrections,
    open_dataset,
    with_corrections,
    write_dataset,
)
from landmarks.dataset.shards import CACHE_GB, ImageReader, ShardWriter, is_shard, open_remote, require_images
from landmarks.dataset.split import note_division
from landmarks.dataset.storing import (
    IMAGES_PER_SHARD,
    UNFINISHED,
    finished_dataset,
    in_parallel,
    note_rejected,
    remove_unfinished,
)
from landmarks.dataset.trust import AT_AN_ADDRESS, address_of_images
from landmarks.dataset.uniting import ADDING, United, unite
from landmarks.support.console import note, plural, progress
from landmarks.support.disk import make_folder, remove_folder, require_free_disk
from landmarks.support.errors import UsageError
from landmarks.support.files import digest_of, held, read_record, refuse_foreign
from landmarks.support.places import Place, in_shell, paths_of
from landmarks.support.tables import read_table, write_table

_TABLES = ("images.parquet", "labels.parquet", "rejected.parquet", COPIES_FILE, SPLIT_FILE, "dataset.json")


def join(
    data: Place | Sequence[Place],
    out: Place,
    *,
    by_reference: bool = False,
    max_side: int | None = None,
    cache_gb: float = CACHE_GB,
) -> Dataset:
    """Make one dataset of several: ids, labels, splits, authors and licences are kept.

    Landmarks are matched by the archive's ids or by their names. For an image that several datasets hold, the label and
    the split of the first dataset count. Ids that clash are changed, with a note. A join that was killed goes on where
    it stopped.

    Args:
        data: The datasets. One may lie at an address (http(s)://, s3://, gs://, az://), and then be the only one.
        out: The folder of the new dataset.
        by_reference: Whether to leave the images where they are. Of a dataset at an address only the tables are copied.
        max_side: Longest side of the copies in pixels; larger images are shrunk. By default they stay as they are.
        cache_gb: With `by_reference` and an address: gigabytes of images, about, that are kept here after they were
            read.

    Raises:
        UsageError: fewer than two datasets and none at an address; several datasets by reference, one of them at an
            address; or `out` holds something else.
        StaleError: `out` holds a dataset that was joined from others.
    """
    data = paths_of(data)
    remote = [place for place in data if "://" in os.fspath(place)]
    if len(data) < 2 and not remote:
        raise UsageError("join takes two datasets or more, or one at an address", received=len(data))
    if len(data) > 1 and remote and by_reference:
        raise UsageError(
            "images can be left at one address alone", received=len(data), way_out="leave --by-reference out"
        )
    out = Path(out)
    refuse_foreign(out, ("dataset.json", UNFINISHED), "dataset")
    with contextlib.ExitStack() as temporary:
        datasets = [
            open_remote(
                os.fspath(place),
                Path(temporary.enter_context(tempfile.TemporaryDirectory())),
                cache_gb=cache_gb if by_reference else 0.0,
            )
            if "://" in os.fspath(place)
            else open_dataset(place)
            for place in data
        ]
        return _joined(datasets, out, by_reference=by_reference, max_side=max_side)


def _joined(datasets: Sequence[Dataset], out: Path, *, by_reference: bool, max_side: int | None) -> Dataset:
    inputs = digest_of([dataset.digest for dataset in datasets], by_reference, max_side)
    with held(out):
        if (dataset := finished_dataset(out, inputs)) is not None:
            return dataset
        united = unite(datasets)
        earlier = None
        if len(datasets) > 1 and united.splits is not None:  # `gather` keeps the splits of a single dataset
            divisions = (read_division(dataset.folder) for dataset in datasets)
            first = next(division for division in divisions if division is not None)
            earlier = EarlierDivision(united.splits, first.rule, first.added)
        record = {
            "set": "join",
            "origin": " and ".join(dataset.origin for dataset in datasets),
            "rule": f"{len(datasets)} datasets joined" if len(datasets) > 1 else f"all of {datasets[0].origin}",
            "max_side": max_side or max(dataset.record.get("max_side") or 0 for dataset in datasets) or None,
            "identified_by": united.identified_by,
            "decoders": sorted({name for dataset in datasets for name in dataset.record.get("decoders") or []}),
            "failed": [],
        }
        return gather(
            datasets,
            united,
            out,
            verb="join",
            record=record,
            inputs=inputs,
            earlier=earlier,
            by_reference=by_reference,
            max_side=max_side,
        )


def gather(
    datasets: Sequence[Dataset],
    united: United,
    out: Path,
    *,
    verb: str,
    record: dict[str, Any],
    inputs: str,
    earlier: EarlierDivision | None = None,
    by_reference: bool = False,
    max_side: int | None = None,
) -> Dataset:
    """Make the dataset `out` of images of others, and return it; the caller holds `out`.

    `earlier` is the division of those that have a split; None leaves the new dataset without splits.
    """
    if by_reference and datasets[0].address is not None:
        images, lost = united.images.select(list(IMAGES)).sort("image_id"), pl.DataFrame(schema=REJECTED)
        record |= {name: datasets[0].record[name] for name in AT_AN_ADDRESS}
    elif by_reference:
        images, lost = _referred(datasets, united.images), pl.DataFrame(schema=REJECTED)
        places = [place for place in images["shard"].unique() if PurePath(place).is_absolute()]
        record = {**record, "images_in": os.path.commonpath([str(Path(place).parent) for place in places])}
    else:
        images, lost = _copied(datasets, united.images, out, inputs, max_side)
    division = None if earlier is None else extend_division(images, earlier)
    split = None if division is None else (division.table, division.metadata(0))
    if len(datasets) == 1 and verb == "join":  # the images are the same, so groups and splits stay
        split = None if datasets[0].splits is None else (datasets[0].splits, dict(datasets[0].split_metadata))
    else:
        grouping = group_images(images) if division is None else division.grouping
        images = images.with_columns(group=grouping.column)
    dataset = write_dataset(
        out,
        verb=verb,
        images=images,
        labels=united.labels,
        rejected=pl.concat([united.rejected, lost]),
        record=record,
        inputs=inputs,
        split=split,
    )
    remove_folder(out / UNFINISHED)
    known = dataset.images["landmark_id"].drop_nulls().len()
    shown = f"{known:,} of {plural(len(dataset.labels), 'landmark')}"
    note(f"{plural(len(dataset.images), 'image')}, {shown}, none decoded again")
    note_rejected(lost)
    if len(datasets) > 1:
        note_contradictions(dataset.images)
    if division is not None:
        note_division(division, dataset.labels)
    return dataset


def _referred(datasets: Sequence[Dataset], images: pl.DataFrame) -> pl.DataFrame:
    """Return `images` with the absolute paths of the shards in which they stay."""
    places = images.select("source", "shard").unique()
    paths = [str(datasets[source].path_of(shard).absolute()) for source, shard in places.iter_rows()]
    places = places.with_columns(path=pl.Series(paths, dtype=pl.String))
    joined = images.join(places, on=["source", "shard"], how="left")
    return joined.with_columns(shard="path").select(list(IMAGES)).sort("image_id")


def _copied(
    datasets: Sequence[Dataset], images: pl.DataFrame, out: Path, inputs: str, max_side: int | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Copy images into shards of `out`; return the rows of the copies, and those of images that cannot be decoded."""
    remove_unfinished(out, inputs)
    done = out / UNFINISHED / inputs
    require_free_disk(out, int(images["length"].sum() or 0))
    readers = [ImageReader(dataset) for dataset in datasets]
    places = images.select("image_id", "source", "shard", "offset", "length", "width", "height", "phash")
    places = places.sort("source", "shard", "offset")  # each shard is read from front to back

    def read(row: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        data = readers[row["source"]].read(row["shard"], row["offset"], row["length"])
        if is_shard(row["shard"]) and max(row["width"], row["height"]) <= (max_side or 1 << 30):
            return {**row, "why": None}, data
        try:
            data, pixels = prepare(data, max_side)
        except ImageError as error:
            return {**row, "why": str(error)}, b""
        height, width = pixels.shape[:2]
        return {**row, "width": width, "height": height, "phash": perceptual_hash(pixels), "why": None}, data

    slices = [
        (done / f"{number:05d}.parquet", some) for number, some in enumerate(places.iter_slices(IMAGES_PER_SHARD))
    ]
    to_do = pl.concat([places[:0], *(some for table, some in slices if not table.exists())])
    for source, dataset in enumerate(datasets):
        require_images(dataset, to_do.filter(pl.col("source") == source)["shard"], "copying images")
    tables = []
    with progress("copying", total=len(places)) as advance:
        for number, (table, some) in enumerate(slices):
            if not table.exists():
                shard, rows = f"{inputs[:8]}-{number:05d}.tar", []
                with ShardWriter(out / "shards" / shard) as writer:
                    for row, data in in_parallel(read, some.iter_rows(named=True)):
                        if row["why"] is None:
                            row |= {"shard": shard}
                            row["offset"], row["length"] = writer.add(row["image_id"], data)
                        rows.append(row)
                schema = {**places.schema, "why": pl.String()}
                write_table(table, pl.DataFrame(rows, schema=schema).drop("source"))
            tables.append(read_table(table))
            advance(len(some))
    moved = pl.concat(tables)
    others = images.select([name for name in IMAGES if name not in moved.columns or name == "image_id"])
    sound = moved.filter(pl.col("why").is_null()).join(others, on="image_id", how="left")
    where = pl.col("shard").alias("where")
    lost = moved.filter(pl.col("why").is_not_null()).select("image_id", where, "why")
    return sound.select(list(IMAGES)).sort("image_id"), lost


# ── Adding to a dataset: new images are prepared as a dataset of their own, then added in one step that can be repeated


def ready_folder(out: Path, inputs: str) -> Path:
    """Return the folder in which images to be added to `out` are prepared, as a dataset of their own."""
    return out / ADDING / inputs[:16]


def require_growing(out: Path) -> None:
    """Raise `UsageError` if no images can be added to the dataset in `out`, as its own lie at an address."""
    _refuse_address(out, address_of_images(out, read_record(out / "dataset.json")))


def _refuse_address(folder: Path, address: str | None) -> None:
    if address is not None:
        raise UsageError(
            f"the images of {folder} lie at an address, so that no others can join them",
            way_out=f"bring them here first: landmarks join {in_shell(address)} -o OTHER",
        )


def already_added(out: Path, inputs: str) -> Dataset | None:
    """Return the dataset in `out` if the images with this digest have been added to it, else None."""
    if inputs not in (read_record(out / "dataset.json").get("added") or {}):
        return None
    note(f"{out} holds these images already")
    remove_folder(ready_folder(out, inputs))
    return open_dataset(out)


def add(out: Path, inputs: str) -> Dataset:
    """Add the images in `ready_folder(out, inputs)` to the dataset in `out`, and return it.

    Its images keep their ids, labels, splits, shards and features. New ones join the splits of the images that they are
    grouped with, or are divided by the same rule. If it is killed, the same call completes it.
    """
    ready = ready_folder(out, inputs)
    tables = ready / "tables"
    with held(out):
        if not (tables / "dataset.json").exists():
            _write_grown(out, ready, tables, inputs)
        for name in _TABLES:  # the record is the last: until then all of this can be repeated
            if (tables / name).exists():
                (tables / name).replace(out / name)
    remove_folder(ready)
    dataset = open_dataset(out)
    note(f"{out} holds {plural(len(dataset.images), 'image')} of {plural(len(dataset.labels), 'landmark')} now")
    return dataset


def _write_grown(out: Path, ready: Path, tables: Path, inputs: str) -> None:
    """Put the new shards beside the old ones, and write the new tables of the dataset into `tables`."""
    ours, theirs = open_dataset(out), open_dataset(ready)
    united = unite([ours, theirs], [ours.as_fetched(), theirs.images])
    before, new = united.images.filter(pl.col("source") == 0), united.images.filter(pl.col("source") == 1)
    for dataset in (ours, theirs):
        _refuse_address(dataset.folder, dataset.address)
    names = {
        shard: shard if PurePath(shard).is_absolute() else f"{inputs[:8]}-{shard}" for shard in new["shard"].unique()
    }
    make_folder(out / "shards")
    for shard, name in names.items():
        if shard != name and not (out / "shards" / name).exists():
            _link_or_copy(theirs.path_of(shard), out / "shards" / name)
    new = new.with_columns(pl.col("shard").replace(names))
    images = pl.concat([before, new]).select(list(IMAGES)).sort("image_id")
    corrected = with_corrections(images, ours.corrections)
    record = {name: value for name, value in ours.record.items() if name not in ("format", "verb", "version", "inputs")}
    added = {**(record.get("added") or {}), inputs: theirs.record.get("rule") or ""}
    decoders = sorted({*(record.get("decoders") or []), *(theirs.record.get("decoders") or [])})
    folders = [str(folder) for folder in (record.get("images_in"), theirs.record.get("images_in")) if folder]
    record |= {"added": added, "decoders": decoders, "identified_by": united.identified_by}
    if folders:
        record["images_in"] = os.path.commonpath(folders)
    earlier = read_division(out)
    division: Division | None = None
    if earlier is not None:
        table = earlier.table if united.splits is None else united.splits
        if earlier.copies is not None:
            grown = replace(ours, images=corrected, record={**ours.record, **record})
            copies = copies_with_added(earlier.copies, grown, corrected)
            write_copies(tables, copies)
            earlier = replace(earlier, copies=copies)
        division = extend_division(corrected, replace(earlier, table=table))
    grouping = group_images(corrected) if division is None else division.grouping
    write_dataset(
        tables,
        verb=str(ours.record["verb"]),
        images=with_groups(images, corrected["image_id"], grouping),
        labels=united.labels,
        rejected=united.rejected,
        record=record,
        inputs=str(ours.record["inputs"]),
        split=None
        if division is None
        else (division.table, division.metadata(len(effective_corrections(ours.corrections)))),
    )
    note(f"new: {plural(len(new), 'image')}; {len(before):,} stay as they are")


def _link_or_copy(shard: Path, target: Path) -> None:
    """Give a shard another name, by a hard link if the disk has these, else by copying it."""
    aside = target.with_name(f".{target.name}.part")
    aside.unlink(missing_ok=True)
    try:
        os.link(shard, aside)
    except OSError:
        shutil.copyfile(shard, aside)
    aside.replace(target)
