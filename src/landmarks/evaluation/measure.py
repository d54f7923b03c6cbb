"""Compute every metric of an evaluation from arrays of predictions, with intervals and definitions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from landmarks.dataset.manifest import NO_LABEL
from landmarks.evaluation.metrics import (
    ACCURACY_DEFINITIONS,
    CALIBRATION_DEFINITIONS,
    GAP_DEFINITIONS,
    INTERVAL_DEFINITIONS,
    SELECTIVE_DEFINITIONS,
    Bounds,
    Flags,
    Floats,
    Integers,
    calibration_error,
    confusion_pairs,
    global_average_precision,
    log_loss,
    macro_accuracy,
    macro_interval,
    mean_interval,
    most_confused,
    per_landmark,
    reliability,
    risk_area,
    risk_coverage,
    top_k,
    wilson,
)
from landmarks.evaluation.predictions import PredictionArrays
from landmarks.evaluation.retrieval import NEIGHBOUR_DEFINITIONS
from landmarks.evaluation.unknown import UNKNOWN_DEFINITIONS, candidate_rules, compare_rules, threshold_parts
from landmarks.recognition.answers import SCORE_DEFINITIONS

MOST_CONFUSED = 20
"""Pairs of landmarks listed in the record; `<name>.confusion.parquet` holds all."""

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
    "by": "What answered: the trained classifier, the nearest remembered images (neighbours), or both; by default what "
    "validation chose.",
    "answered": "Images that the submission gives an answer to.",
    "seconds": "From the start of the evaluation to its last answer; stored answers of an earlier one take no time.",
}
"""The definition of every number that an evaluation's record may hold; a record carries those that apply to it."""


@dataclass(frozen=True)
class Measurement:
    """The record of an evaluation and its two tables."""

    record: dict[str, Any]
    landmarks: pl.DataFrame  # label, images, correct, accuracy, low, high
    confusion: pl.DataFrame  # truth, answer, count


def measure(arrays: PredictionArrays, *, seed: int = 0) -> Measurement:
    """Return every number that `arrays` allow; one that is undefined (an accuracy of no images) is None."""
    known = arrays.truth.known
    truth = arrays.truth.subset(known)
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
    return Measurement({**record, "definitions": definitions_of(record)}, _landmarks(first, correct), confusion)


def definitions_of(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Return the definitions of the numbers that an evaluation's record holds, and of no others."""
    present = measured_names(numbers)
    return {name: text for name, text in DEFINITIONS.items() if name in present}


def measured_names(numbers: Mapping[str, Any]) -> set[str]:
    """Return the names of the numbers in an evaluation's record, those of its compared rejection scores included."""
    present = {name for name, value in numbers.items() if not _is_empty(value)}
    for row in numbers.get("rejection") or []:
        present |= (row.keys() - {"score"}) | {row["score"]}
    if "top1" in present:
        present |= {"interval", "landmark_accuracy"}  # the latter is in a table beside the record
    return present


def _is_empty(value: Any) -> bool:
    """Return whether `value` is None, an empty list, or a record of nothing else."""
    if isinstance(value, dict):
        return value["value"] is None if "value" in value else all(_is_empty(inner) for inner in value.values())
    return value is None or value == []


def _with_interval(flags: Flags, groups: Integers, seed: int) -> dict[str, Any]:
    return _interval(float(flags.mean()) if len(flags) else math.nan, mean_interval(flags, groups, seed))


def _macro(first: Integers, correct: Flags, groups: Integers, seed: int) -> dict[str, Any]:
    return _interval(macro_accuracy(first, correct), macro_interval(first, correct, groups, seed))


def _interval(value: float, bounds: Bounds) -> dict[str, Any]:
    return {"value": value, **bounds._asdict()}


def _gaps(arrays: PredictionArrays, known: Flags) -> dict[str, Any]:
    def gap(chosen: Flags) -> float:
        return global_average_precision(
            arrays.ids[chosen], arrays.labels[chosen, 0], arrays.scores[chosen, 0], arrays.truth.subset(chosen)
        )

    usages = sorted({usage for usage in arrays.usage.tolist() if usage})
    return {
        "gap": gap(np.ones(len(known), dtype=bool)),
        "gap_of_known": gap(known),
        "gap_of_usage": {usage: gap(arrays.usage == usage) for usage in usages},
    }


def _probabilities(arrays: PredictionArrays, known: Flags, correct: Flags) -> dict[str, Any]:
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


def _rejection(arrays: PredictionArrays, known: Flags, seed: int) -> dict[str, Any]:
    if known.all() or not known.any():
        return {"rejection": [], "rejection_parts": None}
    parts = threshold_parts(arrays.usage, arrays.groups, seed)
    scores = arrays.all_scores
    rules = candidate_rules(scores, known, parts)
    rows = compare_rules(rules, scores, known, parts)
    reported = parts.reported
    for row, (rule, _) in zip(rows, rules, strict=True):
        values = rule.apply(scores)[reported]
        row["gap"] = global_average_precision(
            arrays.ids[reported], arrays.labels[reported, 0], values, arrays.truth.subset(reported)
        )
    return {"rejection": rows, "rejection_parts": {"chosen_on": parts.chosen_on, "reported_on": parts.reported_on}}


def _pairs(pairs: list[tuple[int, int, int]]) -> list[dict[str, int]]:
    return [{"truth": truth, "answer": answer, "count": count} for truth, answer, count in pairs]


def _landmarks(first: Integers, correct: Flags) -> pl.DataFrame:
    labels, images, hits = per_landmark(first, correct)
    low, high = wilson(hits, images)
    accuracy = hits / images
    return pl.DataFrame(
        {"label": labels, "images": images, "correct": hits, "accuracy": accuracy, "low": low, "high": high}
    )


def _without_nan(value: Any) -> Any:
    """Return `value` with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
