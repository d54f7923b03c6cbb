"""An export in the place of a run: so that what measures runs measures an export in the same way."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from landmarks.dataset.manifest import LABELS
from landmarks.recognition.portable import ExportedNetwork, open_export
from landmarks.recognition.recogniser import is_export
from landmarks.support.places import Place
from landmarks.training.run import Run, open_run


@dataclass(frozen=True, eq=False, repr=False)
class MeasuredExport(Run):
    """An export as far as evaluation asks a run; `folder` is where its predictions and numbers are written."""

    export: ExportedNetwork

    def __fspath__(self) -> str:
        return str(self.export.path)

    @property
    def name(self) -> str:
        """What tables call it: the name of its file."""
        return self.export.path.name

    @property
    def digest(self) -> str:
        """Changes with the file, and with what it has learned."""
        return self.export.digest


def open_measured(place: Place) -> Run:
    """Open a run's folder, or an export, whose numbers are kept in the folder `NAME.evaluation` beside it."""
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
    return MeasuredExport(
        folder=export.path.with_suffix(".evaluation"),
        record={"data": data, "export": True},
        labels=labels.select(pl.col(name).cast(kind) for name, kind in LABELS.items()),
        export=export,
    )
