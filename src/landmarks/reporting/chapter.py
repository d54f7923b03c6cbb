"""The page's chapter about one run: figures, tables, images, and the commands that make what is missing."""

from __future__ import annotations

from dataclasses import dataclass, field

from landmarks.dataset.manifest import SPLITS, Dataset
from landmarks.reporting.drawings import (
    MOST_CELLS,
    calibration_figures,
    confusion_figure,
    landmark_figures,
    learning_figures,
    subset_figures,
)
from landmarks.reporting.figures import Figure, FigureFolder
from landmarks.reporting.report_tables import (
    Table,
    evaluations_table,
    landmarks_numbers,
    landmarks_table,
    rejection_table,
)
from landmarks.reporting.run_files import EvaluationFiles, RunFiles
from landmarks.reporting.thumbnails import (
    ConfusedPair,
    Mistake,
    Panel,
    confident_mistakes,
    confident_strangers,
    find_dataset,
    heat_map_panels,
    illustrated_pairs,
)
from landmarks.reporting.wording import (
    count,
    duration,
    facts,
    format_value,
    interval,
    millions,
    number,
    one_line,
    percentage,
)
from landmarks.support.errors import LandmarksError
from landmarks.support.places import in_shell
from landmarks.training.run import Run


@dataclass(frozen=True)
class Missing:
    """Something that does not exist yet, and the command that makes it."""

    what: str
    command: str = ""


@dataclass(frozen=True)
class Chapter:
    """What the page shows of one run; lists are empty and figures None where there is nothing to show."""

    run: RunFiles
    judged: EvaluationFiles | None
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
        of_mistakes = [mistake.image for mistake in (*self.mistakes, *self.strangers)]
        return bool(self.panels) or any(image is not None for image in (*of_pairs, *of_mistakes))


def make_chapter(run: RunFiles, figures: FigureFolder, *, panels: int) -> Chapter:
    """Return a run's chapter, with at most `panels` panels of heat maps, and write its figures."""
    judged = run.main
    dataset, why_not = _find_dataset(run, judged)
    landmarks = landmarks_numbers(run, judged) if judged else None
    file = f"{run.slug}-landmarks"
    if landmarks is not None:
        file = figures.save_numbers(landmarks, file=file)
    return Chapter(
        run=run,
        judged=judged,
        tiles=_tiles(run, judged),
        missing=_missing(run, judged, why_not),
        evaluations=evaluations_table(run) if run.evaluations else None,
        learning=learning_figures(run, figures),
        confusion=confusion_figure(run, judged, figures) if judged else None,
        landmarks=landmark_figures(run, landmarks, figures) if landmarks is not None else [],
        landmark_table=landmarks_table(landmarks, file) if landmarks is not None else None,
        pairs=illustrated_pairs(run, judged, dataset) if judged else [],
        panels=heat_map_panels(run, panels),
        mistakes=confident_mistakes(run, judged, dataset) if judged else [],
        strangers=confident_strangers(run, judged, dataset) if judged else [],
        subsets=subset_figures(run, figures),
        calibration=calibration_figures(run, judged, figures) if judged else [],
        calibration_line=_calibration_line(judged),
        rejections=_rejections(run),
        making=_how_made(run),
        choices=_choices(run),
    )


def _find_dataset(run: RunFiles, judged: EvaluationFiles | None) -> tuple[Dataset | None, str]:
    """Return the dataset whose images were judged, or None and why it cannot be used."""
    try:
        return find_dataset(Run(run.folder, run.record, run.labels), judged.metrics if judged else None), ""
    except LandmarksError as error:
        return None, str(error)


def _tiles(run: RunFiles, judged: EvaluationFiles | None) -> list[tuple[str, str, str]]:
    """Return the numbers at the head of a chapter: (name, number, smaller line)."""
    tiles = []
    if judged:
        split = "validation" if judged.name == "val" else "test"
        top1, top5 = judged.metrics.get("top1"), judged.metrics.get("top5")
        tiles.append((f"{split} accuracy", percentage(top1), interval(top1)))
        tiles.append(("among the best five", percentage(top5), interval(top5)))
        tiles.append(("images judged", count(judged.known), _judged_landmarks(run, judged)))
    size = number(run.field("network", "image_size"))
    tiles.append(("parameters", millions(run.field("network", "parameters")), f"at {size:.0f} pixels" if size else ""))
    tiles.append(("training", duration(run.field("seconds", "total")), _memory(run)))
    return tiles


def _judged_landmarks(run: RunFiles, judged: EvaluationFiles) -> str:
    """Return `of 20 landmarks`, or `of 18 of 20 landmarks` if not all were judged."""
    judged_on, known = number(judged.metrics.get("landmarks")), len(run.labels)
    return f"of {count(known if judged_on is None else judged_on)}" + (
        f" of {count(known)} landmarks" if judged_on not in (None, known) else " landmarks"
    )


def _memory(run: RunFiles) -> str:
    peak = number(run.field("peak_memory_mb"))
    return f"{peak:,.0f} MB of memory" if peak else ""


def _missing(run: RunFiles, judged: EvaluationFiles | None, why_not: str) -> list[Missing]:
    folder = in_shell(run.folder)
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
        command = _evaluate_command(run, judged)
        missing.append(Missing("The predictions are gone, so no mistakes are shown.", command))
    if judged is not None and _has_pairs(judged) and len(run.names) > MOST_CELLS:
        text = f"A confusion matrix is drawn up to {MOST_CELLS} landmarks; all pairs are in its CSV."
        missing.append(Missing(text))
    if run.field("network", "maps") is False:
        missing.append(Missing("No heat maps: this kind of network has no maps to draw."))
    elif run.maps is None and run.field("network") is not None:
        split = "" if run.has_test else " --split val"
        missing.append(Missing("No heat maps yet.", f"landmarks explain {folder}{split}"))
    if judged is not None and why_not:
        missing.append(Missing(f"Images are left out: {one_line(why_not, 400)}."))
    return missing


def _evaluate_command(run: RunFiles, judged: EvaluationFiles) -> str:
    """Return the command that repeats an evaluation; empty for a submission, which has no network."""
    if run.field("network") is None:
        return ""
    split = str(judged.metrics.get("split", judged.name))
    words = ["landmarks", "evaluate", str(run.folder)]
    if not judged.metrics.get("own_data", judged.name in SPLITS and judged.name == split):
        words += ["--data", str(judged.metrics.get("data") or "")]
        words += ["--split", split] if split in ("train", "val") else []
    else:
        words += ["--split", split]
    by = str(judged.metrics.get("by"))
    return in_shell(*words, *(["--by", by] if judged.name.endswith(f"-by-{by}") else []))


def _has_pairs(judged: EvaluationFiles) -> bool:
    return judged.confusion is not None and not judged.confusion.is_empty()


def _calibration_line(judged: EvaluationFiles | None) -> str:
    error = number(judged.metrics.get("ece")) if judged else None
    if judged is None or error is None:
        return ""
    text = f"Stated probabilities are off by {100 * error:.1f} points on average (ECE)."
    temperature, before = (number(judged.metrics.get(name)) for name in ("temperature", "ece_before_temperature"))
    if temperature == 1:
        text += " They are as the network gives them: no temperature was fitted."
    elif temperature is not None:
        text += f" A temperature of {temperature:.2f} corrects them"
        text += "." if before is None else f": without it they are off by {100 * before:.1f} points."
    return text


def _rejections(run: RunFiles) -> list[tuple[str, Table]]:
    tables = [(evaluation.name, rejection_table(evaluation.metrics)) for evaluation in run.evaluations]
    return [(name, table) for name, table in tables if table is not None]


def _how_made(run: RunFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return facts about how a run was made, in groups: (heading, (name, value) pairs)."""
    seconds = [(one_line(name), duration(value)) for name, value in (run.field("seconds") or {}).items()]
    memory = [("peak memory", _memory(run))] if _memory(run) else []
    best = facts(run.field("best") or {})
    if kept := [f"{name} {value}" for name, value in best if name in ("phase", "epoch")]:
        seconds.append(("epoch kept", ", ".join(kept)))
    if ended := run.field("ended"):
        seconds.append(("ended", format_value(ended)))
    groups = [
        ("Recipe", facts(run.field("recipe") or {})),
        ("Network", facts(run.field("network") or {})),
        ("Head training", facts(run.field("head") or {})),
        ("Time and memory", seconds + memory),
        ("Machine", facts(run.field("machine") or {})),
        ("Versions", facts(run.field("versions") or {}) or [("landmarks", format_value(run.field("version")))]),
    ]
    return [(heading, pairs) for heading, pairs in groups if pairs]


def _choices(run: RunFiles) -> list[tuple[str, str, str]]:
    choices = run.field("choices") or []
    return [
        (format_value(choice.get("what")), format_value(choice.get("value")), format_value(choice.get("why")))
        for choice in choices
        if isinstance(choice, dict)
    ]
