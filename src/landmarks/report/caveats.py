"""What the numbers of a page do not show, found in the runs themselves, and what its own numbers mean."""

from __future__ import annotations

import json
from collections.abc import Sequence

from landmarks.report.pieces import Pieces
from landmarks.report.tables import tested_on
from landmarks.report.wording import bounds, number, plural, readable

ARCHIVE_LANDMARKS = 203_094
"""Landmarks in the whole archive's training set."""

SMALL_TEST = 1_000
"""Photographs below which a page warns of a small test set: near 90 %, one of 1,000 is known to about ±2 points."""

_SAW_THE_ARCHIVE = ("dinov2", "dinov3")
_SAW_THE_WEB = ("clip", "siglip", "eva0", "webssl", "aimv2")

DEFINITIONS = {
    "accuracy": "Share of photographs whose most probable answer is a landmark they show (top-1).",
    "interval": "The smaller line below a share: the values that would be no surprise, at 95 %, if the same network "
    "met as many new photographs of the same kind.",
    "parameters": "Numbers in the network, the running statistics of its normalisation included, head included.",
    "gflops": "Billions of multiply–adds for one photograph at the image size of the run.",
    "epochs": "Passes over the training photographs: of warm-up (head alone) + of fine-tuning (everything).",
    "time": "From the start of training to its end on the machine named with the run, cached features included.",
}
"""What the page itself counts; what an evaluation measures carries its own definitions."""


def definitions(runs: Sequence[Pieces]) -> list[tuple[str, str]]:
    """Return (name, sentence) of every number on the page; an evaluation's own sentence stands over the page's."""
    told = {name: text for run in runs for one in run.evaluations for name, text in _told(one.metrics).items()}
    return [(_titled(name), readable(text, 800)) for name, text in (DEFINITIONS | told).items()]


_TITLES = {"gflops": "GFLOPs", "ece": "ECE", "gap": "GAP", "auroc": "AUROC", "top1": "Top-1", "top5": "Top-5"}


def _titled(name: str) -> str:
    plain = readable(name.replace("_", " "), 60)
    return _TITLES.get(name, plain[:1].upper() + plain[1:])


def _told(metrics: dict[str, object]) -> dict[str, str]:
    kept = metrics.get("definitions")
    return {str(name): str(text) for name, text in kept.items()} if isinstance(kept, dict) else {}


def caveats(runs: Sequence[Pieces]) -> list[str]:
    """Return what a careful reader must know before believing the page, the gravest first."""
    found = [*_about_test(runs), *_about_seen(runs), *_about_comparison(runs)]
    for text in (*_about_split(runs), *_about_pretraining(runs), *_about_scope(runs)):
        if text not in found:
            found.append(text)
    return found


def _about_test(runs: Sequence[Pieces]) -> list[str]:
    found = []
    if untested := [run.name for run in runs if tested_on(run) is None]:
        found.append(
            f"Nothing was kept apart to test {_listed(untested)}: its validation accuracy chose the epoch to keep, and "
            "is flattered by that."
        )
    sizes = {one.known: one for run in runs if (one := tested_on(run))}
    for photographs, one in sorted(sizes.items()):
        if photographs < SMALL_TEST:
            pair = bounds(one.metrics.get("top1"))
            width = f" ({100 * (pair[1] - pair[0]):.1f} points wide)" if pair else ""
            which = "The test set" if one.name == "test" else f"The test set {readable(one.name, 40)}"
            found.append(
                f"{which} is small: {plural(photographs, 'photograph')} of known "
                f"landmarks. Differences within the interval{width} may be luck; single landmarks are rough."
            )
    return found


def _about_seen(runs: Sequence[Pieces]) -> list[str]:
    """Return what was left out of the photographs judged because the run had seen it."""
    found = []
    for run in runs:
        one = run.main
        seen = one.metrics.get("seen") if one else None
        count = number(seen.get("photographs")) if isinstance(seen, dict) else None
        if one and count:
            found.append(
                f"{plural(round(count), 'photograph')} of {readable(one.name, 40)} were left out of the numbers of "
                f"{run.name}, because its training had seen them."
            )
    return found


def _about_comparison(runs: Sequence[Pieces]) -> list[str]:
    if len(runs) < 2:
        return []
    found = []
    tested = {(one.name, one.known) for run in runs if (one := tested_on(run))}
    if len(tested) > 1:
        listed = ", ".join(f"{readable(name, 40)} ({count:,} known)" for name, count in sorted(tested))
        found.append(f"The runs were not tested on the same photographs ({listed}); their accuracies do not compare.")
    if len({run.part("data", "digest") for run in runs}) > 1:
        found.append("The runs were not trained on the same photographs, or not with the same split.")
    if len({run.part("network", "image_size") for run in runs}) > 1:
        found.append("The runs saw photographs of different sizes: part of a difference may be the size's.")
    found.append("Each network was trained once; another seed alone moves the accuracy a little.")
    return found


def _about_split(runs: Sequence[Pieces]) -> list[str]:
    found = []
    for run in runs:
        split = run.part("data", "split") or {}
        rule = str(split.get("rule") or "").removeprefix("by ")
        if rule.startswith("random"):
            found.append(
                "The parts were drawn at random: near-duplicates of training photographs are among those judged"
                f"{_leakage(split.get('leakage'))}. Accuracy on photographs of another day will be lower."
            )
        elif rule.startswith("group"):
            found.append(
                "Near-duplicates were kept in one part, as far as perceptual hashes find them"
                f"{_leakage(split.get('leakage'))}; photographs of one visit that look less alike can still lie on "
                "both sides."
            )
        elif rule:
            found.append(f"The parts were taken as given ({readable(rule)}); near-duplicates may lie on both sides.")
    return found


def _leakage(leakage: object) -> str:
    """Return in brackets what a split's record says about near-duplicates on both sides; empty when it is silent."""
    if isinstance(leakage, str):
        try:
            leakage = json.loads(leakage)
        except ValueError:
            return ""
    pairs = leakage.get("straddling_pairs") if isinstance(leakage, dict) else leakage
    if not isinstance(pairs, int):
        return ""
    told = f"{plural(pairs, 'near-duplicate pair')} on both sides"
    at_random = leakage.get("straddling_pairs_random") if isinstance(leakage, dict) else None
    return f" ({told}, {at_random:,} in a random split)" if isinstance(at_random, int) else f" ({told})"


def _about_pretraining(runs: Sequence[Pieces]) -> list[str]:
    found = []
    for run in runs:
        backbone = readable(run.part("network", "backbone") or "", 60)
        weights = str(run.part("network", "weights") or "none")
        if weights == "none":
            continue
        if any(name in backbone for name in _SAW_THE_ARCHIVE):
            found.append(
                f"{backbone} was pretrained on photographs gathered around the landmarks of this very archive: its "
                "numbers here are better than they would be elsewhere."
            )
        elif any(name in backbone for name in _SAW_THE_WEB):
            found.append(f"{backbone} was pretrained on photographs from the web, perhaps on some of these.")
        else:
            found.append(
                "Pretrained weights have seen photographs of the web; whether some of these were among them was not "
                "checked."
            )
    return found


def _about_scope(runs: Sequence[Pieces]) -> list[str]:
    found = []
    landmarks = max((len(run.labels) for run in runs), default=0)
    if 0 < landmarks < ARCHIVE_LANDMARKS:
        found.append(
            f"Only {plural(landmarks, 'landmark')} can be answered, of {ARCHIVE_LANDMARKS:,} in the archive. Fewer are "
            "easier, and another choice of as many would have given another accuracy."
        )
    evaluated = [one for run in runs for one in run.evaluations]
    if evaluated and not any(number(one.metrics.get("unknown")) for one in evaluated):
        found.append(
            "Every photograph judged shows one of the known landmarks. What happens with a photograph of anything else "
            "was not measured: the network will name a landmark all the same."
        )
    found.append("Labels are the archive's. Where they are wrong, a right answer counts as a mistake.")
    return found


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
