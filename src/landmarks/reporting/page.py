"""The verb `report`: runs become one HTML page that needs nothing but itself, and figures beside it."""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib.resources
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from landmarks import __version__
from landmarks.dataset.manifest import SPLITS, Dataset
from landmarks.reporting.caveats import found_caveats, page_definitions
from landmarks.reporting.charts import Figure, FigureFolder
from landmarks.reporting.drawings import (
    MOST_CELLS,
    calibration_figures,
    confusion_figure,
    landmark_figures,
    learning_figures,
    overview,
    subset_figures,
)
from landmarks.reporting.report_tables import (
    Table,
    evaluations_table,
    landmarks_numbers,
    per_landmark,
    rejection,
    results_table,
)
from landmarks.reporting.run_files import Evaluation, RunFiles, read_run_files, slug
from landmarks.reporting.study_table import read_study, study_section
from landmarks.reporting.thumbnails import (
    ConfusedPair,
    Mistake,
    Panel,
    confident_mistakes,
    confident_strangers,
    confused,
    find_dataset,
    heat_map_panels,
)
from landmarks.reporting.wording import (
    count,
    duration,
    facts,
    in_words,
    interval,
    millions,
    number,
    percent,
    plural,
    readable,
)
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import held, written_whole
from landmarks.training.run import Run

FIGURES = "figures"
"""Folder beside the page where every figure also lies as SVG and its numbers as CSV."""

PANELS_OF_THE_FIRST = 12
PANELS_OF_OTHERS = 4
"""Heat maps taken into the page: all of the run that the page is about, a few of the others, to keep it small."""


def report(
    runs: Path | str | Sequence[Path | str], out: Path | str = "report.html", *, study: Path | str | None = None
) -> Path:
    """Write one self-contained HTML page about one or several run folders, and return where it lies.

    The page asks for nothing over a network. Figures are also written as SVG and CSV under `figures/` beside it:
    `<page>-<figure>` where runs are compared, `<run>-<figure>` for one run. What a run lacks (an evaluation, heat
    maps, its images) is said in one line with the command that makes it. `study` is the `study.json` of a
    reproduction, whose table then stands beside the others. Raises `LandmarksError` for a folder that is no run and
    `UsageError` for none, or one named twice.
    """
    started = time.monotonic()
    folders = [Path(runs)] if isinstance(runs, Path | str) else [Path(run) for run in runs]
    out = Path(out)
    if out.is_dir():
        raise UsageError(f"{out} is a folder", expected="a file to write the page to", way_out=f"-o {out}/report.html")
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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("landmarks.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _packaged("script.js")
    return environment.get_template("report.html.j2").render(
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


# One run in detail: its figures, tables, images, and one line with a command for whatever is not there yet.


@dataclass(frozen=True)
class Missing:
    """Something that was not made yet, and the command that makes it."""

    what: str
    command: str = ""


@dataclass(frozen=True)
class Chapter:
    """Everything the page shows of one run; lists are empty and figures None where there is nothing to show."""

    run: RunFiles
    judged: Evaluation | None
    tiles: list[tuple[str, str, str]]
    missing: list[Missing]
    evaluations: Table | None
    learning: list[Figure] = field(default_factory=list)
    confusion: Figure | None = None
    landmarks: list[Figure] = field(default_factory=list)
    landmark_table: Table | None = None
    pairs: list[ConfusedPair] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    strangers: list[Mistake] = field(default_factory=list)
    subsets: list[Figure] = field(default_factory=list)
    calibration: list[Figure] = field(default_factory=list)
    calibration_line: str = ""
    rejections: list[tuple[str, Table]] = field(default_factory=list)
    making: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    choices: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def has_images(self) -> bool:
        """Whether any image is shown."""
        of_pairs = [image for pair in self.pairs for image in (*pair.shown, pair.typical)]
        alone = [one.image for one in (*self.mistakes, *self.strangers)]
        return bool(self.panels) or any(image is not None for image in (*of_pairs, *alone))


def chapter(run: RunFiles, figures: FigureFolder, *, panels: int) -> Chapter:
    """Return a run's chapter; its figures are written on the way, and at most `panels` heat maps are taken up."""
    judged = run.main
    dataset, why_not = _dataset(run, judged)
    landmarks = landmarks_numbers(run, judged) if judged else None
    file = f"{run.slug}-landmarks"
    if landmarks is not None:
        file = figures.keep(landmarks, file=file)
    return Chapter(
        run=run,
        judged=judged,
        tiles=_tiles(run, judged),
        missing=_missing(run, judged, why_not),
        evaluations=evaluations_table(run) if run.evaluations else None,
        learning=learning_figures(run, figures),
        confusion=confusion_figure(run, judged, figures) if judged else None,
        landmarks=landmark_figures(run, landmarks, figures) if landmarks is not None else [],
        landmark_table=per_landmark(landmarks, file) if landmarks is not None else None,
        pairs=confused(run, judged, dataset) if judged else [],
        panels=heat_map_panels(run, panels),
        mistakes=confident_mistakes(run, judged, dataset) if judged else [],
        strangers=confident_strangers(run, judged, dataset) if judged else [],
        subsets=subset_figures(run, figures),
        calibration=calibration_figures(run, judged, figures) if judged else [],
        calibration_line=_calibration_line(judged),
        rejections=_rejections(run),
        making=_making(run),
        choices=_choices(run),
    )


def _dataset(run: RunFiles, judged: Evaluation | None) -> tuple[Dataset | None, str]:
    """Return the dataset whose images were judged, or why there is none."""
    try:
        return find_dataset(Run(run.folder, run.record, run.labels), judged.metrics if judged else None), ""
    except LandmarksError as error:
        return None, str(error)


def _tiles(run: RunFiles, judged: Evaluation | None) -> list[tuple[str, str, str]]:
    """Return the numbers at the head of a chapter: (name, number, smaller line)."""
    tiles = []
    if judged:
        split = "validation" if judged.name == "val" else "test"
        top1, top5 = judged.metrics.get("top1"), judged.metrics.get("top5")
        tiles.append((f"{split} accuracy", percent(top1), interval(top1)))
        tiles.append(("among the best five", percent(top5), interval(top5)))
        tiles.append(("images judged", count(judged.known), _of_landmarks(run, judged)))
    size = number(run.field("network", "image_size"))
    tiles.append(("parameters", millions(run.field("network", "parameters")), f"at {size:.0f} pixels" if size else ""))
    tiles.append(("training", duration(run.field("seconds", "total")), _memory(run)))
    return tiles


def _of_landmarks(run: RunFiles, judged: Evaluation) -> str:
    """Return how many of its landmarks a run was judged on: not always all."""
    judged_on, known = number(judged.metrics.get("landmarks")), len(run.labels)
    return f"of {count(known if judged_on is None else judged_on)}" + (
        f" of {count(known)} landmarks" if judged_on not in (None, known) else " landmarks"
    )


def _memory(run: RunFiles) -> str:
    peak = number(run.field("peak_memory_mb"))
    return f"{peak:,.0f} MB of memory" if peak else ""


def _missing(run: RunFiles, judged: Evaluation | None, why_not: str) -> list[Missing]:
    folder = shlex.quote(str(run.folder))
    missing = []
    if run.history is None:
        missing.append(Missing("No learning curves: the run has no history."))
    if judged is None:
        split = "" if run.has_test else " --split val"
        missing.append(
            Missing("Not evaluated yet, but on images it was trained on.", f"landmarks evaluate {folder}{split}")
            if run.evaluations
            else Missing("Not evaluated yet.", f"landmarks evaluate {folder}{split}")
        )
    elif judged.name == "val" and run.has_test:
        missing.append(Missing("Judged on validation images only.", f"landmarks evaluate {folder} --split test"))
    elif judged.name == "val":
        missing.append(Missing("Judged on validation images only: no others were kept apart."))
    if judged is not None and judged.predictions is None:
        again = _command_again(run, judged)
        missing.append(Missing("The predictions are gone, so no mistakes are shown.", again))
    if judged is not None and _has_pairs(judged) and len(run.names) > MOST_CELLS:
        told = f"A confusion matrix is drawn up to {MOST_CELLS} landmarks; all pairs are in its CSV."
        missing.append(Missing(told))
    if run.field("network", "maps") is False:
        missing.append(Missing("No heat maps: this kind of network has no maps to draw."))
    elif run.maps is None and run.field("network") is not None:
        split = "" if run.has_test else " --split val"
        missing.append(Missing("No heat maps yet.", f"landmarks explain {folder}{split}"))
    if judged is not None and why_not:
        missing.append(Missing(f"Images are left out: {readable(why_not, 400)}."))
    return missing


def _command_again(run: RunFiles, judged: Evaluation) -> str:
    """Return the command that judges the same images again; empty for answers that are not a network's."""
    if run.field("network") is None:
        return ""
    own = judged.name in SPLITS and judged.name == judged.metrics.get("split", judged.name)
    place = shlex.quote(str(judged.metrics.get("data") or ""))
    where = f"--split {judged.name}" if own else f"--data {place}"
    return f"landmarks evaluate {shlex.quote(str(run.folder))} {where}"


def _has_pairs(judged: Evaluation) -> bool:
    return judged.confusion is not None and not judged.confusion.is_empty()


def _calibration_line(judged: Evaluation | None) -> str:
    error = number(judged.metrics.get("ece")) if judged else None
    if judged is None or error is None:
        return ""
    told = f"Stated probabilities are off by {100 * error:.1f} points on average (ECE)."
    temperature, before = (number(judged.metrics.get(name)) for name in ("temperature", "ece_before_temperature"))
    if temperature == 1:
        told += " They are as the network gives them: no temperature was fitted."
    elif temperature is not None:
        told += f" A temperature of {temperature:.2f} corrects them"
        told += "." if before is None else f": without it they are off by {100 * before:.1f} points."
    return told


def _rejections(run: RunFiles) -> list[tuple[str, Table]]:
    made = [(one.name, rejection(one.metrics)) for one in run.evaluations]
    return [(name, table) for name, table in made if table is not None]


def _making(run: RunFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the groups of facts on how a run was made: (heading, (name, value) pairs)."""
    seconds = [(readable(name), duration(value)) for name, value in (run.field("seconds") or {}).items()]
    memory = [("peak memory", _memory(run))] if _memory(run) else []
    best = facts(run.field("best") or {})
    if kept := [f"{name} {value}" for name, value in best if name in ("phase", "epoch")]:
        seconds.append(("epoch kept", ", ".join(kept)))
    if ended := run.field("ended"):
        seconds.append(("ended", in_words(ended)))
    groups = [
        ("Recipe", facts(run.field("recipe") or {})),
        ("Network", facts(run.field("network") or {})),
        ("Head training", facts(run.field("head") or {})),
        ("Time and memory", seconds + memory),
        ("Machine", facts(run.field("machine") or {})),
        ("Versions", facts(run.field("versions") or {}) or [("landmarks", in_words(run.field("version")))]),
    ]
    return [(heading, pairs) for heading, pairs in groups if pairs]


def _choices(run: RunFiles) -> list[tuple[str, str, str]]:
    choices = run.field("choices") or []
    return [
        (in_words(one.get("what")), in_words(one.get("value")), in_words(one.get("why")))
        for one in choices
        if isinstance(one, dict)
    ]
