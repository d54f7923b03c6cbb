"""The page's charts: each is a pure function from a polars frame to an altair chart.

Every mark carries a `description`, which the page shows when it is pointed at or tapped. `figures.inlined` replaces
these fixed colours by the page's own, which follow a dark screen.
"""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import polars as pl

INK, MUTED, GRID = "#1f2428", "#68707a", "#e4e2dc"
SERIES = ("#0f6b75", "#c8553d", "#7a5ba6", "#c28a1c", "#3b74c9", "#5f8a3a", "#a14a6d", "#5c6670")
RIGHT, WRONG = SERIES[0], SERIES[1]

WIDTH, HEIGHT = 460, 280
"""Size of a figure in pixels: two fit side by side on a desktop screen, one fills a telephone and stays readable."""

NAMED_CELLS = 40
"""Landmarks up to which a confusion matrix names its rows and columns."""

_PERCENT = alt.Axis(format=".0%")
_NAMES = alt.Axis(labelColor=INK, ticks=False, labelPadding=8)
_DESCRIPTION = alt.Description("description:N")  # as a string, altair takes long to parse it


def _data(frame: pl.DataFrame) -> Any:
    """Return the rows as data inside the chart, whatever their number.

    They are passed as one string, because altair copies and validates any other form several times per chart.
    """
    return alt.InlineData(values=json.dumps(frame.to_dicts()), format=alt.JsonDataFormat(type="json"))


def _styled(chart: Any) -> Any:
    """Return `chart` in the page's style."""
    return chart.configure(
        font="sans-serif",
        background="transparent",
        padding=4,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor=MUTED,
            titleColor=MUTED,
            titleFontWeight="normal",
            titlePadding=8,
            labelFontSize=12,
            titleFontSize=12,
            gridColor=GRID,
            domain=False,
            tickColor=GRID,
            labelLimit=210,
        ),
        legend=alt.LegendConfig(
            orient="top", title=None, labelColor=INK, labelFontSize=12, symbolStrokeWidth=2, labelLimit=200, columns=3
        ),
        title=alt.TitleConfig(color=MUTED, fontSize=12, fontWeight="normal", anchor="start"),
        text=alt.MarkConfig(color=INK, fontSize=12),
    )


def _fitted(chart: Any, width: int = WIDTH, height: int = HEIGHT) -> Any:
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    return _styled(chart.properties(width=width, height=height, autosize=fit))


def accuracy_against(frame: pl.DataFrame, x: str, title: str) -> Any:
    """Return a bubble chart of accuracy over a cost: one bubble per run, its area the parameters, with an interval.

    `frame`: run, the column named by `x`, accuracy, low, high, parameters, description.
    """
    names = frame["run"].to_list()
    longest = max(len(name) for name in names)
    base = alt.Chart(_data(frame)).encode(
        x=alt.X(
            f"{x}:Q",
            title=title,
            scale=alt.Scale(type="log", nice=False, padding=max(40, min(110, 4 * longest))),
            axis=alt.Axis(tickCount=4, grid=False, format="~g"),
        ),
        color=alt.Color("run:N", scale=alt.Scale(domain=names, range=list(SERIES)), legend=None),
        description=_DESCRIPTION,
    )
    y = alt.Y("accuracy:Q", title="accuracy on test", axis=_PERCENT, scale=alt.Scale(zero=False, padding=30))
    bubbles = base.mark_circle(opacity=0.75).encode(
        y=y, size=alt.Size("parameters:Q", scale=alt.Scale(domainMin=0, range=[30, 1200]), legend=None)
    )
    whiskers = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"))
    above = alt.Y("high:Q")  # above the interval, so that the name covers neither that nor the bubble
    names_above = base.mark_text(dy=-24, fontWeight="bold", limit=220).encode(y=above, text=alt.Text("run:N"))
    return _fitted(alt.layer(whiskers, bubbles, names_above))


def learning_curves_chart(frame: pl.DataFrame, measure: str, percent: bool, kept: tuple[str, int] | None = None) -> Any:
    """Return lines over epochs: one panel per phase, one colour per series, dashed at the phase and epoch `kept`.

    `frame`: phase, epoch, series, value, description.
    """
    phases = [name for name in ("head", "finetune") if name in frame["phase"].to_list()]
    titles = {"head": "epoch of head training (head alone)", "finetune": "epoch of fine-tuning"}
    series = frame["series"].unique(maintain_order=True).to_list()
    panels = []
    for position, phase in enumerate(phases):
        rows = frame.filter(pl.col("phase") == phase)
        axis = alt.Axis(format=".0%" if percent else "~g", labels=position == 0, ticks=False)
        y = alt.Y("value:Q", axis=axis, title=measure if position == 0 else None, scale=alt.Scale(zero=False))
        few = rows["epoch"].n_unique() <= 30
        curves = (
            alt.Chart(_data(rows), width=(WIDTH - 70) // len(phases) - 8, height=HEIGHT - 80)
            .mark_line(point=alt.OverlayMarkDef(size=36) if few else False, strokeWidth=2, clip=False)
            .encode(
                x=alt.X(
                    "epoch:Q",
                    title=titles[phase],
                    axis=alt.Axis(format="d", values=_epoch_ticks(rows), grid=False),
                    scale=alt.Scale(nice=False),
                ),
                y=y,
                color=alt.Color("series:N", scale=alt.Scale(domain=series, range=list(SERIES))),
                description=_DESCRIPTION,
            )
        )
        panels.append(curves if kept is None or kept[0] != phase else curves + _kept_line(kept[1]))
    return _styled(alt.hconcat(*panels, spacing=14, bounds="flush").resolve_scale(y="shared"))


def _kept_line(epoch: int) -> Any:
    return (
        alt.Chart(_data(pl.DataFrame({"epoch": [epoch]})))
        .mark_rule(color=MUTED, strokeDash=[4, 4], strokeWidth=1)
        .encode(x=alt.X("epoch:Q"), description=alt.DescriptionValue(f"kept: epoch {epoch}"))
    )


def _epoch_ticks(frame: pl.DataFrame) -> list[int]:
    """Return at most six evenly spaced epochs to label below a panel."""
    last = max(frame["epoch"].to_list())
    step = -(-last // 5) or 1
    return list(range(step, last + 1, step)) or [0]


def confusion_matrix(frame: pl.DataFrame, names: list[str]) -> Any:
    """Return the non-empty cells of a confusion matrix, wrong answers in the second colour.

    `frame`: row, column (positions in `names`), share (of the row), right, description.
    """
    count = len(names)
    labelled = count <= NAMED_CELLS
    side = max(22 * count, min(34 * count, 260)) if labelled else 900
    cell = max(side / count, 3.5)
    frame = frame.with_columns(
        pl.col(axis).replace_strict(dict(enumerate(names)), return_dtype=pl.String).alias(f"{axis}_name")
        for axis in ("row", "column")
    )
    scale = alt.Scale(domain=names, paddingInner=0.06 if labelled else 0, paddingOuter=0)
    axis: dict[str, Any] = {
        "grid": labelled,
        "tickBand": "extent",
        "ticks": False,
        "labels": labelled,
        "labelLimit": 190,
        "labelFontSize": 11,
    }
    return _styled(
        alt.Chart(_data(frame), width=side, height=side)
        .mark_square(size=(cell * (0.94 if labelled else 1)) ** 2, opacity=1)
        .encode(
            x=alt.X(
                "column_name:N", scale=scale, title="answered", axis=alt.Axis(orient="top", labelAngle=-90, **axis)
            ),
            y=alt.Y("row_name:N", scale=scale, title="shown", axis=alt.Axis(**axis)),
            fill=alt.condition("datum.right", alt.value(RIGHT), alt.value(WRONG)),
            fillOpacity=alt.FillOpacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.25, 1]), legend=None),
            strokeOpacity=alt.StrokeOpacityValue(0),
            description=_DESCRIPTION,
        )
    )


def landmark_bars(frame: pl.DataFrame, color: str = RIGHT) -> Any:
    """Return the accuracy of each landmark as a dot on its interval, in the order of the frame.

    `frame`: name, accuracy, low, high, description.
    """
    names = frame["name"].to_list()
    base = alt.Chart(_data(frame)).encode(
        y=alt.Y("name:N", sort=names, title=None, axis=_NAMES), description=_DESCRIPTION
    )
    return _dots_on_intervals(base, "accuracy and its 95 % interval", height=70 + 24 * len(names), color=color)


def protocols_chart(frame: pl.DataFrame) -> Any:
    """Return the accuracies of each network as dots on their intervals, one colour and one line per series.

    `frame`: network, series, accuracy, low, high, description.
    """
    networks = frame["network"].unique(maintain_order=True).to_list()
    series = frame["series"].unique(maintain_order=True).to_list()
    base = alt.Chart(_data(frame)).encode(
        y=alt.Y("network:N", sort=networks, title=None, axis=_NAMES),
        yOffset=alt.YOffset("series:N", sort=series),
        color=alt.Color(
            "series:N", scale=alt.Scale(domain=series, range=list(SERIES)), legend=alt.Legend(symbolOpacity=1)
        ),
        description=_DESCRIPTION,
    )
    height = 100 + 20 * len(networks) * len(series)
    return _dots_on_intervals(base, "test accuracy and its 95 % interval", height=height)


def _dots_on_intervals(base: Any, title: str, *, height: int, **mark: Any) -> Any:
    """Return the accuracies of `base` as dots on their intervals; `mark` are properties of both."""
    scale = alt.Scale(domain=[0, 1])
    rules = base.mark_rule(strokeWidth=6, opacity=0.28, strokeCap="round", **mark).encode(
        x=alt.X("low:Q", scale=scale, title=title, axis=_PERCENT), x2=alt.X2("high:Q")
    )
    dots = base.mark_circle(size=90, opacity=1, **mark).encode(x=alt.X("accuracy:Q", scale=scale))
    return _fitted(alt.layer(rules, dots), height=height)


def accuracy_histogram(frame: pl.DataFrame) -> Any:
    """Return a histogram of landmarks over accuracy.

    `frame`: low, high (of the bin), landmarks, description.
    """
    return _fitted(_bars(frame, "accuracy of a landmark", "landmarks", alt.Axis(format="~s")))


def draws_histogram(frame: pl.DataFrame, own: float | None) -> Any:
    """Return a histogram of draws over accuracy, with a line at the run's `own` accuracy.

    `frame`: low, high (of the bin), draws, description.
    """
    bars = _bars(frame, "accuracy of a draw", "draws", alt.Axis(format="~s", tickMinStep=1))
    if own is None:
        return _fitted(bars)
    line = (
        alt.Chart(_data(pl.DataFrame({"own": [own]})))
        .mark_rule(color=INK, strokeDash=[4, 4], strokeWidth=2)
        .encode(x=alt.X("own:Q"), description=alt.DescriptionValue("the run's own accuracy"))
    )
    return _fitted(alt.layer(bars, line))


def _bars(frame: pl.DataFrame, title: str, counted: str, axis: Any) -> Any:
    """Return the bars of a histogram of what is `counted`, over accuracy."""
    return (
        alt.Chart(_data(frame))
        .mark_bar(color=RIGHT, binSpacing=1)
        .encode(
            x=alt.X("low:Q", bin="binned", title=title, axis=alt.Axis(format=".0%", grid=False)),
            x2=alt.X2("high:Q"),
            y=alt.Y(f"{counted}:Q", title=counted, axis=axis),
            description=_DESCRIPTION,
        )
    )


def reliability_chart(frame: pl.DataFrame) -> Any:
    """Return accuracy over stated probability; probabilities are right where points lie on the diagonal.

    `frame`: confidence, accuracy, images, description.
    """
    unit = alt.Scale(domain=[0, 1])
    diagonal = (
        alt.Chart(_data(pl.DataFrame({"at": [0, 1]})))
        .mark_line(color=MUTED, strokeDash=[4, 4], strokeWidth=1)
        .encode(x=alt.X("at:Q"), y=alt.Y("at:Q"), description=alt.DescriptionValue("accuracy as stated"))
    )
    base = alt.Chart(_data(frame)).encode(
        x=alt.X("confidence:Q", title="stated probability", axis=_PERCENT, scale=unit),
        y=alt.Y("accuracy:Q", title="share that is right", axis=_PERCENT, scale=unit),
    )
    line = base.mark_line(color=RIGHT, strokeWidth=2)
    points = base.mark_circle(color=RIGHT, opacity=0.9).encode(
        size=alt.Size("images:Q", scale=alt.Scale(domainMin=0, range=[20, 420]), legend=None),
        description=_DESCRIPTION,
    )
    return _fitted(alt.layer(diagonal, line, points))


def risk_coverage_chart(frame: pl.DataFrame) -> Any:
    """Return the share of wrong answers over the share of images answered, most confident first.

    `frame`: coverage, risk.
    """
    area = (
        alt.Chart(_data(frame))
        .mark_area(color=WRONG, opacity=0.18, line={"color": WRONG, "strokeWidth": 2})
        .encode(
            x=alt.X("coverage:Q", title="images answered", axis=_PERCENT, scale=alt.Scale(domain=[0, 1])),
            y=alt.Y(
                "risk:Q",
                title="wrong among the answered",
                axis=alt.Axis(format="~%"),
                scale=alt.Scale(domainMin=0, domainMax=max(0.05, *frame["risk"].to_list())),  # 0.05: no wrong answers
            ),
        )
    )
    return _fitted(area)
