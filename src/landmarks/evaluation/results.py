"""The values that evaluate, compare and subsets return: numbers with intervals, shown as tables in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from landmarks.evaluation.intervals import wilson
from landmarks.support.console import html_table, plural


@dataclass(frozen=True)
class Interval:
    """A number from 0 to 1 (a difference: from -1 to 1) with its 95 % interval; None where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None
    method: str = ""

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "-"
        return f"{100 * self.value:.1f} %  ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Confusion:
    """A landmark that was mistaken for another."""

    truth: str
    """The landmark that the images show."""
    answer: str
    """The landmark that was answered."""
    images: int


@dataclass(frozen=True)
class KnownScore:
    """How well one score separates known from unknown images, on the images reported on."""

    score: str
    auroc: float | None
    rejected: float | None
    """Share of unknown images below the threshold that gives up 5 % of the known ones."""
    lost: float | None
    """Share of known images below that threshold."""
    gap: float | None


@dataclass(frozen=True)
class StoredThreshold:
    """The rule and threshold that were stored with the model, and their error rates on the images reported on."""

    rule: str
    threshold: float
    false_acceptance: float
    """The rate asked for: at most this share of the unknown images chosen on passes."""
    accepted_unknown: float | None
    lost_known: float | None
    chosen_on: str
    reported_on: str
    reported_unknown: int
    """Number of unknown images reported on."""

    def __str__(self) -> str:
        text = (
            f"predict now answers by {self.rule}: on {self.reported_on}, {format_share(self.accepted_unknown)} of "
            f"unknown images pass, {format_share(self.lost_known)} of landmarks are lost"
        )
        if self.accepted_unknown is None or self.accepted_unknown <= self.false_acceptance:
            return text
        images = np.array([self.reported_unknown])
        low, high = wilson(np.round(self.accepted_unknown * images).astype(int), images)
        return (
            f"{text}; more pass than the {format_share(self.false_acceptance)} asked for, which was met on "
            f"{self.chosen_on}: from {self.reported_unknown} images the share is known to "
            f"{format_share(low[0])} to {format_share(high[0])}"
        )


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one evaluation; `record` is its whole JSON file, definitions included."""

    name: str
    """Name of the predictions and metrics files."""
    images: int
    known: int
    unknown: int
    landmarks: int
    top1: Interval
    top5: Interval
    macro: Interval
    gap: float | None
    log_loss: float | None
    ece: float | None
    confused: tuple[Confusion, ...]
    """The pair with most images first."""
    known_scores: tuple[KnownScore, ...]
    """Best first; empty without unknown images."""
    halves: tuple[str, str] | None
    """The names of the parts that thresholds were chosen on and reported on; None without unknown images."""
    threshold: StoredThreshold | None
    """None unless a false-acceptance rate was asked for."""
    record: dict[str, Any] = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        """The name and the numbers of images and landmarks, in words."""
        unknown = f", {self.unknown} of anything else" if self.unknown else ""
        return f"{self.name}: {plural(self.known, 'image')} of {plural(self.landmarks, 'landmark')}{unknown}"

    @property
    def known_title(self) -> str:
        """What `score_rows` shows, in words: its thresholds are for comparison, not the one that is stored."""
        if self.halves is None:
            return "known or not"
        chosen, reported = self.halves
        return f"known or not: thresholds that lose 5 % of the known images of {chosen}, numbers from {reported}"

    def rows(self) -> list[tuple[str, str]]:
        """Return the numbers that were measured as (name, text)."""
        shown = [(name, str(getattr(self, name))) for name in ("top1", "top5", "macro")]
        plain = [(name, getattr(self, name)) for name in ("log_loss", "ece", "gap")]
        return shown + [(name, f"{value:z.3f}") for name, value in plain if value is not None]  # no -0.000

    def score_rows(self) -> list[tuple[str, str, str, str]]:
        """Return (name, AUROC, unknown rejected, landmarks lost) of each score for known against unknown."""
        return [
            (row.score, format_number(row.auroc), format_share(row.rejected), format_share(row.lost))
            for row in self.known_scores
        ]

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"{name:>8}  {text}" for name, text in self.rows())])

    def _repr_html_(self) -> str:
        tables = [html_table(["number", "value"], self.rows(), self.title)]
        if self.confused:
            rows = [(pair.truth, pair.answer, pair.images) for pair in self.confused[:5]]
            tables.append(html_table(["shows", "taken for", "images"], rows, "most confused"))
        if self.known_scores:
            columns = ["score", "AUROC", "unknown rejected", "landmarks lost"]
            tables.append(html_table(columns, self.score_rows(), self.known_title))
        return "".join(tables)


def evaluation_of(record: dict[str, Any]) -> Evaluation:
    """Return the record of `metrics/<name>.json` as an `Evaluation`."""
    chosen, parts = record.get("threshold"), record["rejection_parts"]
    names = ("score", "auroc", "rejected", "lost", "gap")
    return Evaluation(
        **{name: record[name] for name in ("name", "images", "known", "unknown", "landmarks")},
        top1=Interval(**record["top1"]),
        top5=Interval(**record["top5"]),
        macro=Interval(**record["macro"]),
        **{name: record[name] for name in ("gap", "log_loss", "ece")},
        confused=tuple(
            Confusion(pair["truth_name"], pair["answer_name"], pair["count"]) for pair in record["confused"]
        ),
        known_scores=tuple(KnownScore(**{name: row[name] for name in names}) for row in record["rejection"]),
        halves=None if parts is None else (parts["chosen_on"], parts["reported_on"]),
        threshold=None if chosen is None else _stored_threshold(chosen),
        record=record,
    )


def _stored_threshold(chosen: Mapping[str, Any]) -> StoredThreshold:
    names = [name for name in StoredThreshold.__dataclass_fields__ if name != "rule"]
    return StoredThreshold(rule=chosen["rule"]["name"], **{name: chosen[name] for name in names})


@dataclass(frozen=True)
class Comparison:
    """The difference between two runs on the images that both answered, and whether it is more than chance."""

    first: str
    second: str
    name: str
    images: int
    top1_first: float
    top1_second: float
    only_first: int
    """Images that only the first run answers right."""
    only_second: int
    difference: Interval
    """Top-1 of the second minus that of the first."""
    same_answer: float
    """Share of the images on which both best answers are the same landmark."""
    p_value: float
    real: bool
    verdict: str
    """The comparison in one sentence."""
    record: dict[str, Any] = field(repr=False, compare=False)

    def rows(self) -> list[tuple[str, str, int]]:
        """Return (run, top-1, images right where the other is wrong) for each run."""
        return [
            (self.first, format_share(self.top1_first), self.only_first),
            (self.second, format_share(self.top1_second), self.only_second),
        ]

    def __str__(self) -> str:
        return self.verdict

    def _repr_html_(self) -> str:
        columns = ["run", "top-1", "right where the other is wrong"]
        table = html_table(columns, self.rows(), f"{self.name}: {plural(self.images, 'image')}")
        return f"{table}<p>{escape(self.verdict)}</p>"


def comparison_of(record: dict[str, Any]) -> Comparison:
    """Return the record of a comparison as a `Comparison`."""
    plain = {name: record[name] for name in Comparison.__dataclass_fields__ if name not in ("record", "difference")}
    return Comparison(**plain, difference=Interval(**record["difference"]), record=record)


@dataclass(frozen=True)
class Draws:
    """How accuracy varies with the landmarks that are drawn."""

    draws: int
    landmarks: int
    """Landmarks per draw."""
    of: int
    """Landmarks that could be drawn."""
    accuracies: tuple[float, ...] = field(repr=False)
    mean: float
    deviation: float
    own_accuracy: float | None
    """The run's evaluated accuracy; None before it has been evaluated."""
    place: float | None
    """Share of the draws whose accuracy is below the run's own, equal ones counted half."""
    record: dict[str, Any] = field(repr=False, compare=False)

    def rows(self) -> list[tuple[str, str]]:
        """Return the distribution as (statistic, share)."""
        statistics = {
            "mean": "mean",
            "deviation": "standard deviation",
            "smallest": "smallest",
            "q05": "5th percentile",
            "q25": "25th percentile",
            "q50": "median",
            "q75": "75th percentile",
            "q95": "95th percentile",
            "largest": "largest",
        }
        return [(text, format_share(self.record[name])) for name, text in statistics.items()]

    @property
    def title(self) -> str:
        """The numbers of draws and landmarks, in words."""
        return f"{self.draws} draws of {self.landmarks} of {self.of} landmarks"

    def __str__(self) -> str:
        return f"{self.title}: accuracy {format_share(self.mean)}, standard deviation {format_share(self.deviation)}"

    def _repr_html_(self) -> str:
        return html_table(["accuracy", "value"], self.rows(), self.title)


def draws_of(record: dict[str, Any]) -> Draws:
    """Return the record of `metrics/<name>.subsets.json` as `Draws`."""
    own = record["own"] or {}
    return Draws(
        **{name: record[name] for name in ("draws", "landmarks", "of", "mean", "deviation")},
        accuracies=tuple(record["accuracies"]),
        own_accuracy=own.get("accuracy"),
        place=own.get("place"),
        record=record,
    )


MEANINGS = {
    "top1": "share whose best answer is right (95 % interval)",
    "top5": "share with a right one among the best five",
    "macro": "top1 of each landmark, averaged: rare ones count as much as frequent ones",
    "log_loss": "how improbable the right answer was held; 0 is perfect",
    "ece": "how far stated probabilities are off on average; 0 is perfect",
    "gap": "global average precision, as the challenge counts it; 1 is perfect",
}
"""What each number of `Evaluation.rows` means, in a few words; its record holds the full definitions."""


def format_number(value: float | None) -> str:
    """Return `0.934` for a number, "-" for None."""
    return "-" if value is None else f"{value:.3f}"


def format_share(value: float | None) -> str:
    """Return `93.4 %` for a share of 0.934, "-" for None."""
    return "-" if value is None else f"{100 * value:.1f} %"
