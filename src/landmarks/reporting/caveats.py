"""The page's caveats, derived from the runs' files, and the definitions of its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from landmarks.evaluation.measure import measured_names
from landmarks.reporting.report_tables import evaluation_on_test, trained_epochs
from landmarks.reporting.run_files import RunFiles
from landmarks.reporting.wording import bounds, heading, number, one_line, percentage
from landmarks.support.console import plural

ARCHIVE_LANDMARKS = 203_094
"""Landmarks in the archive's training set."""

SMALL_TEST = 1_000
"""Images below which the page warns of a small test set: with 1,000, 90 % is known to about ±2 points."""

ARCHIVE_SETS = ("train", "index", "test")
"""Values of `data.set` in the record of a dataset that was fetched from the archive."""

_SAW_THE_ARCHIVE = ("dinov2",)
_SAW_THE_WEB = ("clip", "siglip", "eva0", "webssl", "aimv2", "dinov3")

DEFINITIONS = {
    "test_accuracy": "Share of images kept out of training whose most probable answer is a landmark they show (top-1).",
    "validation_accuracy": "The same share of the validation images, in the epoch that was kept or judged later; "
    "its interval is Wilson's where it was not judged later.",
    "head_training_alone": "Validation accuracy of the best epoch of head training, with everything but the head "
    "unchanged.",
    "interval": "The smaller line below a share: the values that would be no surprise, at 95 %, if the same network "
    "met as many new images of the same kind.",
    "parameters": "Numbers in the network, the running statistics of its normalisation included, head included.",
    "image": "Side in pixels of the square that the network sees.",
    "gmacs": "Billions of multiply-adds for one image at the image size of the run; a multiplication and the "
    "addition that goes with it are one.",
    "epochs": "Passes over the training images: of head training (head alone) + of fine-tuning (everything), as far as "
    "there were both.",
    "time": "Of training, on the machine named with the run: features, head training and fine-tuning; cached features "
    "take no time.",
}
"""Definitions of the page's own numbers; an evaluation's numbers come with theirs."""

_NOT_SHOWN = ("images", "gap_of_known", "answered", "seconds", "accuracies")
"""Numbers that records define but the page does not show."""


def page_definitions(runs: Sequence[RunFiles]) -> list[tuple[str, str]]:
    """Return (heading, definition) of every number on the page; an evaluation's definition replaces the page's."""
    texts = {name: text for name, text in DEFINITIONS.items() if any(_has_number(run, name) for run in runs)}
    for run in runs:
        for evaluation in run.evaluations:
            present = measured_names(evaluation.metrics)
            definitions = _definitions(evaluation.metrics)
            texts |= {name: text for name, text in definitions.items() if name in present}
        for subsets in run.subsets:
            definitions = _definitions(subsets)
            texts |= {title: definitions[name] for name, title in _OF_SUBSETS.items() if name in definitions}
    return [(heading(name), one_line(text, 800)) for name, text in texts.items() if name not in _NOT_SHOWN]


_OF_SUBSETS = {"subsets": "draws_of_landmarks", "place": "place_among_the_draws"}
"""Numbers of `landmarks subsets` that need a definition on the page, and their names there."""


def _has_number(run: RunFiles, name: str) -> bool:
    """Return whether the page shows the number `name` of `DEFINITIONS` for a run."""
    tested = evaluation_on_test(run)
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


def _definitions(record: Mapping[str, object]) -> dict[str, str]:
    definitions = record.get("definitions")
    return {str(name): str(text) for name, text in definitions.items()} if isinstance(definitions, dict) else {}


def found_caveats(runs: Sequence[RunFiles]) -> list[str]:
    """Return the caveats of a page about `runs`, the most serious first."""
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
    """Say how a run answered, unless it was by the classifier alone."""
    found = []
    for run in runs:
        by: dict[str, list[str]] = {}
        for evaluation in run.evaluations:
            name = one_line(evaluation.name, 40)
            by.setdefault(str(evaluation.metrics.get("by", "classifier")), []).append(name)
        if set(by) - {"classifier"}:
            ways = ", ".join(f"{_listed(names)} by {_ANSWERING.get(way, way)}" for way, names in sorted(by.items()))
            difference = "; their accuracies are of different answers" if len(by) > 1 else ""
            found.append(f"Of {run.name}, {ways}{difference}.")
    return found


def _about_test(runs: Sequence[RunFiles]) -> list[str]:
    found = []
    untested = [run for run in runs if evaluation_on_test(run) is None]
    for has_test, template in ((False, "Nothing was kept apart to test {}"), (True, "{} {} not judged on test images")):
        concerned = [run for run in untested if run.has_test == has_test]
        if not concerned:
            continue
        text = template.format(_listed([run.name for run in concerned]), "was" if len(concerned) == 1 else "were")
        if all(_chose_an_epoch(run) for run in concerned):
            text += ": validation accuracy chose the epoch to keep, and is flattered by that"
        found.append(f"{text}.")
    sizes = {(test.known, test.name): test for run in runs if (test := evaluation_on_test(run))}
    for (images, name), test in sorted(sizes.items()):
        if images < SMALL_TEST:
            pair = bounds(test.metrics.get("top1"))
            width = f" ({100 * (pair[1] - pair[0]):.1f} points wide)" if pair else ""
            which = "The test set" if name == "test" else f"The test set {one_line(name, 40)}"
            found.append(
                f"{which} is small: {plural(images, 'image')} of known "
                f"landmarks. Differences within the interval{width} may be chance; single landmarks are rough."
            )
    return found


def _about_seen(runs: Sequence[RunFiles]) -> list[str]:
    """Say how many images were left out because a run had seen them in training."""
    found = []
    for run in runs:
        main = run.main
        seen = main.metrics.get("seen") if main else None
        count = number(seen.get("images")) if isinstance(seen, dict) else None
        if main and count:
            found.append(
                f"{plural(round(count), 'image')} of {one_line(main.name, 40)} were left out of the numbers of "
                f"{run.name}, because its training had seen them."
            )
    return found


def _chose_an_epoch(run: RunFiles) -> bool:
    """Return whether the run's epoch was chosen from several by validation accuracy."""
    if run.history is None:
        return run.field("best") is not None
    return run.history["val_accuracy"].count() > 1


def _about_comparison(runs: Sequence[RunFiles]) -> list[str]:
    if len(runs) < 2:
        return []
    found = []
    tests = [test for run in runs if (test := evaluation_on_test(run))]
    digests = {test.images_digest for test in tests}
    sets = {(test.name, test.known) for test in tests}
    if len(digests if "" not in digests else sets) > 1:
        listed = ", ".join(f"{one_line(name, 40)} ({count:,} known)" for name, count in sorted(sets))
        found.append(f"The runs were not tested on the same images ({listed}); their accuracies do not compare.")
    if _differ(runs, "data", "digest"):
        found.append("The runs were not trained on the same images, or not with the same split.")
    if _differ(runs, "network", "image_size"):
        found.append("The runs saw images of different sizes: part of a difference may be the size's.")
    return [*found, *_about_seeds(runs)]


def _differ(runs: Sequence[RunFiles], *keys: str) -> bool:
    return len({value for run in runs if (value := run.field(*keys)) is not None}) > 1


def _about_seeds(runs: Sequence[RunFiles]) -> list[str]:
    """Say what several seeds of one recipe reached, and which recipes were trained with one seed only."""
    recipes: dict[str, list[RunFiles]] = {}
    for run in runs:
        if (recipe := _recipe_without_seed(run)) is not None:
            recipes.setdefault(recipe, []).append(run)
    found, single = [], []
    for group in recipes.values():
        seeds = {run.field("recipe", "seed") for run in group}
        if len(seeds) == 1:
            single.append(group[0].name)
            continue
        text = f"{_listed([run.name for run in group])} differ in nothing but the seed"
        accuracies = [accuracy for run in group if (accuracy := run.val_accuracy) is not None]
        if len(accuracies) == len(group):
            low, high = percentage(min(accuracies)), percentage(max(accuracies))
            text += f": with it, validation accuracy lies between {low} and {high}"
        found.append(f"{text}.")
    if single:
        which = "Each run was trained with one seed" if not found else f"{_listed(single)}: trained with one seed"
        found.append(f"{which}; another alone would give another accuracy.")
    return found


def _recipe_without_seed(run: RunFiles) -> str | None:
    """Return everything that determines a run's training except its seed, as JSON; None where it is not known."""
    recipe = run.field("identity") or run.field("recipe")
    if not isinstance(recipe, dict):
        return None
    rest = {name: value for name, value in recipe.items() if name != "seed"}
    return json.dumps([rest, run.field("data", "digest")], sort_keys=True)


def _about_split(runs: Sequence[RunFiles]) -> list[str]:
    found = []
    for run in runs:
        split = run.field("data", "split") or {}
        rule, leakage = str(split.get("rule") or "").removeprefix("by "), _read_leakage(split.get("leakage"))
        pairs = leakage.get("straddling_pairs")
        if rule.startswith("random"):
            text = "The parts were drawn at random"
            if pairs is None:
                text += ": near-duplicates of training images may be among those of validation and test"
            elif pairs:
                text += ": near-duplicates of training images are among those of validation and test"
            else:
                text += ", and perceptual hashes find no near-duplicates on both sides"
            found.append(f"{text}{_in_brackets(leakage)}. Accuracy on images of another day may well be lower.")
        elif rule.startswith("group"):
            found.append(
                "Near-duplicates were kept in one split, as far as perceptual hashes find them"
                f"{_in_brackets(leakage)}; images of one visit that look less alike can still lie on both sides."
            )
        elif rule:
            text = f"The parts were taken as given ({one_line(rule.partition(';')[0])})"
            duplicates = "near-duplicates may lie on both sides" if pairs is None else "perceptual hashes find"
            found.append(f"{text}; {duplicates}{_in_brackets(leakage)}.")
    return found


def _read_leakage(leakage: object) -> dict[str, int]:
    """Return the counts of near-duplicates on both sides of a split, from its record; empty if it has none."""
    if isinstance(leakage, str):
        try:
            leakage = json.loads(leakage)
        except ValueError:
            return {}
    counts = leakage if isinstance(leakage, dict) else {"straddling_pairs": leakage}
    return {name: value for name, value in counts.items() if isinstance(value, int)}


def _in_brackets(leakage: Mapping[str, int]) -> str:
    if "straddling_pairs" not in leakage:
        return ""
    pairs = f"{plural(leakage['straddling_pairs'], 'near-duplicate pair')} on both sides"
    at_random = leakage.get("straddling_pairs_random")
    return f" ({pairs})" if at_random is None else f" ({pairs}, {at_random:,} in a random split)"


def _about_pretraining(runs: Sequence[RunFiles]) -> list[str]:
    found = []
    for run in runs:
        backbone = one_line(run.field("network", "backbone") or "", 60)
        weights = str(run.field("network", "weights") or "none")
        if weights == "none":
            continue
        if weights != "imagenet":
            found.append(
                f"{backbone} began with the weights {one_line(Path(weights).name, 60)}; whether these had seen some of "
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
        archive = f"; the whole archive has {ARCHIVE_LANDMARKS:,}" if all(map(_of_the_archive, runs)) else ""
        found.append(
            f"Only {plural(landmarks, 'landmark')} can be answered{archive}. Fewer are easier, and another choice of "
            "as many would have given another accuracy."
        )
    evaluated = [run for run in runs if run.evaluations]
    if without_unknown := [
        run.name for run in evaluated if not any(number(each.metrics.get("unknown")) for each in run.evaluations)
    ]:
        whose = "" if len(without_unknown) == len(evaluated) else f" of {_listed(without_unknown)}"
        found.append(
            f"Every image judged{whose} shows one of the known landmarks. What happens with an image of "
            "anything else was not measured: the network will name a landmark all the same."
        )
    found.append("Labels are taken as they were given. Where they are wrong, a right answer counts as a mistake.")
    return found


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
