"""What the verbs that judge return: numbers with names and intervals, which a notebook shows as tables."""

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
    """A pair of landmarks that were taken for one another."""

    truth: str
    """What the images show."""
    answer: str
    """What they were taken for."""
    images: int


@dataclass(frozen=True)
class KnownScore:
    """What one score is worth that may tell known from unknown images, on the images reported on."""

    score: str
    auroc: float | None
    rejected: float | None
    """Share of unknown images below the threshold that gives up 5 % of the known ones."""
    lost: float | None
    """Share of known images below that threshold."""
    gap: float | None


@dataclass(frozen=True)
class StoredThreshold:
    """The rule and threshold that were stored with the model, and what they do on the images reported on."""

    rule: str
    threshold: float
    false_acceptance: float
    """The share of unknown images that was to pass, and that passes of those chosen on."""
    accepted_unknown: float | None
    lost_known: float | None
    chosen_on: str
    reported_on: str
    reported_unknown: int
    """Unknown images that were reported on."""

    def __str__(self) -> str:
        told = (
            f"predict now answers by {self.rule}: on {self.reported_on}, {percent(self.accepted_unknown)} of unknown "
            f"images pass, {percent(self.lost_known)} of landmarks are lost"
        )
        if self.accepted_unknown is None or self.accepted_unknown <= self.false_acceptance:
            return told
        images = np.array([self.reported_unknown])
        low, high = wilson(np.round(self.accepted_unknown * images).astype(int), images)
        return (
            f"{told}; more pass than the {percent(self.false_acceptance)} asked for, which was met on "
            f"{self.chosen_on}: from {self.reported_unknown} images the share is known to "
            f"{percent(low[0])} to {percent(high[0])}"
        )


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one evaluation; `record` holds all of them, with definitions, as they stand in its JSON file."""

    name: str
    """What the predictions and metrics files are called."""
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
    """Most images first."""
    known_scores: tuple[KnownScore, ...]
    """Best first; empty without unknown images."""
    halves: tuple[str, str] | None
    """Which images thresholds were chosen on, and which they are reported on."""
    threshold: StoredThreshold | None
    record: dict[str, Any] = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        """What was judged, in words."""
        unknown = f", {self.unknown} of anything else" if self.unknown else ""
        return f"{self.name}: {plural(self.known, 'image')} of {plural(self.landmarks, 'landmark')}{unknown}"

    def rows(self) -> list[tuple[str, str]]:
        """Return the numbers that exist as (name, text)."""
        shown = [(name, str(getattr(self, name))) for name in ("top1", "top5", "macro")]
        plain = [(name, getattr(self, name)) for name in ("log_loss", "ece", "gap")]
        return shown + [(name, f"{value:z.3f}") for name, value in plain if value is not None]  # no -0.000

    def score_rows(self) -> list[tuple[str, str, str, str]]:
        """Return what each score for known against unknown is worth: name, AUROC, unknown rejected, landmarks lost."""
        return [
            (one.score, plain_number(one.auroc), percent(one.rejected), percent(one.lost)) for one in self.known_scores
        ]

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"{name:>8}  {text}" for name, text in self.rows())])

    def _repr_html_(self) -> str:
        tables = [html_table(["number", "value"], self.rows(), self.title)]
        if self.confused:
            rows = [(one.truth, one.answer, one.images) for one in self.confused[:5]]
            tables.append(html_table(["shows", "taken for", "images"], rows, "most confused"))
        if self.known_scores:
            columns = ["score", "AUROC", "unknown rejected", "landmarks lost"]
            tables.append(html_table(columns, self.score_rows(), "known or not"))
        return "".join(tables)


def evaluation_of(record: dict[str, Any]) -> Evaluation:
    """Return the record of `metrics/<name>.json` with its numbers by name."""
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
        threshold=None if chosen is None else _stored(chosen),
        record=record,
    )


def _stored(chosen: Mapping[str, Any]) -> StoredThreshold:
    names = [name for name in StoredThreshold.__dataclass_fields__ if name != "rule"]
    return StoredThreshold(rule=chosen["rule"]["name"], **{name: chosen[name] for name in names})


@dataclass(frozen=True)
class Comparison:
    """Whether the second of two runs is better than the first on the images that both answered."""

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
    """All of it in one sentence."""
    record: dict[str, Any] = field(repr=False, compare=False)

    def rows(self) -> list[tuple[str, str, int]]:
        """Return (run, top-1, images right where the other is wrong) of both."""
        return [
            (self.first, percent(self.top1_first), self.only_first),
            (self.second, percent(self.top1_second), self.only_second),
        ]

    def __str__(self) -> str:
        return self.verdict

    def _repr_html_(self) -> str:
        columns = ["run", "top-1", "right where the other is wrong"]
        table = html_table(columns, self.rows(), f"{self.name}: {plural(self.images, 'image')}")
        return f"{table}<p>{escape(self.verdict)}</p>"


def comparison_of(record: dict[str, Any]) -> Comparison:
    """Return the record of a comparison with its numbers by name."""
    known = {name: record[name] for name in Comparison.__dataclass_fields__ if name not in ("record", "difference")}
    return Comparison(**known, difference=Interval(**record["difference"]), record=record)


@dataclass(frozen=True)
class Draws:
    """How accuracy varies with the landmarks that are drawn."""

    draws: int
    landmarks: int
    of: int
    """Landmarks they were drawn from."""
    accuracies: tuple[float, ...] = field(repr=False)
    mean: float
    deviation: float
    own_accuracy: float | None
    """The run's own, as it was judged."""
    place: float | None
    """Share of the draws whose accuracy is below the run's own."""
    record: dict[str, Any] = field(repr=False, compare=False)

    def rows(self) -> list[tuple[str, str]]:
        """Return the distribution as (word, share)."""
        names = {"mean": "mean", "deviation": "standard deviation", "smallest": "smallest", "q05": "5th percentile"}
        names |= {"q25": "25th percentile", "q50": "median", "q75": "75th percentile", "q95": "95th percentile"}
        return [(word, percent(self.record[name])) for name, word in (names | {"largest": "largest"}).items()]

    @property
    def title(self) -> str:
        """What was drawn, in words."""
        return f"{self.draws} draws of {self.landmarks} of {self.of} landmarks"

    def __str__(self) -> str:
        return f"{self.title}: accuracy {percent(self.mean)}, standard deviation {percent(self.deviation)}"

    def _repr_html_(self) -> str:
        return html_table(["accuracy", "value"], self.rows(), self.title)


def draws_of(record: dict[str, Any]) -> Draws:
    """Return the record of `subsets` with its numbers by name."""
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
"""What each number of `Evaluation.rows` says, in a few words; its record holds the definitions."""


def plain_number(value: float | None) -> str:
    """Return a number with three decimals, "-" for none."""
    return "-" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Return a share from 0 to 1 in percent, "-" for none."""
    return "-" if value is None else f"{100 * value:.1f} %"
