"""An export that can be evaluated like a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from landmarks.dataset.manifest import LABELS
from landmarks.recognition.portable import ExportedNetwork, open_export
from landmarks.recognition.recogniser import is_export
from landmarks.support.places import Place
from landmarks.training.run import Run, open_run


@dataclass(frozen=True, eq=False, repr=False)
class ExportAsRun(Run):
    """An export with the interface of a run that evaluation needs; `folder` is where its results are written."""

    export: ExportedNetwork

    def __fspath__(self) -> str:
        return str(self.export.path)

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.export.path.name

    @property
    def digest(self) -> str:
        """A digest that changes with the file and with the landmarks it has learned."""
        return self.export.digest


def results_folder(place: Place) -> Path:
    """Return the folder that results are written to: the run's own, or `NAME.evaluation` beside an export."""
    return Path(place).with_suffix(".evaluation") if is_export(place) else Path(place)


def open_run_or_export(place: Place) -> Run:
    """Open a run's folder or an export; results of an export go to the folder `NAME.evaluation` beside it."""
    if isinstance(place, Run):
        return place
    if not is_export(place):
        return open_run(place)
    export = open_export(place)
    record = export.record
    labels = pl.DataFrame(
        {"label": range(len(export.names)), "landmark_id": export.landmark_ids, "name": export.names},
        schema_overrides={"name": pl.String},
    )
    labels = labels.with_columns(
        pl.lit(None).cast(kind).alias(name) for name, kind in LABELS.items() if name not in labels.columns
    )
    data = {"identified_by": record.identified_by, "digest": (record.raw.get("run") or {}).get("data_digest")}
    return ExportAsRun(
        folder=results_folder(export.path),
        record={"data": data, "export": True},
        labels=labels.select(pl.col(name).cast(kind) for name, kind in LABELS.items()),
        export=export,
    )
