"""The table of a reproduction beside the study's results, from `study.json`, which `landmarks reproduce` writes.

The record holds `protocols` (name → meaning), `notes`, `test_set` (the name of images that all runs are evaluated on in
addition to their own splits, or None) and `rows`. A row holds:

    network, protocol   what the row is about
    published           `validation` and `test` of the study, each None if not known; None if the study has no such row
    changed             list of differences from the study's training
    why                 why there is no run; empty if there is one
    run                 the run's folder; this and all below is None if there is no run
    parameters, image_size, seconds
    epochs              of each phase
    validation, test, test_set   top-1: `value`, `low`, `high`
    head                validation accuracy of head training alone; None without that phase
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.reporting.charts import Figure, FigureFolder, protocols_chart
from landmarks.reporting.report_tables import Cell, Column, Table
from landmarks.reporting.wording import bounds, duration, interval, millions, number, one_line, percentage
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record
from landmarks.support.places import Place

NOT_GIVEN = "not given here"
"""Shown for a result of the study that is not known here."""


def read_study(path: Place) -> dict[str, Any]:
    """Read the record of a reproduction, or of its folder; raise `LandmarksError` if the file is something else."""
    path = Path(path)
    if path.is_dir():
        path = path / "study.json"
    if not path.exists():
        raise LandmarksError(f"there is no {path}", expected="study.json, from landmarks reproduce, or its folder")
    record = read_record(path)
    if not isinstance(record.get("rows"), list) or not record["rows"]:
        raise LandmarksError(f"{path} is no reproduction's record", expected="study.json, from landmarks reproduce")
    return record


@dataclass(frozen=True)
class StudySection:
    """What the page shows of a reproduction."""

    table: Table
    figure: Figure | None
    notes: tuple[str, ...]


def study_section(record: Mapping[str, Any], figures: FigureFolder, page: str) -> StudySection:
    """Return the page's section about a reproduction; its numbers and its figure are also written as files."""
    file = figures.save_numbers(study_numbers(record), file=f"{page}-study")
    notes = tuple(one_line(text, 400) for text in record["notes"])
    return StudySection(replace(study_table(record), file=file), study_figure(record, figures, page), notes)


def study_table(record: Mapping[str, Any]) -> Table:
    """Return one row per network and protocol, in the record's order, with what the study published."""
    test_set = record.get("test_set")
    titles = ["Network", "Protocol", "Parameters", "Epochs", "Validation", "Test"]
    titles += [f"Test on {one_line(test_set, 40)}"] if test_set else []
    titles += ["Head training alone", "Published", "Changed from the study"]
    text_columns = ("Network", "Protocol", "Changed from the study")
    return Table(
        caption="; ".join(f"{one_line(name)}: {one_line(text)}" for name, text in record["protocols"].items()) + ".",
        columns=tuple(Column(title, numeric=title not in text_columns) for title in titles),
        rows=tuple(_cells(row, with_test_set=bool(test_set)) for row in record["rows"]),
    )


def _cells(row: Mapping[str, Any], *, with_test_set: bool) -> tuple[Cell, ...]:
    network, protocol = one_line(row["network"], 60), one_line(row["protocol"], 40)
    size, epochs, seconds = row["image_size"], row["epochs"], "" if row["why"] else duration(row["seconds"])
    shown = ("validation", "test", *(("test_set",) if with_test_set else ()))
    changes = "; ".join(_changes(row))
    return (
        Cell(network, network),
        Cell(protocol, protocol),
        Cell(millions(row["parameters"]), number(row["parameters"]), f"{size:.0f} px" if size else ""),
        Cell("+".join(map(str, epochs)) if epochs else "–", sum(epochs) if epochs else None, seconds),
        *(Cell(percentage(row[name]), number(row[name]), interval(row[name])) for name in shown),
        Cell(percentage(row["head"]), number(row["head"])),
        _published(row["published"]),
        Cell(changes, changes),
    )


def _changes(row: Mapping[str, Any]) -> list[str]:
    """Return how a row's training differs from the study's, or "not done"; the notes say why."""
    return [one_line(text) for text in (["not done"] if row["why"] else row["changed"])] or ["nothing"]


def _published(results: Mapping[str, float | None] | None) -> Cell:
    if results is None:
        return Cell("–")
    if results["test"] is None:
        return Cell(NOT_GIVEN)
    validation = f"{percentage(results['validation'], 2)} on validation"
    return Cell(percentage(results["test"], 2), results["test"], validation)


def study_lines(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of the table as text for a terminal; a cell may have two lines."""
    table = study_table(record)
    lines = []
    for (network, protocol, *cells, _), row in zip(table.rows, record["rows"], strict=True):
        pairs = [(network.text, protocol.text), *((cell.text, cell.note) for cell in cells)]
        lines.append([*("\n".join(filter(None, pair)) for pair in pairs), "\n".join(_changes(row))])
    return [column.title for column in table.columns if column.title != "Protocol"], lines


def study_numbers(record: Mapping[str, Any]) -> pl.DataFrame:
    """Return the table as numbers for a CSV: accuracies as shares, with `_low` and `_high`."""
    texts = ("network", "protocol", "run", "epochs", "changed", "why")
    lines = []
    for row in record["rows"]:
        line: dict[str, Any] = {name: row[name] for name in ("network", "protocol", "run", "parameters", "image_size")}
        line["epochs"] = "+".join(map(str, row["epochs"] or [])) or None
        for name in ("validation", "test", "test_set"):
            low, high = bounds(row[name]) or (None, None)
            line |= {name: number(row[name]), f"{name}_low": low, f"{name}_high": high}
        published = row["published"] or {}
        line |= {"head": row["head"], "seconds": row["seconds"]}
        line |= {f"published_{name}": published.get(name) for name in ("validation", "test")}
        lines.append(line | {"changed": "; ".join(row["changed"]), "why": row["why"] or None})
    return pl.DataFrame(lines, schema={name: pl.String if name in texts else pl.Float64 for name in lines[0]})


def study_figure(record: Mapping[str, Any], figures: FigureFolder, page: str) -> Figure | None:
    """Return each network's test accuracy under each protocol and as published; None if nothing was measured."""
    points: list[tuple[str, str, float, float, float]] = []
    for row in record["rows"]:
        if (accuracy := number(row["test"])) is not None:
            low, high = bounds(row["test"]) or (accuracy, accuracy)
            points.append((row["network"], row["protocol"], accuracy, low, high))
        if row["published"] and row["published"]["test"] is not None:
            share = row["published"]["test"]
            points.append((row["network"], "published", share, share, share))
    if all(series == "published" for _, series, *_ in points):
        return None
    kinds = {"network": pl.String, "series": pl.String, "accuracy": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    points.sort(key=lambda point: point[1] == "published")  # the study's series, and its colour, come last
    frame = pl.DataFrame(points, schema=kinds, orient="row").with_columns(
        pl.col("network", "series").map_elements(lambda text: one_line(text, 60), return_dtype=pl.String)
    )
    descriptions = [
        f"{row['network']}, {row['series']}: {percentage(row['accuracy'])}"
        + (f" ({interval(row)})" if row["low"] < row["high"] else "")
        for row in frame.iter_rows(named=True)
    ]
    frame = frame.with_columns(pl.Series("description", descriptions, dtype=pl.String))
    return figures.draw(
        protocols_chart(frame),
        frame,
        file=f"{page}-protocols",
        title="Test accuracy under each protocol",
        alt=f"Dots with intervals per network and protocol: {'; '.join(descriptions)}",
        caption="What the study published stands where it is known; it was measured on its own landmarks.",
    )
