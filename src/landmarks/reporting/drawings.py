"""Make the page's figures from runs' files: each chart's data, title, description and caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from landmarks.reporting.charts import (
    RIGHT,
    WRONG,
    accuracy_against,
    accuracy_histogram,
    confusion_matrix,
    draws_histogram,
    landmark_bars,
    learning_curves_chart,
    reliability_chart,
    risk_coverage_chart,
)
from landmarks.reporting.figures import Figure, FigureFolder
from landmarks.reporting.report_tables import results_numbers
from landmarks.reporting.run_files import EvaluationFiles, RunFiles, slugify
from landmarks.reporting.wording import duration, interval, millions, number, percentage
from landmarks.support.console import plural

MOST_CELLS = 300
"""Landmarks up to which a confusion matrix is drawn; of more, only the most confused pairs are shown."""

BEST = 10
"""Landmarks among the best and among the worst."""

CURVE_POINTS = 200

_AFTER_THE_HEAD = (
    "Fine-tuning begins with the head that head training kept and then moves every layer: accuracy may drop at first."
)
SUBSET_BINS = 20

_PHASES = {"head": "head training", "finetune": "fine-tuning"}


def overview_figures(runs: Sequence[RunFiles], figures: FigureFolder, page: str) -> list[Figure]:
    """Return the figures that compare runs: accuracy against cost, against time, and validation over epochs."""
    numbers = results_numbers(runs)
    figures.save_numbers(numbers, file=f"{page}-results")
    drawn = []
    for x, title, unit in (("gmacs", "cost of one image", "GMACs"), ("seconds", "time of training", "minutes")):
        frame = _bubbles(numbers, x)
        if len(frame) < 2:
            continue
        drawn.append(
            figures.draw(
                accuracy_against(frame, x, f"{title}, {unit}"),
                frame,
                file=f"{page}-accuracy-{x}",
                title=f"Accuracy against the {title}",
                alt=f"Bubble diagram: {_descriptions(frame)}",
                caption="The area of a bubble shows the network's parameters, its line the interval of the accuracy.",
            )
        )
    return [*drawn, *_validation_curves(runs, figures, page)]


def _bubbles(numbers: pl.DataFrame, x: str) -> pl.DataFrame:
    frame = numbers.filter(pl.col(x) > 0, pl.col("accuracy").is_not_null())
    frame = frame.with_columns(pl.col("parameters").fill_null(0), pl.col("low", "high").fill_null(pl.col("accuracy")))
    if x == "seconds":
        frame = frame.with_columns(pl.col("seconds") / 60)
    texts = [
        f"{row['run']}: {percentage(row['accuracy'])} ({interval(row)}), {millions(row['parameters'])} parameters, "
        + (f"{row['gmacs']:.2f} GMACs" if x == "gmacs" else duration(row["seconds"] * 60))
        for row in frame.iter_rows(named=True)
    ]
    return _with_descriptions(frame, texts)


def _with_descriptions(frame: pl.DataFrame, texts: Sequence[str]) -> pl.DataFrame:
    """Return `frame` with the description of each mark, which the page shows when it is pointed at or tapped."""
    return frame.with_columns(pl.Series("description", texts, dtype=pl.String))


def _descriptions(frame: pl.DataFrame) -> str:
    return "; ".join(frame["description"].to_list())


def _validation_curves(runs: Sequence[RunFiles], figures: FigureFolder, page: str) -> list[Figure]:
    frames = [
        _curve(run.history, "val_accuracy", run.name)
        for run in runs
        if run.history is not None and run.history["val_accuracy"].count()
    ]
    if len(frames) < 2:
        return []
    frame = pl.concat(frames)
    return [
        figures.draw(
            learning_curves_chart(_described_epochs(frame, percentages=True), "validation accuracy", percent=True),
            frame,
            file=f"{page}-learning",
            title="Validation accuracy as training went on",
            alt=f"Lines of validation accuracy over the epochs of {_phases(frame)} for {plural(len(frames), 'run')}.",
            caption=_AFTER_THE_HEAD if _both_phases(frame) else "",
        )
    ]


def learning_figures(run: RunFiles, figures: FigureFolder) -> list[Figure]:
    """Return the learning curves of a run: accuracy and loss, training and validation, both phases."""
    drawn = []
    phase, epoch = run.field("best", "phase"), number(run.field("best", "epoch"))
    kept = (phase, round(epoch)) if phase in _PHASES and epoch is not None else None
    caption = "" if kept is None else f"The dashed line is the epoch that was kept: {kept[1]} of {_PHASES[kept[0]]}."
    for measure in ("accuracy", "loss"):
        if run.history is None:
            break
        frame = pl.concat([_curve(run.history, f"{split}_{measure}", series) for split, series in _SERIES])
        if frame.is_empty():
            continue
        percentages = measure == "accuracy"
        last = frame.filter(pl.col("series") == "validation").tail(1)
        ending = f", at the end {_amount(last['value'][0], percentages)} on validation" if len(last) else ""
        drawn.append(
            figures.draw(
                learning_curves_chart(_described_epochs(frame, percentages), measure, percent=percentages, kept=kept),
                frame,
                file=f"{run.slug}-learning-{measure}",
                title=f"{measure.capitalize()} as training went on",
                alt=f"Lines of {measure} over the epochs of {_phases(frame)}{ending}.",
                caption=caption,
            )
        )
    return drawn


def _phases(frame: pl.DataFrame) -> str:
    return " and ".join(text for phase, text in _PHASES.items() if phase in frame["phase"])


def _both_phases(frame: pl.DataFrame) -> bool:
    """Return whether any series has both phases."""
    return bool((frame.group_by("series").agg(pl.col("phase").n_unique())["phase"] > 1).any())


_SERIES = (("val", "validation"), ("train", "training"))


def _curve(history: pl.DataFrame, column: str, series: str) -> pl.DataFrame:
    """Return one column of a history as phase, epoch, series, value: one row per epoch, head training first."""
    per_epoch = (
        history.filter(pl.col(column).is_not_null() & pl.col(column).is_finite())
        .group_by("phase", "epoch", maintain_order=True)
        .agg(pl.col(column).last().alias("value"))
        .with_columns(pl.lit(series).alias("series"))
    )
    return per_epoch.select("phase", "epoch", "series", "value").sort("phase", "epoch", descending=[True, False])


def _amount(value: float, percentages: bool) -> str:
    return percentage(value) if percentages else f"{value:.3f}"


def _described_epochs(frame: pl.DataFrame, percentages: bool) -> pl.DataFrame:
    texts = [
        f"{row['series']}, {_PHASES.get(row['phase'], row['phase'])} epoch {row['epoch']}: "
        f"{_amount(row['value'], percentages)}"
        for row in frame.iter_rows(named=True)
    ]
    return _with_descriptions(frame, texts)


def confusion_figure(run: RunFiles, evaluation: EvaluationFiles, figures: FigureFolder) -> Figure | None:
    """Return the confusion matrix, or None for more than `MOST_CELLS` landmarks; the CSV always holds all pairs."""
    if evaluation.confusion is None or evaluation.confusion.is_empty():
        return None
    names = pl.Series(run.names, dtype=pl.String)
    pairs = evaluation.confusion.with_columns(
        names.gather(evaluation.confusion["truth"]).alias("truth_name"),
        names.gather(evaluation.confusion["answer"]).alias("answer_name"),
        (pl.col("count") / pl.col("count").sum().over("truth")).alias("share"),
    )
    file = f"{run.slug}-confusion"
    if len(run.names) > MOST_CELLS:
        figures.save_numbers(pairs, file=file)
        return None
    order = _by_accuracy(pairs, len(run.names))
    place = {label: position for position, label in enumerate(order)}
    cells = pairs.select(
        pl.col("truth").replace_strict(place, return_dtype=pl.UInt32).alias("row"),
        pl.col("answer").replace_strict(place, return_dtype=pl.UInt32).alias("column"),
        "share",
        (pl.col("truth") == pl.col("answer")).alias("right"),
        pl.Series("description", [_pair(row) for row in pairs.iter_rows(named=True)], dtype=pl.String),
    )
    right = pairs.filter(pl.col("truth") == pl.col("answer"))["count"].sum()
    return figures.draw(
        confusion_matrix(cells, [run.names[label] for label in order]),
        pairs,
        file=file,
        title="Confusion matrix",
        alt=f"Confusion matrix of {plural(len(order), 'landmark')}: {right:,} of {pairs['count'].sum():,} are right.",
        caption="Rows show, columns answer; landmarks from the best recognised to the worst. Right answers stand on "
        "the diagonal, wrong ones beside it in the other colour, the stronger the larger their share of the row. "
        "Point at a cell, or tap it, for its names.",
        wide=True,
    )


def _by_accuracy(pairs: pl.DataFrame, landmarks: int) -> list[int]:
    right = pairs.filter(pl.col("truth") == pl.col("answer"))
    share = dict(zip(right["truth"], right["share"], strict=True))
    shown = set(pairs["truth"])
    return sorted(range(landmarks), key=lambda label: (label not in shown, -share.get(label, 0.0), label))


def _pair(row: dict[str, object]) -> str:
    share = f"{plural(int(str(row['count'])), 'image')} ({percentage(row['share'], 0)})"
    if row["truth"] == row["answer"]:
        return f"{row['truth_name']}: {share} right"
    return f"{row['truth_name']} taken for {row['answer_name']}: {share}"


def landmark_figures(run: RunFiles, frame: pl.DataFrame, figures: FigureFolder) -> list[Figure]:
    """Return the best and the worst landmarks with intervals and, for many landmarks, a histogram of all."""
    worst_first = frame.sort(["accuracy", "images", "label"], descending=[False, True, False])
    many = len(frame) > 2 * BEST  # with fewer, a landmark could be among both the best and the worst
    shown = BEST if many else len(frame)
    drawn = []
    for which, chosen, colour in (
        ("best", frame.head(shown), RIGHT),
        ("worst", worst_first.head(shown), WRONG),
    ):
        if chosen.is_empty() or (which == "worst" and not many):
            continue
        texts = [
            f"{row['name']}: {row['correct']} of {row['images']}, {percentage(row['accuracy'])} ({interval(row)})"
            for row in chosen.iter_rows(named=True)
        ]
        described = _with_descriptions(chosen, texts)
        drawn.append(
            figures.draw(
                landmark_bars(described, colour),
                described,
                file=f"{run.slug}-{which}",
                title=f"The {shown} {which} recognised landmarks" if many else "Every landmark, best first",
                alt=f"Accuracy with intervals of the {shown} {which} landmarks: {_descriptions(described)}",
            )
        )
    if many:
        drawn.append(_spread(run, frame, figures))
    return drawn


def _spread(run: RunFiles, frame: pl.DataFrame, figures: FigureFolder) -> Figure:
    bins = frame.select((pl.col("accuracy") * 20).floor().clip(0, 19).cast(pl.Int32).alias("bin"))
    counted = bins.group_by("bin").agg(pl.len().alias("landmarks")).sort("bin")
    spread = counted.select((pl.col("bin") / 20).alias("low"), ((pl.col("bin") + 1) / 20).alias("high"), "landmarks")
    texts = [
        f"{plural(row['landmarks'], 'landmark')} between {percentage(row['low'], 0)} and {percentage(row['high'], 0)}"
        for row in spread.iter_rows(named=True)
    ]
    spread = _with_descriptions(spread, texts)
    return figures.draw(
        accuracy_histogram(spread),
        spread,
        file=f"{run.slug}-spread",
        title="How the landmarks spread",
        alt=f"Histogram of the accuracy of {plural(len(frame), 'landmark')}: {_descriptions(spread)}",
    )


def subset_figures(run: RunFiles, figures: FigureFolder) -> list[Figure]:
    """Return how accuracy varies with the landmarks that are drawn, one figure per record of `landmarks subsets`."""
    drawn = []
    for record in run.subsets:
        counts, edges = np.histogram(record["accuracies"], bins=SUBSET_BINS)
        rows = [(low, high, int(n)) for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True) if n]
        frame = pl.DataFrame(rows, schema=["low", "high", "draws"], orient="row")
        texts = [f"{plural(n, 'draw')} between {percentage(low)} and {percentage(high)}" for low, high, n in rows]
        frame = _with_descriptions(frame, texts)
        own, of_landmarks = record["own"], f"{record['landmarks']:,} of {record['of']:,} landmarks"
        caption = f"Mean {percentage(record['mean'])}, nine of ten draws between {percentage(record['q05'])} and "
        caption += f"{percentage(record['q95'])}, by a classifier in closed form on this network's features."
        if own is not None:
            caption += f" The line is this run: {percentage(own['accuracy'])} on {plural(own['landmarks'], 'landmark')}"
            caption += f", above {percentage(own['place'], 0)} of the draws"
            same_count = own["landmarks"] == record["landmarks"]
            caption += "." if same_count else "; other numbers of landmarks do not compare."
        if record["name"] == "test" and record.get("split") == "train" and run.field("best", "phase") == "finetune":
            caption += " The network was fine-tuned on the images drawn from: all its draws are too good."
        drawn.append(
            figures.draw(
                draws_histogram(frame, None if own is None else own["accuracy"]),
                frame,
                file=f"{run.slug}-subsets-{slugify(record['name'])}",
                title=f"{plural(record['draws'], 'draw')} of {of_landmarks}",
                alt=f"Histogram of accuracy over draws of {of_landmarks}: {_descriptions(frame)}",
                caption=caption,
            )
        )
    return drawn


def calibration_figures(run: RunFiles, evaluation: EvaluationFiles, figures: FigureFolder) -> list[Figure]:
    """Return the reliability_chart diagram and the risk–coverage curve, if the evaluation has them."""
    drawn = []
    kinds = {"confidence": pl.Float64, "accuracy": pl.Float64, "images": pl.Int64}
    points = pl.DataFrame(evaluation.metrics.get("reliability") or [], schema=kinds, orient="row", strict=False)
    if len(points):
        texts = [
            f"stated {percentage(row['confidence'])}, right {percentage(row['accuracy'])} of {row['images']:,}"
            for row in points.iter_rows(named=True)
        ]
        points = _with_descriptions(points, texts)
        drawn.append(
            figures.draw(
                reliability_chart(points),
                points,
                file=f"{run.slug}-reliability",
                title="Can a probability be believed?",
                alt=f"Reliability diagram: {_descriptions(points)}",
                caption="On the dashed line, answers stated with 80 % are right in 80 of 100 cases; below it the "
                "network is too sure of itself. Large points hold many images.",
            )
        )
    curve = evaluation.metrics.get("risk_coverage")
    if isinstance(curve, dict) and isinstance(curve.get("coverage"), list) and len(curve["coverage"]) > 1:
        drawn.append(_risk_coverage(run, curve, figures))
    return drawn


def _risk_coverage(run: RunFiles, curve: dict[str, list[float]], figures: FigureFolder) -> Figure:
    kinds = {"coverage": pl.Float64, "risk": pl.Float64}
    points = pl.DataFrame({name: curve[name] for name in kinds}, schema=kinds, strict=False)
    step = max(1, len(points) // CURVE_POINTS)
    thinned = pl.concat([points.gather_every(step), points.tail(1)]).unique(maintain_order=True)
    half = points.filter(pl.col("coverage") >= 0.5).head(1)
    end = percentage(points["risk"][-1])
    return figures.draw(
        risk_coverage_chart(thinned),
        points,
        file=f"{run.slug}-risk-coverage",
        title="If the unsure answers were left out",
        alt=f"Risk–coverage curve: {percentage(half['risk'][0])} wrong when half is answered, {end} when all is.",
        caption="The share of wrong answers when only the surest are given, down to the share of images on the axis."
        if points["risk"].max()
        else "No answer was wrong, however many were given.",
    )
