"""From predictions as arrays to numbers: every metric once, with its interval and its definition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from landmarks.dataset.manifest import NO_LABEL
from landmarks.evaluation.intervals import INTERVAL_DEFINITIONS, Bounds, macro_interval, mean_interval, wilson
from landmarks.evaluation.metrics import (
    ACCURACY_DEFINITIONS,
    CALIBRATION_DEFINITIONS,
    GAP_DEFINITIONS,
    SELECTIVE_DEFINITIONS,
    Flags,
    Floats,
    Integers,
    calibration_error,
    confusion_pairs,
    global_average_precision,
    log_loss,
    macro_accuracy,
    most_confused,
    per_landmark,
    reliability,
    risk_area,
    risk_coverage,
    top_k,
)
from landmarks.evaluation.neighbours import NEIGHBOUR_DEFINITIONS
from landmarks.evaluation.predictions import Arrays
from landmarks.evaluation.unknown import UNKNOWN_DEFINITIONS, compare_rules, halves_of, rules_of
from landmarks.recognition.known_scores import SCORE_DEFINITIONS

MOST_CONFUSED = 20
"""Pairs of landmarks listed; all pairs stand in the table beside."""

CURVE_POINTS = 101
"""Points of the risk–coverage curve that are kept; its area is computed from all."""

DEFINITIONS = {
    **ACCURACY_DEFINITIONS,
    **INTERVAL_DEFINITIONS,
    **CALIBRATION_DEFINITIONS,
    **SELECTIVE_DEFINITIONS,
    **UNKNOWN_DEFINITIONS,
    **SCORE_DEFINITIONS,
    **GAP_DEFINITIONS,
    **NEIGHBOUR_DEFINITIONS,
    "by": "Who answered: the trained classifier, the remembered images around an image (neighbours), or both; unless "
    "asked otherwise as validation chose.",
    "answered": "Images that the submission gives an answer to.",
    "seconds": "From the start of the evaluation to its last answer; answers that were kept from earlier cost nothing.",
}
"""Of every number that the record of an evaluation may hold; a record carries those of the numbers it holds."""


@dataclass(frozen=True)
class Measured:
    """What `measure` returns: a flat record, and the two tables that stand beside it."""

    record: dict[str, Any]
    landmarks: pl.DataFrame  # label, images, correct, accuracy, low, high
    confusion: pl.DataFrame  # truth, answer, count


def measure(arrays: Arrays, *, seed: int = 0) -> Measured:
    """Return every number that `arrays` allow; a number that does not exist (an accuracy of nothing) is None."""
    known = arrays.truth.known
    truth = arrays.truth.of(known)
    labels, confidence, groups = arrays.labels[known], arrays.scores[known, 0], arrays.groups[known]
    first, correct = truth.first, top_k(labels, truth, 1)
    answered = labels[:, 0] != NO_LABEL
    shown, answer, count = confusion_pairs(first[answered], labels[answered, 0], correct[answered])
    record = {
        "images": len(known),
        "known": int(known.sum()),
        "unknown": int((~known).sum()),
        "landmarks": len(np.unique(first)),
        "top1": _with_interval(correct, groups, seed),
        "top5": _with_interval(top_k(labels, truth, 5), groups, seed),
        "macro": _macro(first, correct, groups, seed),
        **_gaps(arrays, known),
        **_probabilities(arrays, known, correct),
        "confused": _pairs(most_confused(shown, answer, count, MOST_CONFUSED)),
        "risk_coverage": _risk_coverage(confidence, correct),
        **_rejection(arrays, known, seed),
    }
    confusion = pl.DataFrame({"truth": shown, "answer": answer, "count": count})
    record = _without_nan(record)
    return Measured({**record, "definitions": definitions_of(record)}, _landmarks(first, correct), confusion)


def definitions_of(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Return the definition of every number that is there in the record of an evaluation, and of no other."""
    there = names_of(numbers)
    return {name: text for name, text in DEFINITIONS.items() if name in there}


def names_of(numbers: Mapping[str, Any]) -> set[str]:
    """Return what the record of an evaluation holds: its own entries, and what it says of scores that were compared."""
    there = {name for name, value in numbers.items() if not _is_nothing(value)}
    for row in numbers.get("rejection") or []:
        there |= (row.keys() - {"score"}) | {row["score"]}
    if "top1" in there:
        there |= {"interval", "landmark_accuracy"}  # the latter in the table beside the record
    return there


def _is_nothing(value: Any) -> bool:
    """Return whether `value` is no number, or a record of none: what would be measured of no images."""
    if isinstance(value, dict):
        return value["value"] is None if "value" in value else all(_is_nothing(one) for one in value.values())
    return value is None or value == []


def _with_interval(flags: Flags, groups: Integers, seed: int) -> dict[str, Any]:
    return _interval(float(flags.mean()) if len(flags) else math.nan, mean_interval(flags, groups, seed))


def _macro(first: Integers, correct: Flags, groups: Integers, seed: int) -> dict[str, Any]:
    return _interval(macro_accuracy(first, correct), macro_interval(first, correct, groups, seed))


def _interval(value: float, bounds: Bounds) -> dict[str, Any]:
    return {"value": value, **bounds._asdict()}


def _gaps(arrays: Arrays, known: Flags) -> dict[str, Any]:
    def of(split: Flags) -> float:
        return global_average_precision(
            arrays.ids[split], arrays.labels[split, 0], arrays.scores[split, 0], arrays.truth.of(split)
        )

    usages = sorted({usage for usage in arrays.usage.tolist() if usage})
    return {
        "gap": of(np.ones(len(known), dtype=bool)),
        "gap_of_known": of(known),
        "gap_of_usage": {usage: of(arrays.usage == usage) for usage in usages},
    }


def _probabilities(arrays: Arrays, known: Flags, correct: Flags) -> dict[str, Any]:
    if arrays.untempered is None or arrays.truth_log_scores is None:
        return {"log_loss": None, "ece": None, "ece_before_temperature": None, "reliability": []}
    confidence = arrays.scores[known, 0]
    curve = zip(*reliability(confidence, correct), strict=True)
    return {
        "log_loss": log_loss(arrays.truth_log_scores[known]),
        "ece": calibration_error(confidence, correct),
        "ece_before_temperature": calibration_error(arrays.untempered[known], correct),
        "reliability": [
            {"confidence": float(mean), "accuracy": float(accuracy), "images": int(count)}
            for mean, accuracy, count in curve
        ],
    }


def _risk_coverage(confidence: Floats, correct: Flags) -> dict[str, Any]:
    coverage, risk = risk_coverage(confidence, correct)
    kept = np.unique(np.linspace(0, max(len(risk) - 1, 0), CURVE_POINTS).round().astype(int))[: len(risk)]
    return {
        "coverage": coverage[kept].tolist(),
        "risk": risk[kept].tolist(),
        "area": risk_area(risk),
    }


def _rejection(arrays: Arrays, known: Flags, seed: int) -> dict[str, Any]:
    if known.all() or not known.any():
        return {"rejection": [], "rejection_parts": None}
    halves = halves_of(arrays.usage, arrays.groups, seed)
    scores = arrays.all_scores
    rules = rules_of(scores, known, halves)
    rows = compare_rules(rules, scores, known, halves)
    reported = halves.reported
    for row, (rule, _) in zip(rows, rules, strict=True):
        values = rule.apply(scores)[reported]
        row["gap"] = global_average_precision(
            arrays.ids[reported], arrays.labels[reported, 0], values, arrays.truth.of(reported)
        )
    return {"rejection": rows, "rejection_parts": {"chosen_on": halves.chosen_on, "reported_on": halves.reported_on}}


def _pairs(pairs: list[tuple[int, int, int]]) -> list[dict[str, int]]:
    return [{"truth": truth, "answer": answer, "count": count} for truth, answer, count in pairs]


def _landmarks(first: Integers, correct: Flags) -> pl.DataFrame:
    labels, images, hits = per_landmark(first, correct)
    low, high = wilson(hits, images)
    accuracy = hits / images
    columns = {"label": labels, "images": images, "correct": hits, "accuracy": accuracy, "low": low}
    return pl.DataFrame({**columns, "high": high})


def _without_nan(value: Any) -> Any:
    """Return `value` with None for every number that is none: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
