"""Make a smaller dataset of the selected images of a dataset, without any mirror."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from landmarks.archive.fetch_plan import FetchPlan
from landmarks.dataset.division import EarlierDivision, read_division
from landmarks.dataset.joining import gather
from landmarks.dataset.manifest import LABELS, REJECTED, Dataset
from landmarks.dataset.naming import identified_by
from landmarks.dataset.storing import UNFINISHED, finished_dataset
from landmarks.dataset.uniting import United
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of, file_digest, held, refuse_foreign
from landmarks.support.tables import read_metadata, read_table


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
            labels=_labels(images, chosen, data),
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


def _labels(images: pl.DataFrame, chosen: pl.DataFrame, data: Dataset) -> pl.DataFrame:
    """Return a label for each selected landmark, with its name in the dataset."""
    ids = chosen.select("landmark_id").drop_nulls().unique()
    counts = images.group_by("landmark_id").agg(images=pl.len())
    labels = ids.join(data.labels.select("landmark_id", "name", "category"), on="landmark_id", how="left")
    labels = labels.join(counts, on="landmark_id", how="left").sort("landmark_id").with_row_index("label")
    name = pl.coalesce("name", pl.col("landmark_id").cast(pl.String)).alias("name")
    return labels.with_columns(name, pl.col("images").fill_null(0)).select(list(LABELS))
