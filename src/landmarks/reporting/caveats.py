"""What the numbers of a page do not show, found in the runs themselves, and what its own numbers mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from landmarks.evaluation.measure import measured_names
from landmarks.reporting.report_tables import tested_on, trained_epochs
from landmarks.reporting.run_files import RunFiles
from landmarks.reporting.wording import bounds, number, percent, plural, readable, titled

ARCHIVE_LANDMARKS = 203_094
"""Landmarks in the whole archive's training set."""

SMALL_TEST = 1_000
"""Images below which a page warns of a small test set: near 90 %, one of 1,000 is known to about ±2 points."""

ARCHIVE_SETS = ("train", "index", "test")
"""What a dataset that was fetched says it is a split of; one that was imported says something else."""

_SAW_THE_ARCHIVE = ("dinov2",)
_SAW_THE_WEB = ("clip", "siglip", "eva0", "webssl", "aimv2", "dinov3")

DEFINITIONS = {
    "test_accuracy": "Share of images kept out of training whose most probable answer is a landmark they show (top-1).",
    "validation_accuracy": "The same share of the validation images, in the epoch that was kept or judged later; "
    "its interval is Wilson's where it was not judged later.",
    "head_training_alone": "Validation accuracy of the best epoch of head training, with everything but the head as "
    "it was "
    "before.",
    "interval": "The smaller line below a share: the values that would be no surprise, at 95 %, if the same network "
    "met as many new images of the same kind.",
    "parameters": "Numbers in the network, the running statistics of its normalisation included, head included.",
    "image": "Side in pixels of the square that the network sees.",
    "gmacs": "Billions of multiply-adds for one image at the image size of the run; a multiplication and the "
    "addition that goes with it are one.",
    "epochs": "Passes over the training images: of head training (head alone) + of fine-tuning (everything), as far as "
    "there were both.",
    "time": "Of training, on the machine named with the run: features, head training and fine-tuning; features that "
    "lay "
    "ready cost nothing.",
}
"""What the page itself counts; what an evaluation measures carries its own definitions."""

_NOT_SHOWN = ("images", "gap_of_known", "answered", "seconds", "accuracies")
"""Numbers that records hold and define, and that the page leaves to them."""


def page_definitions(runs: Sequence[RunFiles]) -> list[tuple[str, str]]:
    """Return (name, sentence) of every number on the page; an evaluation's own sentence stands over the page's."""
    told = {name: text for name, text in DEFINITIONS.items() if any(_counted(run, name) for run in runs)}
    for run in runs:
        for one in run.evaluations:
            there = measured_names(one.metrics)
            told |= {name: text for name, text in _told(one.metrics).items() if name in there}
        for held in run.subsets:
            meant = _told(held)
            told |= {title: meant[name] for name, title in _OF_SUBSETS.items() if name in meant}
    return [(titled(name), readable(text, 800)) for name, text in told.items() if name not in _NOT_SHOWN]


_OF_SUBSETS = {"subsets": "draws_of_landmarks", "place": "place_among_the_draws"}
"""Numbers of `landmarks subsets` whose figure does not say itself what they mean, and what they are called here."""


def _counted(run: RunFiles, name: str) -> bool:
    """Return whether the page has a number of its own by this name to show of a run."""
    tested = tested_on(run)
    numbers: dict[str, object] = {
        "test_accuracy": tested and number(tested.metrics.get("top1")),
        "validation_accuracy": run.val_accuracy,
        "head_training_alone": number(run.field("head", "val_accuracy")),
        "interval": run.val_accuracy if run.val_accuracy is not None else tested and bounds(tested.metrics.get("top1")),
        "image": number(run.field("network", "image_size")),
        "epochs": trained_epochs(run),
        "time": number(run.field("seconds", "total")),
    }
    return numbers.get(name, number(run.field("network", name))) is not None


def _told(metrics: Mapping[str, object]) -> dict[str, str]:
    kept = metrics.get("definitions")
    return {str(name): str(text) for name, text in kept.items()} if isinstance(kept, dict) else {}


def found_caveats(runs: Sequence[RunFiles]) -> list[str]:
    """Return what a careful reader must know before believing the page, the gravest first."""
    found = [*_about_test(runs), *_about_seen(runs), *_about_answers(runs), *_about_comparison(runs)]
    for text in (*_about_split(runs), *_about_pretraining(runs), *_about_scope(runs)):
        if text not in found:
            found.append(text)
    return found


_ANSWERING = {
    "classifier": "the trained classifier alone",
    "neighbours": "the nearest remembered training images",
    "both": "the classifier and remembered training images together",
}


def _about_answers(runs: Sequence[RunFiles]) -> list[str]:
    """Say who answered, where that was not the classifier alone for everything."""
    found = []
    for run in runs:
        by: dict[str, list[str]] = {}
        for one in run.evaluations:
            by.setdefault(str(one.metrics.get("by", "classifier")), []).append(readable(one.name, 40))
        if set(by) - {"classifier"}:
            told = ", ".join(f"{_listed(names)} by {_ANSWERING.get(way, way)}" for way, names in sorted(by.items()))
            beside = "; their accuracies are of different answers" if len(by) > 1 else ""
            found.append(f"Of {run.name}, {told}{beside}.")
    return found


def _about_test(runs: Sequence[RunFiles]) -> list[str]:
    found = []
    untested = [run for run in runs if tested_on(run) is None]
    for kept, said in ((False, "Nothing was kept apart to test {}"), (True, "{} {} not judged on test images")):
        some = [run for run in untested if run.has_test == kept]
        if not some:
            continue
        told = said.format(_listed([run.name for run in some]), "was" if len(some) == 1 else "were")
        if all(_chose_an_epoch(run) for run in some):
            told += ": validation accuracy chose the epoch to keep, and is flattered by that"
        found.append(f"{told}.")
    sizes = {(one.known, one.name): one for run in runs if (one := tested_on(run))}
    for (images, name), one in sorted(sizes.items()):
        if images < SMALL_TEST:
            pair = bounds(one.metrics.get("top1"))
            width = f" ({100 * (pair[1] - pair[0]):.1f} points wide)" if pair else ""
            which = "The test set" if name == "test" else f"The test set {readable(name, 40)}"
            found.append(
                f"{which} is small: {plural(images, 'image')} of known "
                f"landmarks. Differences within the interval{width} may be chance; single landmarks are rough."
            )
    return found


def _about_seen(runs: Sequence[RunFiles]) -> list[str]:
    """Return what was left out of the images judged because the run had seen it."""
    found = []
    for run in runs:
        one = run.main
        seen = one.metrics.get("seen") if one else None
        count = number(seen.get("images")) if isinstance(seen, dict) else None
        if one and count:
            found.append(
                f"{plural(round(count), 'image')} of {readable(one.name, 40)} were left out of the numbers of "
                f"{run.name}, because its training had seen them."
            )
    return found


def _chose_an_epoch(run: RunFiles) -> bool:
    """Return whether there were several epochs to choose from by their validation accuracy."""
    if run.history is None:
        return run.field("best") is not None
    return run.history["val_accuracy"].count() > 1


def _about_comparison(runs: Sequence[RunFiles]) -> list[str]:
    if len(runs) < 2:
        return []
    found = []
    tested = [one for run in runs if (one := tested_on(run))]
    ids = {one.images for one in tested}
    sets = {(one.name, one.known) for one in tested}
    if len(ids if "" not in ids else sets) > 1:
        listed = ", ".join(f"{readable(name, 40)} ({count:,} known)" for name, count in sorted(sets))
        found.append(f"The runs were not tested on the same images ({listed}); their accuracies do not compare.")
    if _differ(runs, "data", "digest"):
        found.append("The runs were not trained on the same images, or not with the same split.")
    if _differ(runs, "network", "image_size"):
        found.append("The runs saw images of different sizes: part of a difference may be the size's.")
    return [*found, *_about_seeds(runs)]


def _differ(runs: Sequence[RunFiles], *keys: str) -> bool:
    return len({value for run in runs if (value := run.field(*keys)) is not None}) > 1


def _about_seeds(runs: Sequence[RunFiles]) -> list[str]:
    """Return what several seeds of one recipe reached, and which recipes have had one only."""
    recipes: dict[str, list[RunFiles]] = {}
    for run in runs:
        if (decided := _all_but_the_seed(run)) is not None:
            recipes.setdefault(decided, []).append(run)
    found, once = [], []
    for group in recipes.values():
        seeds = {run.field("recipe", "seed") for run in group}
        if len(seeds) == 1:
            once.append(group[0].name)
            continue
        told = f"{_listed([run.name for run in group])} differ in nothing but the seed"
        reached = [accuracy for run in group if (accuracy := run.val_accuracy) is not None]
        if len(reached) == len(group):
            told += f": with it, validation accuracy lies between {percent(min(reached))} and {percent(max(reached))}"
        found.append(f"{told}.")
    if once:
        which = "Each run was trained with one seed" if not found else f"{_listed(once)}: trained with one seed"
        found.append(f"{which}; another alone would give another accuracy.")
    return found


def _all_but_the_seed(run: RunFiles) -> str | None:
    """Return everything that decides a run's training but its seed, as text; None where it is not known."""
    decided = run.field("identity") or run.field("recipe")
    if not isinstance(decided, dict):
        return None
    rest = {name: value for name, value in decided.items() if name != "seed"}
    return json.dumps([rest, run.field("data", "digest")], sort_keys=True)


def _about_split(runs: Sequence[RunFiles]) -> list[str]:
    found = []
    for run in runs:
        split = run.field("data", "split") or {}
        rule, leakage = str(split.get("rule") or "").removeprefix("by "), _read_leakage(split.get("leakage"))
        pairs = leakage.get("straddling_pairs")
        if rule.startswith("random"):
            told = "The parts were drawn at random"
            if pairs is None:
                told += ": near-duplicates of training images may be among those of validation and test"
            elif pairs:
                told += ": near-duplicates of training images are among those of validation and test"
            else:
                told += ", and perceptual hashes find no near-duplicates on both sides"
            found.append(f"{told}{_in_brackets(leakage)}. Accuracy on images of another day may well be lower.")
        elif rule.startswith("group"):
            found.append(
                "Near-duplicates were kept in one split, as far as perceptual hashes find them"
                f"{_in_brackets(leakage)}; images of one visit that look less alike can still lie on both sides."
            )
        elif rule:
            told = f"The parts were taken as given ({readable(rule.partition(';')[0])})"
            sides = "near-duplicates may lie on both sides" if pairs is None else "perceptual hashes find"
            found.append(f"{told}; {sides}{_in_brackets(leakage)}.")
    return found


def _read_leakage(leakage: object) -> dict[str, int]:
    """Return what a split's record says about near-duplicates on both sides; nothing when it is silent."""
    if isinstance(leakage, str):
        try:
            leakage = json.loads(leakage)
        except ValueError:
            return {}
    told = leakage if isinstance(leakage, dict) else {"straddling_pairs": leakage}
    return {name: value for name, value in told.items() if isinstance(value, int)}


def _in_brackets(leakage: Mapping[str, int]) -> str:
    if "straddling_pairs" not in leakage:
        return ""
    told = f"{plural(leakage['straddling_pairs'], 'near-duplicate pair')} on both sides"
    at_random = leakage.get("straddling_pairs_random")
    return f" ({told})" if at_random is None else f" ({told}, {at_random:,} in a random split)"


def _about_pretraining(runs: Sequence[RunFiles]) -> list[str]:
    found = []
    for run in runs:
        backbone = readable(run.field("network", "backbone") or "", 60)
        weights = str(run.field("network", "weights") or "none")
        if weights == "none":
            continue
        if weights != "imagenet":
            found.append(
                f"{backbone} began with the weights {readable(Path(weights).name, 60)}; whether these had seen some of "
                "the images judged is not known here."
            )
        elif any(name in backbone for name in _SAW_THE_ARCHIVE):
            of, here = ("this very archive", "here") if _of_the_archive(run) else ("Google Landmarks v2", "on those")
            found.append(
                f"{backbone} was pretrained on images gathered around the landmarks of {of}: its numbers {here} "
                "are better than they would be elsewhere."
            )
        elif any(name in backbone for name in _SAW_THE_WEB):
            found.append(f"{backbone} was pretrained on images from the web, perhaps on some of these.")
        else:
            found.append(
                "Pretrained weights have seen images of the web; whether some of these were among them was not checked."
            )
    return found


def _of_the_archive(run: RunFiles) -> bool:
    return run.field("data", "set") in ARCHIVE_SETS


def _about_scope(runs: Sequence[RunFiles]) -> list[str]:
    found = []
    landmarks = max((len(run.labels) for run in runs), default=0)
    if 0 < landmarks < ARCHIVE_LANDMARKS:
        whole = f"; the whole archive has {ARCHIVE_LANDMARKS:,}" if all(map(_of_the_archive, runs)) else ""
        found.append(
            f"Only {plural(landmarks, 'landmark')} can be answered{whole}. Fewer are easier, and another choice of as "
            "many would have given another accuracy."
        )
    evaluated = [run for run in runs if run.evaluations]
    if unasked := [
        run.name for run in evaluated if not any(number(one.metrics.get("unknown")) for one in run.evaluations)
    ]:
        whose = "" if len(unasked) == len(evaluated) else f" of {_listed(unasked)}"
        found.append(
            f"Every image judged{whose} shows one of the known landmarks. What happens with an image of "
            "anything else was not measured: the network will name a landmark all the same."
        )
    found.append("Labels are taken as they were given. Where they are wrong, a right answer counts as a mistake.")
    return found


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
