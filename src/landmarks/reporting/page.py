"""The verb `report`: runs become one HTML page that needs nothing but itself, and figures beside it."""

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
from landmarks.reporting.chapter import Chapter, chapter
from landmarks.reporting.drawings import overview
from landmarks.reporting.figures import FigureFolder
from landmarks.reporting.report_tables import results_table
from landmarks.reporting.run_files import RunFiles, read_run_files, slug
from landmarks.reporting.study_table import read_study, study_section
from landmarks.reporting.wording import facts, interval, percent, plural, readable
from landmarks.support.console import note
from landmarks.support.errors import UsageError
from landmarks.support.files import held, refuse_other_kind, written_whole
from landmarks.support.places import Place, paths_of

FIGURES = "figures"
"""Folder beside the page where every figure also lies as SVG and its numbers as CSV."""

PANELS_OF_THE_FIRST = 12
PANELS_OF_OTHERS = 4
"""Heat maps taken into the page: all of the run that the page is about, a few of the others, to keep it small."""


def report(runs: Place | Sequence[Place], out: Place = "report.html", *, study: Place | None = None) -> Path:
    """Write one self-contained HTML page about one or several run folders, and return where it lies.

    The page asks for nothing over a network. Figures are also written as SVG and CSV under `figures/` beside it:
    `<page>-<figure>` where runs are compared, `<run>-<figure>` for one run. What a run lacks (an evaluation, heat
    maps, its images) is said in one line with the command that makes it. `study` is the `study.json` of a
    reproduction, whose table then stands beside the others. Raises `LandmarksError` for a folder that is no run and
    `UsageError` for none, or one named twice.
    """
    started = time.monotonic()
    folders = [Path(run) for run in paths_of(runs)]
    out = Path(out)
    if out.is_dir():
        raise UsageError(f"{out} is a folder", expected="a file to write the page to", way_out=f"-o {out}/report.html")
    refuse_other_kind(out, ".html", ".htm")
    files = _best_first(read_run_files(folders))
    beside = None if study is None else read_study(study)
    with held(out.parent / FIGURES) as folder:
        page = _render(files, FigureFolder(folder), slug(out.stem), beside)
        with written_whole(out, tidy=True) as aside:
            aside.write_text(page, encoding="utf-8")
    note(f"{out}: {plural(len(files), 'run')}, {len(page) / 1e6:.1f} MB, in {time.monotonic() - started:.1f} s")
    return out


def _best_first(runs: list[RunFiles]) -> list[RunFiles]:
    """Order runs by validation accuracy: the test accuracy must not choose what the page is about."""
    return sorted(runs, key=lambda run: (-(run.val_accuracy or 0.0), run.name))


def _render(runs: list[RunFiles], figures: FigureFolder, page: str, study: dict[str, Any] | None) -> str:
    compared = overview(runs, figures, page)
    chapters = [
        chapter(run, figures, panels=PANELS_OF_OTHERS if position else PANELS_OF_THE_FIRST)
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
            with_images=any(one.has_images for one in chapters),
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
    told = f"{landmarks[0]:,}" if len(landmarks) == 1 else f"{landmarks[0]:,} to {landmarks[-1]:,}"
    return f"Recognising {told} landmark{'' if landmarks == [1] else 's'}"


def finding(runs: Sequence[RunFiles]) -> str:
    """Return what the page found, in one sentence; `runs` come best first by validation."""
    best = runs[0]
    backbone = readable(best.field("network", "backbone") or best.name, 60)
    judged = best.main
    if judged is None and best.val_accuracy is None:
        return f"{backbone} has not been evaluated yet."
    if judged is None:
        accuracy = percent(best.val_accuracy)
        return f"{backbone} reached {accuracy} on its validation images; it has not been evaluated yet."
    split = "validation" if judged.name == "val" else "test"
    top1 = judged.metrics.get("top1")
    sure = f" (95 % interval {interval(top1)})" if interval(top1) else ""
    sentence = f"{backbone} names the right landmark in {percent(top1)} of {judged.known:,} {split} images{sure}"
    data = best.field("data", "digest")  # what was validated on other images, or another split, does not compare
    same = [run for run in runs if data is None or run.field("data", "digest") == data]
    validated = [run.val_accuracy for run in same if run.val_accuracy is not None]
    if best.val_accuracy is not None and len(validated) > 1:
        alone = validated.count(best.val_accuracy) == 1
        sentence += f"; of {len(validated)} runs {'it did best' if alone else 'none did better'} on validation"
    return sentence + "."


@dataclass(frozen=True)
class _Entry:
    anchor: str
    title: str
    inner: tuple[tuple[str, str], ...] = ()


def _contents(chapters: Sequence[Chapter], *, with_study: bool) -> list[_Entry]:
    """Return the table of contents; the sections of the first run are listed, as it stands open."""
    entries = [_Entry("results", "Results")]
    if with_study:
        entries.append(_Entry("study", "Beside the study"))
    for position, one in enumerate(chapters):
        inner = () if position else tuple((f"{one.run.slug}-{key}", title) for key, title in sections(one))
        entries.append(_Entry(f"run-{one.run.slug}", one.run.name, inner))
    return [
        *entries,
        _Entry("data", "Data"),
        _Entry("not-shown", "What these numbers do not show"),
        _Entry("definitions", "What each number means"),
    ]


def sections(one: Chapter) -> list[tuple[str, str]]:
    """Return (anchor, heading) of the sections a chapter has something for."""
    present = (
        ("learning", "Learning curves", one.learning),
        ("confusion", "Confusion", one.confusion),
        ("landmarks", "Best and worst landmarks", one.landmarks),
        ("pairs", "Most confused pairs", one.pairs),
        ("maps", "Where it looked", one.panels),
        ("mistakes", "Most confident mistakes", one.mistakes or one.strangers),
        ("calibration", "How sure it is", one.calibration or one.calibration_line),
        ("rejection", "Not a landmark", one.rejections),
        ("subsets", "How much the choice of landmarks matters", one.subsets),
        ("making", "How it was made", one.making or one.choices),
    )
    return [(key, title) for key, title, there in present if there]


def _datasets(runs: Sequence[RunFiles]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the facts of every distinct dataset: (names of the runs trained on it, (name, value) pairs)."""
    by_digest: dict[str, list[RunFiles]] = {}
    for run in runs:
        by_digest.setdefault(str(run.field("data", "digest")), []).append(run)
    of_files = ("relative", "content_digest", "seen")
    told = [(group, group[0].field("data") or {}) for group in by_digest.values()]
    return [
        (", ".join(run.name for run in group), facts({key: data[key] for key in data if key not in of_files}))
        for group, data in told
    ]
