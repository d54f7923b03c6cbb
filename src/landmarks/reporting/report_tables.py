"""The page's tables: their cells, how they sort, and what is left out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.evaluation.intervals import wilson
from landmarks.reporting.run_files import EvaluationFiles, RunFiles
from landmarks.reporting.wording import (
    bounds,
    count,
    decimal,
    duration,
    format_value,
    heading,
    interval,
    millions,
    number,
    one_line,
    percentage,
)
from landmarks.support.console import plural

MAX_ROWS = 300
"""Rows of one table on the page; the CSV beside the page holds all."""


@dataclass(frozen=True)
class Cell:
    """A cell: the text shown, the value it sorts by, and a smaller second line."""

    text: str
    value: float | str | None = None
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column's heading; numeric columns are right-aligned."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A sortable table; `note` says what it leaves out, `file` is the CSV that holds all of it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    file: str = ""


def results_table(runs: Sequence[RunFiles]) -> Table:
    """Return the study's table: one row per run, best validation accuracy first."""
    titles = (
        "Network",
        "Test accuracy",
        "Validation accuracy",
        "Head training alone",
        "Top-5",
        "Parameters",
        "Image",
        "Epochs",
        "Time",
    )
    ordered = sorted(runs, key=lambda run: (-(run.val_accuracy or 0.0), run.name))
    return Table(
        caption="One row per run, best validation accuracy first; headings sort.",
        columns=tuple(Column(title, numeric=position > 0) for position, title in enumerate(titles)),
        rows=tuple(_result(run) for run in ordered),
    )


def _result(run: RunFiles) -> tuple[Cell, ...]:
    tested, head_alone = evaluation_on_test(run), number(run.field("head", "val_accuracy"))
    size, epochs = number(run.field("network", "image_size")), trained_epochs(run)
    seconds, parameters = number(run.field("seconds", "total")), number(run.field("network", "parameters"))
    return (
        Cell(run.name, run.name, network_summary(run)),
        _share(tested.metrics.get("top1") if tested else None),
        Cell(percentage(run.val_accuracy), run.val_accuracy, interval(_validation_interval(run))),
        Cell(percentage(head_alone), head_alone, "on validation" if head_alone is not None else ""),
        _share(tested.metrics.get("top5") if tested else None),
        Cell(millions(parameters), parameters),
        Cell(f"{size:.0f} px" if size else "–", size),
        Cell("–" if epochs is None else "+".join(map(str, epochs)), None if epochs is None else sum(epochs)),
        Cell(duration(seconds), seconds),
    )


def _validation_interval(run: RunFiles) -> dict[str, Any]:
    """Return the interval of a run's validation accuracy: the evaluation's, else Wilson's for the kept epoch."""
    if judged := run.evaluation("val"):
        top1 = judged.metrics.get("top1")
        return top1 if isinstance(top1, dict) else {}
    images = int(number(run.field("validated_on")) or number(run.field("data", "images", "val")) or 0)
    if run.val_accuracy is None or not images:
        return {}
    low, high = wilson(np.array([round(run.val_accuracy * images)]), np.array([images]))
    return {"low": float(low[0]), "high": float(high[0])}


def network_summary(run: RunFiles) -> str:
    """Return `resnet50, mlp head, imagenet weights` for a run's network; no backbone if the run is called so."""
    backbone, head, weights = (run.field("network", name) for name in ("backbone", "head", "weights"))
    parts = [backbone if backbone != run.name else "", head and f"{head} head"]
    parts.append("from scratch" if weights == "none" else weights and f"{Path(str(weights)).stem} weights")
    return ", ".join(one_line(text, 40) for text in parts if text)


def evaluation_on_test(run: RunFiles) -> EvaluationFiles | None:
    """Return the run's main evaluation, unless it is on validation images."""
    return run.main if run.main and run.main.name != "val" else None


def trained_epochs(run: RunFiles) -> tuple[int, ...] | None:
    """Return the numbers of epochs of head training and of fine-tuning, without a phase that did not take place."""
    if run.history is None or run.history.is_empty():
        return None
    last = run.history.group_by("phase").agg(pl.col("epoch").max())
    epochs = {row["phase"]: row["epoch"] for row in last.iter_rows(named=True)}
    return tuple(epochs[phase] for phase in ("head", "finetune") if epochs.get(phase))


def _share(value: Any) -> Cell:
    return Cell(percentage(value), number(value), interval(value))


def results_numbers(runs: Sequence[RunFiles]) -> pl.DataFrame:
    """Return the study's table as numbers for the CSV and the charts."""
    rows = []
    for run in runs:
        tested = evaluation_on_test(run)
        top1 = tested.metrics.get("top1") if tested else None
        low, high = bounds(top1) or (None, None)
        epochs = trained_epochs(run)
        rows.append(
            {
                "run": run.name,
                "backbone": run.field("network", "backbone"),
                "parameters": number(run.field("network", "parameters")),
                "gmacs": number(run.field("network", "gmacs")),
                "image_size": number(run.field("network", "image_size")),
                "epochs": sum(epochs) if epochs else None,
                "val_accuracy": run.val_accuracy,
                "tested_on": tested.name if tested else None,
                "accuracy": number(top1),
                "low": low,
                "high": high,
                "seconds": number(run.field("seconds", "total")),
            }
        )
    kinds = {"run": pl.String, "backbone": pl.String, "tested_on": pl.String}
    return pl.DataFrame(rows, schema={name: kinds.get(name, pl.Float64) for name in rows[0]})


def evaluations_table(run: RunFiles) -> Table:
    """Return one row per evaluation of a run."""
    titles = ("Images of", "Known", "Unknown", "Top-1", "Top-5", "Macro", "Log loss", "ECE", "GAP")
    rows = []
    for evaluation in run.evaluations:
        numbers = evaluation.metrics
        rows.append(
            (
                Cell(one_line(evaluation.name, 40), evaluation.name),
                *(Cell(count(numbers.get(name)), number(numbers.get(name))) for name in ("known", "unknown")),
                *(_share(numbers.get(name)) for name in ("top1", "top5", "macro")),
                Cell(decimal(numbers.get("log_loss")), number(numbers.get("log_loss"))),
                Cell(percentage(numbers.get("ece")), number(numbers.get("ece"))),
                Cell(decimal(numbers.get("gap")), number(numbers.get("gap")), _usages(numbers.get("gap_of_usage"))),
            )
        )
    columns = tuple(Column(title, numeric=position > 0) for position, title in enumerate(titles))
    return Table("Every set of images this run was judged on.", columns, tuple(rows))


def _usages(gaps: Any) -> str:
    if not isinstance(gaps, dict):
        return ""
    return ", ".join(f"{format_value(name)} {decimal(gap)}" for name, gap in gaps.items())


def landmarks_numbers(run: RunFiles, evaluation: EvaluationFiles) -> pl.DataFrame | None:
    """Return accuracy per landmark with display names, best first; ties by number of images, then by label."""
    if evaluation.landmarks is None:
        return None
    table = evaluation.landmarks.filter(pl.col("images") > 0)
    names = pl.Series("name", run.names, dtype=pl.String).gather(table["label"])
    return (
        table.with_columns(names)
        .select("label", "landmark_id", "name", "images", "correct", "accuracy", "low", "high")
        .sort(["accuracy", "images", "label"], descending=[True, True, False])
    )


def landmarks_table(frame: pl.DataFrame, file: str) -> Table:
    """Return accuracy per landmark, best first; of more than `MAX_ROWS` the best and the worst are shown."""
    half = MAX_ROWS // 2
    shown = frame if len(frame) <= MAX_ROWS else pl.concat([frame.head(half), frame.tail(half)])
    rows = tuple(
        (
            Cell(row["name"], row["name"]),
            Cell(count(row["images"]), row["images"]),
            Cell(count(row["correct"]), row["correct"]),
            Cell(percentage(row["accuracy"]), row["accuracy"], interval(row)),
        )
        for row in shown.iter_rows(named=True)
    )
    columns = (Column("Landmark"), Column("Images", True), Column("Right", True), Column("Accuracy", True))
    note = "" if len(shown) == len(frame) else f"The {half} best and the {half} worst of {len(frame):,} landmarks."
    return Table(f"Accuracy of {plural(len(frame), 'landmark')}.", columns, rows, note, file)


_REJECTION_SHARES = ("lost", "rejected")


def rejection_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return how well each score separates known from unknown images; the columns are what the evaluation measured."""
    records = [entry for entry in metrics.get("rejection") or [] if isinstance(entry, dict)]
    names = list(dict.fromkeys(name for record in records for name in record))
    if not names:
        return None
    numeric = {name: all(number(record.get(name)) is not None for record in records) for name in names}
    rows = tuple(
        tuple(Cell(_rejection_text(name, record.get(name)), number(record.get(name))) for name in names)
        for record in records
    )
    titles = [heading(name) for name in names]
    parts = metrics.get("rejection_parts") or {}
    caption = "Scores that tell a known landmark from anything else."
    if parts:
        chosen, reported = format_value(parts.get("chosen_on")), format_value(parts.get("reported_on"))
        caption += f" Chosen on {chosen}, reported on {reported}."
    return Table(caption, tuple(Column(title, numeric[name]) for title, name in zip(titles, names, strict=True)), rows)


def _rejection_text(name: str, value: Any) -> str:
    if name in _REJECTION_SHARES:
        return percentage(value)
    return decimal(value) if isinstance(value, float | dict) else format_value(value)


def confused_pairs(run: RunFiles, evaluation: EvaluationFiles) -> list[dict[str, Any]]:
    """Return the most confused pairs with display names, in the evaluation's order."""
    pairs = []
    for pair in evaluation.metrics.get("confused") or []:
        truth, answer = pair["truth"], pair["answer"]
        pairs.append({**pair, "truth_name": run.names[truth], "answer_name": run.names[answer]})
    return pairs
