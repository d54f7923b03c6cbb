"""Folders of images that people have anyway become a dataset: the verb `import`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from landmarks.dataset import in_flight
from landmarks.dataset.division import division_from_source
from landmarks.dataset.groups import HASH_FORM, NO_HASH, groups, perceptual_hash
from landmarks.dataset.images import DECODER, STORED_FORM, decode, prepare
from landmarks.dataset.layouts import list_source
from landmarks.dataset.manifest import IMAGES, LABELS, REJECTED, SPLITS, Dataset, open_dataset, write_dataset
from landmarks.dataset.naming import (
    Landmark,
    identified_from,
    identified_in,
    identify,
    identify_among,
    landmarks_of,
    names_of_folders,
    read_labels,
)
from landmarks.dataset.shards import ShardWriter
from landmarks.dataset.sources import Found, Source
from landmarks.dataset.split import store_division
from landmarks.dataset.trust import IMAGES_IN, MAX_IMAGE_BYTES
from landmarks.support.console import Advance, note, plural, progress
from landmarks.support.disk import make_folder, remove_folder, remove_leftovers
from landmarks.support.errors import LandmarksError, StaleError, UsageError
from landmarks.support.files import digest_of, held, read_record, refuse_foreign
from landmarks.support.places import Place
from landmarks.support.systems import require_text, usable_processors
from landmarks.support.tables import read_metadata, read_table, write_table


def import_(
    source: Place,
    out: Place,
    *,
    labels: Place | None = None,
    copy: bool = True,
    max_side: int = 512,
    add: bool = False,
) -> Dataset:
    """Make a dataset of a folder per landmark, of train/val/test folders of these (which stay splits), or of a CSV.

    Images are copied into shards, no side longer than `max_side` pixels, or with `copy=False` left where they are.
    Landmark ids come from the sorted names, or with `labels` from an earlier dataset or run, so that a missing folder
    shifts nothing. Images in no folder, or in `_unknown`, show nothing known. What is no whole image is named in
    `rejected.parquet`. A CSV (of commas, semicolons or tabs) has the columns `path` (relative to it) and `label`, and
    where known `id`, `split`, `author`, `license`, `title`; `file`, `image`, `class` and the like are understood. An
    import that was killed goes on where it stopped. With `add`, the images join those of the dataset that is in `out`
    already, which keep their ids, labels, splits and cached features.
    """
    source, out = Path(source), Path(out)
    refuse_foreign(out, ("dataset.json", UNFINISHED), "dataset")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out} lies inside {source}", way_out="choose a folder outside of what is imported")
    earlier = read_labels(Path(labels)) if labels is not None else None
    known = [] if earlier is None else names_of_folders(landmarks_of(earlier))
    listed = list_source(source, set().union(*known))
    names = [one.name for one in listed.found if one.name is not None]
    if earlier is None:
        landmarks = identify(names, listed.listed)
        identified = identified_from(source, landmarks.values(), listed.listed)
    else:
        identified = identified_in(Path(labels))  # type: ignore[arg-type]
        landmarks = identify_among(names, earlier, listed.listed)
    if not listed.found or not (landmarks or earlier is not None):
        raise UsageError(
            f"{source} holds no image of a named landmark",
            received=_instead(listed),
            expected="a folder per landmark with images inside, or a CSV of paths and labels",
            way_out=listed.way_out
            or ("images of nothing known alone are imported with --labels RUN" if listed.found else ""),
        )
    inputs = digest_of([_fingerprint(one) for one in listed.found], earlier is None or earlier.rows(), copy, max_side)
    if add and (out / "dataset.json").exists():
        from landmarks.dataset import joining

        if (whole := joining.already_added(out, inputs)) is not None:
            return whole
        ready = joining.ready_folder(out, inputs)
        if not (ready / "tables" / "dataset.json").exists():
            import_(source, ready, labels=labels, copy=copy, max_side=max_side)
        return joining.add(out, inputs)
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
        if listed.has_splits and dataset.splits is None:
            dataset = _keep_splits(dataset, listed)
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
    """Take the images in, then write the tables; `max_side` None leaves the images where they are."""
    taken = take_in(listed.found, out, inputs=inputs, max_side=max_side)
    unfit = [("", where, why) for where, why in listed.rejected]
    rejected = pl.concat([taken.rejected, pl.DataFrame(unfit, schema=REJECTED, orient="row")])
    ids = pl.DataFrame(
        [(one.id, landmarks[one.name].landmark_id if one.name is not None else None) for one in listed.found],
        schema={"image_id": pl.String, "landmark_id": pl.Int64},
        orient="row",
    )
    table = taken.images.join(ids, on="image_id", how="left", maintain_order="left")
    table = table.with_columns(
        pl.lit(None).cast(IMAGES[name]).alias(name) for name in IMAGES if name not in table.columns
    )
    if table.is_empty():
        _, where, why = taken.rejected.row(0)
        raise LandmarksError(
            f"none of the {len(listed.found):,} files in {source} is an image", received=f"{where}: {why}"
        )
    table = table.sort("image_id")
    table = table.with_columns(group=groups(table).column)
    known = landmarks_of(earlier) if earlier is not None else list(landmarks.values())
    dataset = write_dataset(
        out,
        verb="import",
        images=table,
        labels=_labels(table, known, keep_all=earlier is not None),
        rejected=rejected,
        record={
            "set": "import",
            "origin": str(source.absolute()),
            "rule": listed.rule,
            "max_side": max_side,
            "decoders": taken.decoders,
            "identified_by": identified_by,
            "empty": listed.empty,
            **({IMAGES_IN: _common_folder(table["shard"].to_list())} if max_side is None else {}),
        },
        inputs=inputs,
    )
    remove_folder(out / UNFINISHED)
    _tell(dataset, listed, (landmarks[one.name].name for one in listed.found if one.name is not None))
    return dataset


def _common_folder(places: list[str]) -> str:
    """Return the folder below which all of these files lie."""
    return os.path.commonpath([os.path.dirname(os.path.normpath(place)) for place in places])  # noqa: PTH120


def _labels(stored: pl.DataFrame, landmarks: list[Landmark], *, keep_all: bool) -> pl.DataFrame:
    """Return the table of labels; a landmark without an image keeps its label only when labels were given."""
    images = dict(stored["landmark_id"].drop_nulls().value_counts().iter_rows())
    rows = [
        (one.landmark_id, one.name, one.category, images.get(one.landmark_id, 0))
        for one in sorted(landmarks, key=lambda one: one.landmark_id)
        if keep_all or one.landmark_id in images
    ]
    columns = [name for name in LABELS if name != "label"]
    return pl.DataFrame(rows, schema={name: LABELS[name] for name in columns}, orient="row").with_row_index("label")


def _keep_splits(dataset: Dataset, listed: Source) -> Dataset:
    splits = {one.id: SPLITS.index(one.split) for one in listed.found if one.split is not None}
    split = np.asarray([splits[id] for id in dataset.images["image_id"]], np.uint8)
    return store_division(dataset, division_from_source(dataset.images, split))


def _fingerprint(one: Found) -> tuple[Any, ...]:
    status = one.path.stat()
    return (
        one.where,
        one.name,
        one.split,
        one.id,
        one.author,
        one.license,
        one.title,
        status.st_size,
        status.st_mtime_ns,
    )


def _finished(out: Path, inputs: str) -> Dataset | None:
    if not (out / "dataset.json").exists():
        return None
    if read_record(out / "dataset.json")["inputs"] != inputs:
        raise StaleError(
            f"{out} holds a dataset of other images or settings", way_out="choose another folder; --add adds to it"
        )
    remove_folder(out / UNFINISHED)  # of an import that was killed when all but this was done
    note(f"{out} already holds exactly this")
    return open_dataset(out)


def _instead(listed: Source) -> str:
    """Return what a source holds that holds no image of a named landmark: counts, and the first reason."""
    told = [f"{plural(len(listed.found), 'image')} in no landmark's folder"] if listed.found else []
    if listed.rejected:
        where, why = listed.rejected[0]
        more = f" (and {len(listed.rejected) - 1:,} more)" if len(listed.rejected) > 1 else ""
        told.append(f"{plural(len(listed.rejected), 'file')} that cannot be taken, such as {where}: {why}{more}")
    if listed.passed_by:
        told.append(listed.passed_by)
    if listed.empty:
        told.append(f"{plural(len(listed.empty), 'folder')} without an image: {_some(listed.empty)}")
    return "; ".join(told) or "nothing"


_LONGEST_TOLD = 300
"""Letters of a path that are shown; it stands whole in `rejected.parquet`."""


def _tell(dataset: Dataset, listed: Source, given: Iterable[str]) -> None:
    known = dataset.images["landmark_id"].drop_nulls().len()
    nothing = f", {len(dataset.images) - known:,} of nothing known" if known < len(dataset.images) else ""
    note(
        f"{plural(len(dataset.images), 'image')}, {known:,} of {plural(len(dataset.labels), 'landmark')}{nothing}"
        f" ({listed.rule})"
    )
    for remark in listed.remarks:
        note(remark)
    rejected = read_table(dataset.folder / "rejected.parquet", REJECTED)
    for _, where, why in rejected.head(5).iter_rows():
        note(f"rejected: {where if len(where) <= _LONGEST_TOLD else where[:_LONGEST_TOLD] + '…'}: {why}")
    if len(rejected) > 5:
        note(f"rejected: {len(rejected) - 5:,} more, named in rejected.parquet")
    if listed.empty:
        note(f"{len(listed.empty):,} folders hold no image, and are no landmarks: {_some(listed.empty)}")
    left = set(dataset.labels.filter(pl.col("images") > 0)["name"])
    if lost := sorted(name for name in set(given) if name not in left):
        note(f"{plural(len(lost), 'landmark')} left without an image, as all are rejected: {_some(lost)}")
    if listed.passed_by:
        note(f"left out: {listed.passed_by}")
    _tell_of_copies(dataset)


def _tell_of_copies(dataset: Dataset) -> None:
    """Say which images lie, as one and the same file, in the folders of several landmarks."""
    same = dataset.images.filter(pl.col("phash") != NO_HASH, pl.col("landmark_id").is_not_null())
    same = same.group_by("phash", "length", "width", "height").agg("image_id", pl.col("landmark_id").n_unique())
    same = same.filter(pl.col("landmark_id") > 1)
    same = same.select(pl.col("image_id").list.sort().list.join(" = ")).sort("image_id")
    if len(same):
        note(f"{len(same):,} images have the label of several landmarks: {_some(same['image_id'])}")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


# Files into a dataset: read, decoded, shrunk, hashed and put into shards, on all processors and a shard at a time.


IMAGES_PER_SHARD = 2_000
"""Also how much work is repeated when an import is killed."""

UNFINISHED = ".import"
"""The folder that holds what is known of the finished shards until the whole dataset is."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Intake:
    """What came of some files."""

    images: pl.DataFrame  # the columns of `IMAGES` that a file tells
    rejected: pl.DataFrame
    decoders: list[str]


def take_in(found: list[Found], out: Path, *, inputs: str, max_side: int | None) -> Intake:
    """Store `found` in shards under `out`, or with `max_side` None only look at them.

    `inputs` is the digest of what is taken in and how: shards that were finished under the same one are taken over, but
    not from a version that stores or hashes images otherwise.
    """
    tables = []
    inputs = digest_of(inputs, STORED_FORM, HASH_FORM)
    clear_away(out, inputs)
    with progress("importing", total=len(found)) as advance:
        for number, start in enumerate(range(0, len(found), IMAGES_PER_SHARD)):
            some = found[start : start + IMAGES_PER_SHARD]
            tables.append(_store(some, out, number, advance, inputs=inputs, max_side=max_side))
    rows = pl.concat(tables)
    sound = pl.col("why").is_null()
    decoders = {read_metadata(done)["decoder"] for done in (out / UNFINISHED / inputs).glob("*.parquet")}
    return Intake(rows.filter(sound).drop("where", "why"), rows.filter(~sound).select(*REJECTED), sorted(decoders))


def clear_away(out: Path, inputs: str) -> None:
    """Remove what a killed import left half-written, and all of it if that was of other images or settings."""
    if (out / UNFINISHED).exists() and not (out / UNFINISHED / inputs).exists():
        for done in (out / UNFINISHED).iterdir():
            remove_folder(done)
        remove_folder(out / "shards")
    make_folder(out / UNFINISHED / inputs)  # first, so that the folder is known for an import's
    for folder in (out / "shards", out / UNFINISHED / inputs):
        remove_leftovers(folder)


def _store(
    some: list[Found], out: Path, number: int, advance: Advance, *, inputs: str, max_side: int | None
) -> pl.DataFrame:
    """Store up to a shard of images and return a row for each; what was done before a kill is taken over."""
    done, shard = out / UNFINISHED / inputs / f"{number:05d}.parquet", f"import-{number:05d}.tar"
    if done.exists():
        advance(len(some))
        return read_table(done)

    def take(one: Found) -> tuple[dict[str, Any], bytes]:
        return _take(one, max_side)

    rows = []
    if max_side is None:
        for row, _ in in_parallel(take, some):
            rows.append(row)
            advance()
    else:
        with ShardWriter(out / "shards" / shard) as writer:
            for row, jpeg in in_parallel(take, some):
                if row["why"] is None:
                    row["shard"], (row["offset"], row["length"]) = shard, writer.add(row["image_id"], jpeg)
                rows.append(row)
                advance()
    columns = ("image_id", "shard", "offset", "length", "width", "height", "phash", "author", "license", "title")
    schema = {**{name: IMAGES[name] for name in columns}, "where": pl.String, "why": pl.String}
    table = pl.DataFrame(rows, schema=schema)
    write_table(done, table, decoder=DECODER)
    return table


def _take(one: Found, max_side: int | None) -> tuple[dict[str, Any], bytes]:
    """Read and decode one file; return its row, with the reason in `why` when it is no whole image, and its JPEG."""
    row: dict[str, Any] = {
        "image_id": one.id,
        "where": one.where,
        "why": None,
        "author": one.author,
        "license": one.license,
        "title": one.title,
    }
    try:
        size = one.path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise LandmarksError("a file too large to be an image", received=f"{size:,} bytes")
        with in_flight.BYTES.taking(size):
            data = one.path.read_bytes()
            with in_flight.PIXELS.taking(in_flight.pixels_decoded(data, max_side)):
                if max_side is None:
                    require_text(one.path.absolute())  # it stands in the table as it is
                    image = decode(data)
                    row |= {"shard": str(one.path.absolute()), "offset": 0, "length": len(data)}
                    data = b""
                else:
                    data, image = prepare(data, max_side)
                height, width = image.shape[:2]
                row |= {"width": width, "height": height, "phash": perceptual_hash(image)}
    except (OSError, LandmarksError) as error:
        return row | {"why": str(error)}, b""
    return row, data


def in_parallel(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Yield the results in the order of `items`, from threads; no more are in flight than twice the workers."""
    workers = usable_processors()
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
