"""The verb `report`: one self-contained HTML page about runs, and figures beside it."""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import importlib.resources
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from landmarks import __version__
from landmarks.reporting.caveats import found_caveats, page_definitions
from landmarks.reporting.chapter import Chapter, make_chapter
from landmarks.reporting.charts import FigureFolder
from landmarks.reporting.drawings import overview_figures
from landmarks.reporting.report_tables import results_table
from landmarks.reporting.run_files import RunFiles, read_run_files, slugify
from landmarks.reporting.study_table import read_study, study_section
from landmarks.reporting.wording import facts, interval, one_line, percentage
from landmarks.support.console import note, plural
from landmarks.support.errors import UsageError
from landmarks.support.files import held, refuse_other_kind, written_whole
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
    refuse_other_kind(out, ".html", ".htm")
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
