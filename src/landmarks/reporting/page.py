"""The verb `report`: one self-contained HTML page about runs, and figures beside it.

The page of a reproduction has its table beside the study's results, from `study.json`, which `landmarks reproduce`
writes. The record holds `protocols` (name → meaning), `notes`, `test_set` (the name of images that all runs are
evaluated on in addition to their own splits, or None) and `rows`. A row holds:

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

import base64
import datetime
import functools
import hashlib
import importlib.resources
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from markupsafe import Markup

from landmarks import __version__
from landmarks.reporting.caveats import found_caveats, page_definitions
from landmarks.reporting.chapter import Chapter, make_chapter
from landmarks.reporting.charts import protocols_chart
from landmarks.reporting.drawings import overview_figures
from landmarks.reporting.figures import Figure, FigureFolder
from landmarks.reporting.report_tables import Cell, Column, Table, results_table
from landmarks.reporting.run_files import RunFiles, read_run_files, slugify
from landmarks.reporting.wording import bounds, duration, facts, interval, millions, number, one_line, percentage
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import held, read_record, refuse_other_kind, written_whole
from landmarks.support.places import Place, in_shell, paths_of

FIGURES = "figures"
"""Folder beside the page for the figures as SVG and their numbers as CSV."""

PANELS_OF_THE_FIRST = 12
PANELS_OF_OTHERS = 4
"""Panels of heat maps on the page: more for the first run, a few for the others, to keep the page small."""


def report(runs: Place | Sequence[Place], out: Place = "report.html", *, study: Place | None = None) -> Path:
    """Write one self-contained HTML page about one or several run folders, and return its path.

    The page loads nothing over a network. Figures are also written as SVG and CSV under `figures/` beside it:
    `<page>-<figure>` for comparisons of runs, `<run>-<figure>` for a single run. If a run lacks something (an
    evaluation, heat maps, its images), the page says so, with the command that makes it. `study` is the `study.json`
    of a reproduction, whose table is added.
    Raises `LandmarksError` for a folder that is no run, and `UsageError` when no run is given, or one twice.
    """
    started = time.monotonic()
    folders = [Path(run) for run in paths_of(runs)]
    out = Path(out)
    if out.is_dir():
        raise UsageError(
            f"{out} is a folder", expected="a file to write the page to", way_out=f"-o {in_shell(out / 'report.html')}"
        )
    refuse_other_kind(out, ".html", ".htm", begins=b"<!doctype html")
    files = _best_first(read_run_files(folders))
    study_record = None if study is None else read_study(study)
    with held(out.parent / FIGURES) as folder:
        page = _render(files, FigureFolder(folder), slugify(out.stem), study_record)
        with written_whole(out, tidy=True) as aside:
            aside.write_text(page, encoding="utf-8")
    note(f"{out}: {plural(len(files), 'run')}, {len(page) / 1e6:.1f} MB, in {time.monotonic() - started:.1f} s")
    return out


def _best_first(runs: list[RunFiles]) -> list[RunFiles]:
    """Sort runs by validation accuracy: test accuracy must not choose the run that the page is about."""
    return sorted(runs, key=lambda run: (-(run.val_accuracy or 0.0), run.name))


def _render(runs: list[RunFiles], figures: FigureFolder, page: str, study: dict[str, Any] | None) -> str:
    compared = overview_figures(runs, figures, page)
    chapters = [
        make_chapter(run, figures, panels=PANELS_OF_OTHERS if position else PANELS_OF_THE_FIRST)
        for position, run in enumerate(runs)
    ]
    script = _packaged("script.js")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=_title(runs),
            finding=finding(runs),
            results=results_table(runs),
            results_file=f"{figures.folder.name}/{page}-results.csv",
            compared=compared,
            study=None if study is None else study_section(study, figures, page),
            chapters=chapters,
            with_images=any(chapter.has_images for chapter in chapters),
            contents=_contents(chapters, with_study=study is not None),
            datasets=_datasets(runs),
            caveats=found_caveats(runs),
            definitions=page_definitions(runs),
            figures=figures.folder.name,
            style=Markup(_packaged("style.css")),
            script=Markup(script),
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            version=__version__,
            today=datetime.date.today().isoformat(),
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("landmarks.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _packaged(name: str) -> str:
    return (importlib.resources.files("landmarks.reporting") / "templates" / name).read_text(encoding="utf-8").strip()


def _title(runs: Sequence[RunFiles]) -> str:
    landmarks = sorted({len(run.labels) for run in runs})
    count = f"{landmarks[0]:,}" if len(landmarks) == 1 else f"{landmarks[0]:,} to {landmarks[-1]:,}"
    return f"Recognising {count} landmark{'' if landmarks == [1] else 's'}"


def finding(runs: Sequence[RunFiles]) -> str:
    """Return the page's main finding in one sentence; `runs` are sorted by validation accuracy, best first."""
    best = runs[0]
    backbone = one_line(best.field("network", "backbone") or best.name, 60)
    judged = best.main
    if judged is None and best.val_accuracy is None:
        return f"{backbone} has not been evaluated yet."
    if judged is None:
        accuracy = percentage(best.val_accuracy)
        return f"{backbone} reached {accuracy} on its validation images; it has not been evaluated yet."
    split = "validation" if judged.name == "val" else "test"
    top1 = judged.metrics.get("top1")
    bounds = f" (95 % interval {interval(top1)})" if interval(top1) else ""
    sentence = f"{backbone} names the right landmark in {percentage(top1)} of {judged.known:,} {split} images{bounds}"
    digest = best.field("data", "digest")  # accuracies on other images or splits are not comparable
    comparable = [run for run in runs if digest is None or run.field("data", "digest") == digest]
    accuracies = [run.val_accuracy for run in comparable if run.val_accuracy is not None]
    if best.val_accuracy is not None and len(accuracies) > 1:
        unique = accuracies.count(best.val_accuracy) == 1
        sentence += f"; of {len(accuracies)} runs {'it did best' if unique else 'none did better'} on validation"
    return sentence + "."


@dataclass(frozen=True)
class _Entry:
    anchor: str
    title: str
    inner: tuple[tuple[str, str], ...] = ()


def _contents(chapters: Sequence[Chapter], *, with_study: bool) -> list[_Entry]:
    """Return the table of contents, with the sections of the first run, whose chapter is open."""
    entries = [_Entry("results", "Results")]
    if with_study:
        entries.append(_Entry("study", "Beside the study"))
    for position, chapter in enumerate(chapters):
        slug = chapter.run.slug
        inner = () if position else tuple((f"{slug}-{key}", title) for key, title in sections(chapter))
        entries.append(_Entry(f"run-{slug}", chapter.run.name, inner))
    return [
        *entries,
        _Entry("data", "Data"),
        _Entry("not-shown", "What these numbers do not show"),
        _Entry("definitions", "What each number means"),
    ]


def sections(chapter: Chapter) -> list[tuple[str, str]]:
    """Return (anchor, heading) of the sections of a chapter that are not empty."""
    contents = (
        ("learning", "Learning curves", chapter.learning),
        ("confusion", "Confusion", chapter.confusion),
        ("landmarks", "Best and worst landmarks", chapter.landmarks),
        ("pairs", "Most confused pairs", chapter.pairs),
        ("maps", "Where it looked", chapter.panels),
        ("mistakes", "Most confident mistakes", chapter.mistakes or chapter.strangers),
        ("calibration", "How sure it is", chapter.calibration or chapter.calibration_line),
        ("rejection", "Not a landmark", chapter.rejections),
        ("subsets", "How much the choice of landmarks matters", chapter.subsets),
        ("making", "How it was made", chapter.making or chapter.choices),
    )
    return [(key, title) for key, title, content in contents if content]


def _datasets(runs: Sequence[RunFiles]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return facts about every distinct dataset: (names of the runs trained on it, (name, value) pairs)."""
    by_digest: dict[str, list[RunFiles]] = {}
    for run in runs:
        by_digest.setdefault(str(run.field("data", "digest")), []).append(run)
    hidden = ("relative", "content_digest", "seen")
    datasets = [(group, group[0].field("data") or {}) for group in by_digest.values()]
    return [
        (", ".join(run.name for run in group), facts({key: data[key] for key in data if key not in hidden}))
        for group, data in datasets
    ]


# ── The table of a reproduction, beside the study's results ─────────────────────────────────────────────────────────


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
