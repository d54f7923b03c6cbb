"""Read run folders for the page; whatever is missing is None, and the page says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.evaluation.predictions import SUBSETS_SUFFIX
from landmarks.reporting.wording import display_names, number, one_line
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import digest_of, read_record
from landmarks.support.tables import read_table
from landmarks.training.run import HISTORY, open_run


@dataclass(frozen=True)
class EvaluationFiles:
    """One evaluation of a run: `metrics/<name>.json`, the tables beside it and the predictions."""

    name: str
    metrics: dict[str, Any]
    landmarks: pl.DataFrame | None
    confusion: pl.DataFrame | None
    predictions: Path | None

    @property
    def known(self) -> int:
        """Number of images that show a landmark of the run."""
        return int(number(self.metrics.get("known", self.metrics.get("images"))) or 0)

    @cached_property
    def images_digest(self) -> str:
        """A digest of the known images' ids, empty where the predictions are gone."""
        if self.predictions is None:
            return ""
        known = read_table(self.predictions).filter(pl.col("truth").list.len() > 0)
        return digest_of(known["image_id"].sort().to_list())


@dataclass(frozen=True)
class RunFiles:
    """The files of one run: its record, labels, history, evaluations and heat maps."""

    name: str
    folder: Path
    record: dict[str, Any]
    labels: pl.DataFrame
    history: pl.DataFrame | None
    model: dict[str, Any]
    evaluations: tuple[EvaluationFiles, ...]
    maps: dict[str, Any] | None
    subsets: tuple[dict[str, Any], ...] = ()

    @cached_property
    def names(self) -> list[str]:
        """Display names by label."""
        return display_names(self.labels)

    @property
    def slug(self) -> str:
        """The run's name for file names and anchors."""
        return slugify(self.name)

    @property
    def main(self) -> EvaluationFiles | None:
        """The evaluation that the page is about: that of the test split, else of another test set, else of validation.

        Evaluations on training images are left out.
        """
        order = {"test": 0, "val": 2}
        suitable = [each for each in self.evaluations if each.known and not self.trained_on(each)]
        return min(suitable, key=lambda each: (order.get(each.name, 1), each.name), default=None)

    def trained_on(self, evaluation: EvaluationFiles) -> bool:
        """Return whether the images of an evaluation include the run's training images."""
        name, data = evaluation.name, evaluation.metrics.get("data")
        if name != evaluation.metrics.get("split"):
            return False
        own_data = self.field("data", "folder")
        return name == "train" or (name == "all" and Path(str(data)).resolve() == Path(str(own_data)).resolve())

    @property
    def has_test(self) -> bool:
        """Whether the run's dataset has test images; true if the record does not say."""
        return bool(self.field("data", "images", "test") != 0)

    def evaluation(self, name: str) -> EvaluationFiles | None:
        """Return the evaluation called `name`, or None."""
        return next((each for each in self.evaluations if each.name == name), None)

    def field(self, *keys: str) -> Any:
        """Return a value from nested records of `run.json`, or None."""
        value: Any = self.record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy of the kept epoch, from the evaluation of `val`, else as recorded in training."""
        judged = self.evaluation("val")
        accuracy = number(judged.metrics.get("top1")) if judged else None
        return accuracy if accuracy is not None else number(self.field("best", "val_accuracy"))


def read_run_files(folders: Sequence[Path]) -> list[RunFiles]:
    """Read several run folders; runs of equal folder names are called `<parent>/<name>`.

    Raises `UsageError` when no folder is given, or one twice.
    """
    if not folders:
        raise UsageError("a report needs at least one run", way_out="landmarks report RUN -o report.html")
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UsageError("a run is named twice", received=", ".join(map(str, folders)))
    runs = [_read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    used: set[str] = set()
    for position, run in enumerate(runs):
        name = run.name if names.count(run.name) == 1 else f"{resolved[position].parent.name}/{run.name}"
        while slugify(name) in used:
            name += f"-{position + 1}"
        used.add(slugify(name))
        runs[position] = replace(run, name=name)
    return runs


def slugify(text: str) -> str:
    """Return `text` as a file name and anchor of ASCII letters, digits, dots, dashes and underscores."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in text).strip("-.")
    return plain or "run"


def _read_run(folder: Path) -> RunFiles:
    run = open_run(folder)
    maps = folder / "maps" / "index.json"
    model = folder / "model.json"
    metrics = sorted((folder / "metrics").glob("*.json"))
    subsets = [path for path in metrics if path.name.endswith(SUBSETS_SUFFIX)]
    history = folder / "history.parquet"
    return RunFiles(
        name=one_line(run.name, 60),
        folder=folder,
        record=_in_gmacs(run.record),
        labels=run.labels,
        history=read_table(history, HISTORY) if history.is_file() else None,
        model=read_record(model) if model.is_file() else {},
        evaluations=tuple(
            _read_evaluation(folder, path.stem, len(run.labels)) for path in metrics if path not in subsets
        ),
        maps=_checked_record(maps, "panels", lambda panel: isinstance(panel, dict)) if maps.is_file() else None,
        subsets=tuple(_checked_record(path, "accuracies", lambda value: number(value) is not None) for path in subsets),
    )


def _checked_record(path: Path, name: str, is_valid: Callable[[Any], bool]) -> dict[str, Any]:
    """Return an untrusted record; raise `LandmarksError` unless its entry `name` is a list of valid items."""
    record = read_record(path)
    items = record.get(name) or []
    if not isinstance(items, list) or not all(map(is_valid, items)):
        received = f'"{name}" {items!r}'[:100]
        raise LandmarksError(f"{path} holds an invalid value", received=received, way_out="remove it")
    return record


def _in_gmacs(record: dict[str, Any]) -> dict[str, Any]:
    """Return a run's record with its network's cost in GMACs; earlier records count twice as many operations."""
    network = record.get("network")
    if not isinstance(network, dict) or (operations := number(network.get("gflops"))) is None:
        return record
    rest = {name: value for name, value in network.items() if name != "gflops"}
    return {**record, "network": {"gmacs": operations / 2, **rest}}


def _read_evaluation(folder: Path, name: str, landmarks: int) -> EvaluationFiles:
    def is_pair(item: Any) -> bool:
        labels = [item.get(key) for key in ("truth", "answer")] if isinstance(item, dict) else [None]
        return all(type(label) is int and 0 <= label < landmarks for label in labels)

    predictions = folder / "predictions" / f"{name}.parquet"
    return EvaluationFiles(
        name=name,
        metrics=_checked_record(folder / "metrics" / f"{name}.json", "confused", is_pair),
        landmarks=_table_if_present(folder / "metrics" / f"{name}.landmarks.parquet"),
        confusion=_table_if_present(folder / "metrics" / f"{name}.confusion.parquet"),
        predictions=predictions if predictions.is_file() else None,
    )


def _table_if_present(path: Path) -> pl.DataFrame | None:
    return read_table(path) if path.is_file() else None
