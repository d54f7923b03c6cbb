"""Which score tells known from unknown best, and where its threshold lies: chosen on one part, reported on another.

The recognition test set says which images are for choosing (Public) and which for reporting (Private); elsewhere
half of the groups, drawn by their number, are for choosing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmarks.evaluation.intervals import group_places
from landmarks.evaluation.metrics import Flags, Integers, auroc, threshold_for_false_acceptance, threshold_for_loss
from landmarks.recognition.known_scores import KnownRule, Scores, combined_rule
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.seeds import generator

LOSS = 0.05
"""Share of known images that the compared thresholds give up."""

FOLDS = 5
"""Folds of the cross-validation that judges the combined score where its weights are fitted."""

UNKNOWN_DEFINITIONS = {
    "rejection": "What each score is worth that may tell known from unknown images: rules and thresholds are "
    "chosen on one part of the images, and all but `auroc_chosen` is reported on another.",
    "auroc_chosen": "The same on the part chosen on; of the combined rule by cross-validation there.",
    "threshold": "The score below which 5 % of the known images of the part chosen on fall; none with fewer than 20 "
    "of them, of which 5 % is less than one.",
    "lost": "Share of known images below that threshold.",
    "rejected": "Share of unknown images below that threshold.",
}


@dataclass(frozen=True)
class Halves:
    """Which images a rule and its threshold are chosen on, and which they are reported on."""

    chosen: Flags  # (N,)
    reported: Flags  # (N,)
    groups: Integers  # (N,) positions of whole groups, see `group_places`
    chosen_on: str
    reported_on: str


def halves_of(usage: NDArray[np.object_], groups: Integers, seed: int = 0) -> Halves:
    """Return Public and Private where `usage` `(N,)` has both, else two halves made of whole `groups` `(N,)`."""
    public, private = usage == "Public", usage == "Private"
    places = group_places(groups, len(groups))
    if public.any() and private.any():
        return Halves(public, private, places, "Public", "Private")
    first = generator(seed, "halves").permutation(int(places.max(initial=-1)) + 1) % 2 == 0
    chosen = first[places]
    return Halves(chosen, ~chosen, places, "one half of the groups", "the other half of the groups")


def rules_of(scores: Scores, known: Flags, halves: Halves) -> list[tuple[KnownRule, float]]:
    """Return every rule that `scores` (name → `(N,)`) allow, each with its AUROC on the chosen images.

    The combined rule is fitted on them, and judged there by cross-validation over whole groups. Best rule first, ties
    by name.
    """
    rules, chosen = [], halves.chosen
    for name, values in scores.items():
        rules.append((KnownRule(name, {name: 1.0}), auroc(values[chosen & known], values[chosen & ~known])))
    parts = {name: values[chosen] for name, values in scores.items() if name not in ("msp", "score")}
    fold = _folds(halves.groups[chosen], known[chosen])
    if len(parts) > 1 and fold is not None:
        rule = combined_rule(parts, known[chosen])
        rules.append((rule, _cross_validated(parts, known[chosen], fold)))
    return sorted(rules, key=lambda pair: (-pair[1] if math.isfinite(pair[1]) else math.inf, pair[0].name))


def compare_rules(
    rules: list[tuple[KnownRule, float]], scores: Scores, known: Flags, halves: Halves
) -> list[dict[str, Any]]:
    """Return one row per rule, in their order: what it reaches on the part reported on, see `DEFINITIONS`."""
    rows, enough = [], can_choose_by_loss(known, halves)
    for rule, auroc_chosen in rules:
        values = rule.apply(scores)
        threshold = threshold_for_loss(values[halves.chosen & known], LOSS) if enough else math.nan
        landmarks, others = values[halves.reported & known], values[halves.reported & ~known]
        row = {
            "score": rule.name,
            "auroc": auroc(landmarks, others),
            "auroc_chosen": auroc_chosen,
            "threshold": threshold,
            "lost": _share(landmarks < threshold) if enough else math.nan,
            "rejected": _share(others < threshold) if enough else math.nan,
        }
        rows.append(row)
    return rows


def can_choose_by_loss(known: Flags, halves: Halves) -> bool:
    """Return whether `LOSS` of the known images chosen on is one image at least: else a threshold means nothing."""
    return bool((halves.chosen & known).sum() * LOSS >= 1)


def require_rate(false_acceptance: float) -> None:
    """Raise `UsageError` for a share of unknown images that cannot be asked for."""
    if not 0 < false_acceptance < 1:
        raise UsageError("no such false-acceptance rate", received=false_acceptance, expected="between 0 and 1")


def choose_threshold(scores: Scores, known: Flags, halves: Halves, false_acceptance: float) -> dict[str, Any]:
    """Return the record that is stored with a model: the best rule on the chosen part and the threshold that lets at
    most `false_acceptance` (0..1) of its unknown images pass, with what both do on the part reported on.

    Raises when there are no unknown images to choose on.
    """
    others = int((halves.chosen & ~known).sum())
    if others * false_acceptance < 1:
        raise LandmarksError(
            "too few images of anything else to choose a threshold on",
            received=others,
            expected=f"at least {math.ceil(1 / false_acceptance)} for a rate of {false_acceptance:g}",
        )
    rule, auroc_chosen = rules_of(scores, known, halves)[0]
    values = rule.apply(scores)
    threshold = threshold_for_false_acceptance(values[halves.chosen & ~known], false_acceptance)
    passed = values >= threshold
    return {
        "rule": rule.record(),
        "threshold": threshold,
        "false_acceptance": false_acceptance,
        "chosen_on": halves.chosen_on,
        "auroc_chosen": auroc_chosen,
        "reported_on": halves.reported_on,
        "accepted_unknown": _share(passed[halves.reported & ~known]),
        "reported_unknown": int((halves.reported & ~known).sum()),
        "lost_known": _share(~passed[halves.reported & known]),
    }


def _folds(groups: Integers, known: Flags) -> Integers | None:
    """Return the fold `(N,)` of each image, whole `groups` `(N,)` in one; None where too few show either.

    Groups of known and of unknown images are dealt out in turn; one that shows both counts as known.
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
    """Return the mean AUROC over the folds of the combined rule, each judged by a rule fitted on the others."""
    values = []
    for number in range(FOLDS):
        inside = fold == number
        rule = combined_rule({name: part[~inside] for name, part in scores.items()}, known[~inside])
        judged = rule.apply({name: part[inside] for name, part in scores.items()})
        values.append(auroc(judged[known[inside]], judged[~known[inside]]))
    return float(np.mean(values))


def _share(flags: Flags) -> float:
    return float(flags.mean()) if len(flags) else math.nan
