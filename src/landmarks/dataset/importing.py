"""The verb `import`: make a dataset of a folder of images or a CSV."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.dataset.division import division_from_source
from landmarks.dataset.groups import group_images, note_contradictions
from landmarks.dataset.listing import list_source
from landmarks.dataset.manifest import IMAGES, LABELS, REJECTED, SPLITS, Dataset, write_dataset
from landmarks.dataset.naming import (
    Landmark,
    find_landmarks,
    folder_names,
    identified_from,
    identified_in,
    landmarks_by_name,
    landmarks_of,
    read_labels,
)
from landmarks.dataset.sources import FoundImage, Source
from landmarks.dataset.split import store_division
from landmarks.dataset.storing import UNFINISHED, finished_dataset, note_rejected, store_images
from landmarks.dataset.trust import IMAGES_IN
from landmarks.support.console import note, plural
from landmarks.support.disk import remove_folder
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import digest_of, held, refuse_foreign
from landmarks.support.places import Place
from landmarks.support.tables import read_table


def import_(
    source: Place,
    out: Place,
    *,
    labels: Place | None = None,
    copy: bool = True,
    max_side: int = 512,
    add: bool = False,
) -> Dataset:
    """Make a dataset of a folder per landmark, of train/val/test folders of these, or of a CSV.

    Folders of train, val and test become splits. Images in no folder, or in `_unknown`, show nothing known. A CSV has
    the columns `path` (relative to the CSV) and `label`, and optionally `id`, `split`, `author`, `license` and `title`;
    names such as `file`, `image` and `class` are understood too. Files that cannot be decoded are listed in
    `rejected.parquet`. An import that was killed goes on where it stopped.

    Args:
        source: The folder or the CSV.
        out: The folder of the dataset.
        labels: An earlier dataset or run whose labels and landmark ids are used. By default landmark ids are the
            positions of the sorted names, which a missing folder shifts.
        copy: Whether to copy the images into shards; False leaves them where they are.
        max_side: Longest side of the copies in pixels; larger images are shrunk.
        add: Whether to add the images to the dataset that is already in `out`. Its images keep their ids, labels,
            splits and cached features.
    """
    source, out = Path(source), Path(out)
    if max_side < 1:
        raise UsageError("max_side is impossible", received=max_side, expected="1 pixel or more")
    refuse_foreign(out, ("dataset.json", UNFINISHED), "dataset")
    if source.is_dir() and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise UsageError(f"{out} lies inside {source}", way_out="choose a folder outside of what is imported")
    earlier = read_labels(Path(labels)) if labels is not None else None
    known_names = [] if earlier is None else folder_names(landmarks_of(earlier))
    listed = list_source(source, set().union(*known_names))
    names = [image.name for image in listed.found if image.name is not None]
    if earlier is None:
        landmarks = landmarks_by_name(names, listed.listed)
        identified = identified_from(source, landmarks.values(), listed.listed)
    else:
        identified = identified_in(Path(labels))  # type: ignore[arg-type]
        landmarks = find_landmarks(names, earlier, listed.listed)
    if not listed.found or not (landmarks or earlier is not None):
        raise UsageError(
            f"{source} holds no image of a named landmark",
            received=_contents(listed),
            expected="a folder per landmark with images inside, or a CSV of paths and labels",
            way_out=listed.way_out
            or ("images of nothing known alone are imported with --labels RUN" if listed.found else ""),
        )
    fingerprints = [_fingerprint(image) for image in listed.found]
    inputs = digest_of(fingerprints, earlier is None or earlier.rows(), copy, max_side)
    if add and (out / "dataset.json").exists():
        from landmarks.dataset import joining

        if (grown := joining.already_added(out, inputs)) is not None:
            return grown
        ready = joining.ready_folder(out, inputs)
        if not (ready / "tables" / "dataset.json").exists():
            joining.require_growing(out)
            import_(source, ready, labels=labels, copy=copy, max_side=max_side)
        return joining.add(out, inputs)
    with held(out):
        dataset = finished_dataset(out, inputs, way_out="choose another folder; --add adds to it")
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
    """Store the images, then write the tables; `max_side` None leaves the images where they are."""
    stored = store_images(listed.found, out, inputs=inputs, max_side=max_side)
    rejected_by_name = [("", where, why) for where, why in listed.rejected]
    rejected = pl.concat([stored.rejected, pl.DataFrame(rejected_by_name, schema=REJECTED, orient="row")])
    ids = pl.DataFrame(
        [(image.id, landmarks[image.name].landmark_id if image.name is not None else None) for image in listed.found],
        schema={"image_id": pl.String, "landmark_id": pl.Int64},
        orient="row",
    )
    table = stored.images.join(ids, on="image_id", how="left", maintain_order="left")
    table = table.with_columns(
        pl.lit(None).cast(IMAGES[name]).alias(name) for name in IMAGES if name not in table.columns
    )
    if table.is_empty():
        _, where, why = stored.rejected.row(0)
        raise LandmarksError(
            f"none of the {len(listed.found):,} files in {source} is an image", received=f"{where}: {why}"
        )
    table = table.sort("image_id")
    table = table.with_columns(group=group_images(table).column)
    labelled = landmarks_of(earlier) if earlier is not None else list(landmarks.values())
    dataset = write_dataset(
        out,
        verb="import",
        images=table,
        labels=_labels(table, labelled, keep_all=earlier is not None),
        rejected=rejected,
        record={
            "set": "import",
            "origin": str(source.absolute()),
            "rule": listed.rule,
            "max_side": max_side,
            "decoders": stored.decoders,
            "identified_by": identified_by,
            "empty": listed.empty,
            "ignored": listed.ignored,
            "first_of_several": len(stored.several),
            **({IMAGES_IN: _common_folder(table["shard"].to_list())} if max_side is None else {}),
        },
        inputs=inputs,
    )
    remove_folder(out / UNFINISHED)
    if stored.several:
        files = plural(len(stored.several), "file")
        note(f"of {files} with several images, the first one is taken: {_some(stored.several)}")
    _note_result(dataset, listed, (landmarks[image.name].name for image in listed.found if image.name is not None))
    return dataset


def _common_folder(places: list[str]) -> str:
    """Return the innermost folder that contains all of these files."""
    return os.path.commonpath([os.path.dirname(os.path.normpath(place)) for place in places])  # noqa: PTH120


def _labels(images: pl.DataFrame, landmarks: list[Landmark], *, keep_all: bool) -> pl.DataFrame:
    """Return the table of labels of `images`; landmarks without an image are in it only with `keep_all`."""
    counts = dict(images["landmark_id"].drop_nulls().value_counts().iter_rows())
    rows = [
        (landmark.landmark_id, landmark.name, landmark.category, counts.get(landmark.landmark_id, 0))
        for landmark in sorted(landmarks, key=lambda landmark: landmark.landmark_id)
        if keep_all or landmark.landmark_id in counts
    ]
    columns = [name for name in LABELS if name != "label"]
    return pl.DataFrame(rows, schema={name: LABELS[name] for name in columns}, orient="row").with_row_index("label")


def _keep_splits(dataset: Dataset, listed: Source) -> Dataset:
    splits = {image.id: SPLITS.index(image.split) for image in listed.found if image.split is not None}
    split = np.asarray([splits[id] for id in dataset.images["image_id"]], np.uint8)
    return store_division(dataset, division_from_source(dataset.images, split))


def _fingerprint(image: FoundImage) -> tuple[Any, ...]:
    status = image.path.stat()
    return (
        image.where,
        image.name,
        image.split,
        image.id,
        image.author,
        image.license,
        image.title,
        status.st_size,
        status.st_mtime_ns,
    )


def _contents(listed: Source) -> str:
    """Return what a source without images of named landmarks holds: counts, and the reason of the first rejection."""
    parts = [f"{plural(len(listed.found), 'image')} in no landmark's folder"] if listed.found else []
    if listed.rejected:
        where, why = listed.rejected[0]
        more = f" (and {len(listed.rejected) - 1:,} more)" if len(listed.rejected) > 1 else ""
        parts.append(f"{plural(len(listed.rejected), 'file')} that cannot be taken, such as {where}: {why}{more}")
    if listed.ignored:
        parts.append(listed.ignored)
    if listed.empty:
        parts.append(f"{plural(len(listed.empty), 'folder')} without an image: {_some(listed.empty)}")
    return "; ".join(parts) or "nothing"


def _note_result(dataset: Dataset, listed: Source, names: Iterable[str]) -> None:
    """Note the size of an imported dataset, and what was rejected; `names` are the landmarks of the images found."""
    known = dataset.images["landmark_id"].drop_nulls().len()
    nothing = f", {len(dataset.images) - known:,} of nothing known" if known < len(dataset.images) else ""
    note(
        f"{plural(len(dataset.images), 'image')}, {known:,} of {plural(len(dataset.labels), 'landmark')}{nothing}"
        f" ({listed.rule})"
    )
    for remark in listed.remarks:
        note(remark)
    note_rejected(read_table(dataset.folder / "rejected.parquet", REJECTED))
    if listed.empty:
        note(f"{plural(len(listed.empty), 'folder', 'hold')} no image, and no landmark: {_some(listed.empty)}")
    left = set(dataset.labels.filter(pl.col("images") > 0)["name"])
    if lost := sorted(set(names) - left):
        note(f"{plural(len(lost), 'landmark')} left without an image, as all are rejected: {_some(lost)}")
    if listed.ignored:
        note(f"left out: {listed.ignored}")
    note_contradictions(dataset.images)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
