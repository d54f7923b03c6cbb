"""What one run folder holds, read for the page: whatever is missing stays `None` and is said, never guessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.evaluation.predictions import SUBSETS_SUFFIX
from landmarks.reporting.wording import display_names, number, readable
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import digest_of, read_record
from landmarks.support.tables import read_table
from landmarks.training.run import HISTORY, open_run


@dataclass(frozen=True)
class Evaluation:
    """One judged set of images: `metrics/<name>.json` and the tables beside it."""

    name: str
    metrics: dict[str, Any]
    landmarks: pl.DataFrame | None
    confusion: pl.DataFrame | None
    predictions: Path | None

    @property
    def known(self) -> int:
        """Images that show a landmark of the run."""
        return int(number(self.metrics.get("known", self.metrics.get("images"))) or 0)

    @cached_property
    def images(self) -> str:
        """Which images these are, as a digest of their ids; empty where the predictions are gone."""
        if self.predictions is None:
            return ""
        shown = read_table(self.predictions).filter(pl.col("truth").list.len() > 0)
        return digest_of(shown["image_id"].sort().to_list())


@dataclass(frozen=True)
class RunFiles:
    """One run: its record, labels, history, evaluations and heat maps."""

    name: str
    folder: Path
    record: dict[str, Any]
    labels: pl.DataFrame
    history: pl.DataFrame | None
    model: dict[str, Any]
    evaluations: tuple[Evaluation, ...]
    maps: dict[str, Any] | None
    subsets: tuple[dict[str, Any], ...] = ()

    @cached_property
    def names(self) -> list[str]:
        """Readable names by label."""
        return display_names(self.labels)

    @property
    def slug(self) -> str:
        """The run's name as it stands in file names and anchors."""
        return slug(self.name)

    @property
    def main(self) -> Evaluation | None:
        """The evaluation the page is about: the test split, else a test set of its own, else validation.

        None of images that the run was trained on.
        """
        order = {"test": 0, "val": 2}
        able = [one for one in self.evaluations if one.known and not self.trained_on(one)]
        return min(able, key=lambda one: (order.get(one.name, 1), one.name), default=None)

    def trained_on(self, one: Evaluation) -> bool:
        """Whether an evaluation is of the run's own training images, or of these among others."""
        if one.name != one.metrics.get("split"):
            return False
        own, place = self.field("data", "folder"), one.metrics.get("data")
        return one.name == "train" or (one.name == "all" and Path(str(place)).resolve() == Path(str(own)).resolve())

    @property
    def has_test(self) -> bool:
        """Whether the run's dataset has test images, as far as the record tells."""
        return bool(self.field("data", "images", "test") != 0)

    def evaluation(self, name: str) -> Evaluation | None:
        """Return one evaluation by its name."""
        return next((one for one in self.evaluations if one.name == name), None)

    def field(self, *keys: str) -> Any:
        """Return a value out of nested records of `run.json`, or None."""
        value: Any = self.record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy of the kept epoch, from the evaluation of `val` or from the training itself."""
        judged = self.evaluation("val")
        told = number(judged.metrics.get("top1")) if judged else None
        return told if told is not None else number(self.field("best", "val_accuracy"))


def read_run_files(folders: Sequence[Path]) -> list[RunFiles]:
    """Read several run folders; equal folder names are told apart by their parents' names."""
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
        while slug(name) in used:
            name += f"-{position + 1}"
        used.add(slug(name))
        runs[position] = replace(run, name=name)
    return runs


def slug(text: str) -> str:
    """Return `text` as a plain file name and anchor: letters, digits, dots, dashes."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in text).strip("-.")
    return plain or "run"


def _read_run(folder: Path) -> RunFiles:
    run = open_run(folder)
    maps = folder / "maps" / "index.json"
    model = folder / "model.json"
    judged = sorted((folder / "metrics").glob("*.json"))
    subsets = [path for path in judged if path.name.endswith(SUBSETS_SUFFIX)]
    history = folder / "history.parquet"
    return RunFiles(
        name=readable(run.name, 60),
        folder=folder,
        record=_in_gmacs(run.record),
        labels=run.labels,
        history=read_table(history, HISTORY) if history.is_file() else None,
        model=read_record(model) if model.is_file() else {},
        evaluations=tuple(
            _read_evaluation(folder, path.stem, len(run.labels)) for path in judged if path not in subsets
        ),
        maps=_list_in(maps, "panels", lambda one: isinstance(one, dict)) if maps.is_file() else None,
        subsets=tuple(_list_in(path, "accuracies", lambda one: number(one) is not None) for path in subsets),
    )


def _list_in(path: Path, name: str, sound: Callable[[Any], bool]) -> dict[str, Any]:
    """Return a record, which may be a stranger's; raise where the list `name` in it is none, or not of `sound` ones."""
    record = read_record(path)
    told = record.get(name) or []
    if not isinstance(told, list) or not all(map(sound, told)):
        raise LandmarksError(f"{path} cannot be meant", received=f'"{name}" {told!r}'[:100], way_out="remove it")
    return record


def _in_gmacs(record: dict[str, Any]) -> dict[str, Any]:
    """Return a run's record with its network's cost in multiply-adds: earlier ones counted each as two operations."""
    network = record.get("network")
    if not isinstance(network, dict) or (operations := number(network.get("gflops"))) is None:
        return record
    rest = {name: value for name, value in network.items() if name != "gflops"}
    return {**record, "network": {"gmacs": operations / 2, **rest}}


def _read_evaluation(folder: Path, name: str, landmarks: int) -> Evaluation:
    def is_pair(told: Any) -> bool:
        ends = [told.get(end) for end in ("truth", "answer")] if isinstance(told, dict) else [None]
        return all(type(end) is int and 0 <= end < landmarks for end in ends)

    predictions = folder / "predictions" / f"{name}.parquet"
    return Evaluation(
        name=name,
        metrics=_list_in(folder / "metrics" / f"{name}.json", "confused", is_pair),
        landmarks=_table(folder / "metrics" / f"{name}.landmarks.parquet"),
        confusion=_table(folder / "metrics" / f"{name}.confusion.parquet"),
        predictions=predictions if predictions.is_file() else None,
    )


def _table(path: Path) -> pl.DataFrame | None:
    return read_table(path) if path.is_file() else None
