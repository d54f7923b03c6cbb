"""Compute every metric of an evaluation from arrays of predictions, with intervals and definitions.

Also chooses the score, and its threshold, that separates known from unknown images best, and reports it on other
images. The recognition test set says which images are for choosing (Public) and which for reporting (Private).
Elsewhere a random half of the groups is for choosing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from landmarks.dataset.manifest import NO_LABEL
from landmarks.evaluation.intervals import (
    INTERVAL_DEFINITIONS,
    Bounds,
    group_places,
    macro_interval,
    mean_interval,
    wilson,
)
from landmarks.evaluation.metrics import (
    ACCURACY_DEFINITIONS,
    CALIBRATION_DEFINITIONS,
    GAP_DEFINITIONS,
    SELECTIVE_DEFINITIONS,
    Flags,
    Floats,
    Integers,
    auroc,
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
    threshold_for_false_acceptance,
    threshold_for_loss,
    top_k,
)
from landmarks.evaluation.predictions import PredictionArrays
from landmarks.evaluation.retrieval import NEIGHBOUR_DEFINITIONS
from landmarks.recognition.answers import SCORE_DEFINITIONS, KnownRule, Scores
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.seeds import generator

MOST_CONFUSED = 20
"""Pairs of landmarks listed in the record; `<name>.confusion.parquet` holds all."""

CURVE_POINTS = 101
"""Points of the risk–coverage curve that are kept; its area is computed from all."""

UNKNOWN_DEFINITIONS = {
    "rejection": "How well each score separates known from unknown images: rules and thresholds are chosen on one part "
    "of the images, and everything but `auroc_chosen` is reported on another.",
    "auroc_chosen": "The same on the part chosen on; of the combined rule by cross-validation there.",
    "threshold": "The score below which 5 % of the known images of the part chosen on fall; none with fewer than 20 "
    "of them, of which 5 % is less than one.",
    "lost": "Share of known images below that threshold.",
    "rejected": "Share of unknown images below that threshold.",
}

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


# ── Known and unknown: the score that separates them best, and its threshold ────────────────────────────────────────


LOST_SHARE = 0.05
"""Share of known images that the compared thresholds give up."""

FOLDS = 5
"""Folds of the cross-validation that judges the combined score where its weights are fitted."""


@dataclass(frozen=True)
class ThresholdParts:
    """Which images a rule and its threshold are chosen on, and which they are reported on."""

    chosen: Flags  # (N,)
    reported: Flags  # (N,)
    groups: Integers  # (N,) positions of whole groups, see `group_places`
    chosen_on: str
    reported_on: str


def threshold_parts(usage: NDArray[np.object_], groups: Integers, seed: int = 0) -> ThresholdParts:
    """Return Public and Private where `usage` `(N,)` has both, else two random halves of whole `groups` `(N,)`."""
    public, private = usage == "Public", usage == "Private"
    places = group_places(groups, len(groups))
    if public.any() and private.any():
        return ThresholdParts(public, private, places, "Public", "Private")
    in_first_half = generator(seed, "halves").permutation(int(places.max(initial=-1)) + 1) % 2 == 0
    chosen = in_first_half[places]
    return ThresholdParts(chosen, ~chosen, places, "one half of the groups", "the other half of the groups")


def candidate_rules(scores: Scores, known: Flags, parts: ThresholdParts) -> list[tuple[KnownRule, float]]:
    """Return every rule that can be made of `scores` (name → `(N,)`), each with its AUROC on the part chosen on.

    The combined rule is fitted on that part, so its AUROC there comes from cross-validation over whole groups. The
    best rule comes first, ties are ordered by name.
    """
    rules, chosen = [], parts.chosen
    for name, values in scores.items():
        rules.append((KnownRule(name, {name: 1.0}), auroc(values[chosen & known], values[chosen & ~known])))
    combined = {name: values[chosen] for name, values in scores.items() if name not in ("msp", "score")}
    fold = _folds(parts.groups[chosen], known[chosen])
    if len(combined) > 1 and fold is not None:
        rule = combined_rule(combined, known[chosen])
        rules.append((rule, _cross_validated(combined, known[chosen], fold)))
    return sorted(rules, key=lambda pair: (-pair[1] if math.isfinite(pair[1]) else math.inf, pair[0].name))


def compare_rules(
    rules: list[tuple[KnownRule, float]], scores: Scores, known: Flags, parts: ThresholdParts
) -> list[dict[str, Any]]:
    """Return one row per rule, in their order, measured on the part reported on; keys as in `UNKNOWN_DEFINITIONS`."""
    rows, enough = [], can_choose_by_loss(known, parts)
    for rule, auroc_chosen in rules:
        values = rule.apply(scores)
        threshold = threshold_for_loss(values[parts.chosen & known], LOST_SHARE) if enough else math.nan
        known_values, unknown_values = values[parts.reported & known], values[parts.reported & ~known]
        row = {
            "score": rule.name,
            "auroc": auroc(known_values, unknown_values),
            "auroc_chosen": auroc_chosen,
            "threshold": threshold,
            "lost": _share(known_values < threshold) if enough else math.nan,
            "rejected": _share(unknown_values < threshold) if enough else math.nan,
        }
        rows.append(row)
    return rows


def can_choose_by_loss(known: Flags, parts: ThresholdParts) -> bool:
    """Return whether `LOST_SHARE` of the known images chosen on is at least one image, as a threshold needs."""
    return bool((parts.chosen & known).sum() * LOST_SHARE >= 1)


def require_rate(false_acceptance: float) -> None:
    """Raise `UsageError` for a false-acceptance rate that is not between 0 and 1."""
    if not 0 < false_acceptance < 1:
        raise UsageError("no such false-acceptance rate", received=false_acceptance, expected="between 0 and 1")


def choose_threshold(scores: Scores, known: Flags, parts: ThresholdParts, false_acceptance: float) -> dict[str, Any]:
    """Return the best rule and its threshold, as the record that is stored with a model.

    The rule is the best on the part chosen on. The threshold lets at most `false_acceptance` (0..1) of the unknown
    images there pass. The record also says what both do on the part reported on.
    Raises `LandmarksError` when there are too few unknown images to choose on.
    """
    unknown_images = int((parts.chosen & ~known).sum())
    if unknown_images * false_acceptance < 1:
        raise LandmarksError(
            "too few images of anything else to choose a threshold on",
            received=unknown_images,
            expected=f"at least {math.ceil(1 / false_acceptance)} for a rate of {false_acceptance:g}",
        )
    rule, auroc_chosen = candidate_rules(scores, known, parts)[0]
    values = rule.apply(scores)
    threshold = threshold_for_false_acceptance(values[parts.chosen & ~known], false_acceptance)
    passed = values >= threshold
    return {
        "rule": rule.record(),
        "threshold": threshold,
        "false_acceptance": false_acceptance,
        "chosen_on": parts.chosen_on,
        "auroc_chosen": auroc_chosen,
        "reported_on": parts.reported_on,
        "accepted_unknown": _share(passed[parts.reported & ~known]),
        "reported_unknown": int((parts.reported & ~known).sum()),
        "lost_known": _share(~passed[parts.reported & known]),
    }


def _folds(groups: Integers, known: Flags) -> Integers | None:
    """Return the fold `(N,)` of each image, with whole `groups` `(N,)` in one fold.

    None where there are too few known or too few unknown images. Groups of known and groups of unknown images are
    spread evenly over the folds; a group with both counts as known.
    """
    places = np.unique(groups, return_inverse=True)[1]
    group_known = np.zeros(int(places.max(initial=-1)) + 1, dtype=bool)
    group_known[places[known]] = True
    few_groups = min(group_known.sum(), (~group_known).sum()) < FOLDS
    if few_groups or min(known.sum(), (~known).sum()) < 2 * FOLDS:
        return None
    fold = np.empty(len(group_known), dtype=np.int64)
    random = generator(0, "folds")
    for side in (group_known, ~group_known):
        fold[side] = random.permutation(np.arange(side.sum()) % FOLDS)
    return np.asarray(fold[places])


def _cross_validated(scores: Scores, known: Flags, fold: Integers) -> float:
    """Return the mean AUROC of the combined rule over the folds, each time fitted on the other folds."""
    values = []
    for number in range(FOLDS):
        inside = fold == number
        rule = combined_rule({name: score[~inside] for name, score in scores.items()}, known[~inside])
        combined = rule.apply({name: score[inside] for name, score in scores.items()})
        values.append(auroc(combined[known[inside]], combined[~known[inside]]))
    return float(np.mean(values))


def _share(flags: Flags) -> float:
    return float(flags.mean()) if len(flags) else math.nan


def combined_rule(scores: Scores, known: Flags) -> KnownRule:
    """Return the rule that best tells `known` `(N,)` from unknown: a logistic regression on standardised scores.

    Known and unknown images have equal total weight, and the coefficients are regularised (C = 1).
    """
    from sklearn.linear_model import LogisticRegression

    names = sorted(scores)
    matrix = np.stack([scores[name].astype(np.float64) for name in names], axis=1)
    mean, deviation = matrix.mean(axis=0), np.maximum(matrix.std(axis=0), 1e-12)
    model = LogisticRegression(C=1.0, class_weight="balanced").fit((matrix - mean) / deviation, known)
    weights = model.coef_[0] / deviation
    constant = float(model.intercept_[0] - weights @ mean)
    return KnownRule("combined", {name: float(weight) for name, weight in zip(names, weights, strict=True)}, constant)
