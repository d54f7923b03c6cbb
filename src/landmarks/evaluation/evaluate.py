"""The verb `evaluate`: answer the images of a split, write the answers down, and compute every number from them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.dataset.manifest import NO_LABEL, Dataset, open_dataset
from landmarks.evaluation.exported import MeasuredExport, open_measured
from landmarks.evaluation.neighbours import neighbour_numbers
from landmarks.evaluation.predictions import (
    Arrays,
    arrays_of,
    bytes_of,
    name_of,
    read_predictions,
    with_truth,
    write_predictions,
)
from landmarks.evaluation.results import Evaluation, evaluation_of
from landmarks.evaluation.submission import write_metrics, write_submission
from landmarks.evaluation.unknown import choose_threshold, halves_of, require_rate
from landmarks.recognition.known_scores import MSP, KnownRule
from landmarks.recognition.recogniser import CLASSIFIER, Recogniser, load, require_by
from landmarks.recognition.unknown_images import LEAST_IMAGES, MAX_IMAGES, UnknownImages, key_of, write_unknown
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError, UsageError, naming_the_extra
from landmarks.support.files import held, refuse_other_kind
from landmarks.support.places import Place
from landmarks.support.tables import CSV_ENDINGS, write_csv
from landmarks.training.eligible_images import EligibleImages, eligible_images, near_duplicates_of_training
from landmarks.training.own_data import find_own_dataset, find_seen, is_own_dataset, location_record, seen_rows
from landmarks.training.run import Run


def evaluate(
    run: Place,
    *,
    data: Place | None = None,
    split: str = "test",
    unknown: Place | None = None,
    false_acceptance: float | None = None,
    submission: Place | None = None,
    wrong: Place | None = None,
    by: str | None = None,
    retrieval: bool = False,
    references: Place | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> Evaluation:
    """Evaluate `run` on a split of its own dataset, or of `data`, and return the numbers.

    `run` is a run's folder, or an export, which is measured itself: on `data`, and into `NAME.evaluation` beside it.

    Writes `predictions/<name>.parquet`, then from it `metrics/<name>.json` and two tables beside; `<name>` is the
    split, or comes from the folder name of `data` (see `name_of`). A dataset without splits is evaluated whole. Which
    images are judged, and how landmarks are matched, is decided by `ask`.
    `unknown` is a dataset whose images all count as unknown, whatever they show, beside those of the split.
    `false_acceptance` chooses the rule that tells known from unknown, and stores it with the model for `predict`;
    `submission` is a file to write the split's answers to in the challenge's form, `wrong` a CSV for the images that
    were answered wrong, the surest answers first (columns: see `wrong_answers`). `by` is who answers: classifier,
    neighbours or both; without it what validation chose, which is done now where the run remembers its images or comes
    to, and kept. What another answers is called `<name>-by-<by>`. `retrieval` adds recall and GAP by the nearest
    remembered images, `references`, a dataset, mAP@100 among its images too. `device` is auto, cpu, cuda or mps.
    Raises `LandmarksError` when the run knows none of the dataset's landmarks or has seen all of its images, and
    when its own was divided anew.
    """
    if Path(run).suffix.lower() == ".csv" and Path(run).is_file():
        raise UsageError(
            f"{run} is a CSV file",
            expected="a run's folder, or an export",
            way_out="landmarks score SUBMISSION.csv SOLUTION.csv measures a submission of the challenge",
        )
    require_by(by)
    opened = open_measured(run)
    if isinstance(opened, MeasuredExport):
        _require_data(opened, data, false_acceptance, by)
    elif by is not None and false_acceptance is not None:
        raise UsageError(
            "a threshold is chosen for answers as validation chose them", received=f"by {by}", way_out="leave out --by"
        )
    _require_what_comes_later(submission, wrong, (unknown, references), false_acceptance)
    eligible = eligible_images(opened, data, split)
    _tell_what_weakens(opened, eligible)
    with held(opened.folder):
        started = time.monotonic()
        name = name_of(opened, eligible)
        strangers = bool(with_truth(eligible.images, eligible.labels)["truth"].list.len().eq(0).any())
        own = eligible.dataset if eligible.own else None
        recogniser = prepare(
            opened,
            batch_size,
            remember=strangers or retrieval or unknown is not None,
            own=own,
            by=by,
            anew=false_acceptance is not None,
            device=device,
        )
        if by is not None and by != (recogniser.choice.by if recogniser.choice else CLASSIFIER):
            name = f"{name}-by-{by}"
        if false_acceptance is not None and unknown is None:
            recogniser = remember_unknown(opened, eligible, recogniser)
        path = write_predictions(opened, eligible, name, recogniser, batch_size=batch_size)
        predictions = read_predictions(path)
        judged = arrays_of(predictions)
        about: dict[str, Any] = {"name": name, "run": opened.name, **_about(opened, eligible)}
        arrays = judged
        if unknown is not None:
            together, about["unknown_data"] = with_unknown(
                predictions, opened, eligible, unknown, recogniser=recogniser, batch_size=batch_size
            )
            arrays = arrays_of(together)
        if retrieval or references is not None:
            about |= neighbour_numbers(opened, eligible, recogniser, references)
        about |= {"by": recogniser.by, "temperature": recogniser.temperature, "seconds": time.monotonic() - started}
        numbers = write_metrics(opened.folder, opened.labels, arrays, about, verb="evaluate", inputs=opened.digest)
        if false_acceptance is not None:
            chosen = numbers["threshold"] = store_threshold(opened, arrays, false_acceptance, by=recogniser.by)
            recogniser = replace(recogniser, rule=KnownRule(**chosen["rule"]))
        if submission is not None:
            export_submission(opened, recogniser, judged, submission)
        if wrong is not None:
            listed = wrong_answers(opened, eligible, name)
            write_csv(wrong, listed)
            note(f"{plural(len(listed), 'image')} answered wrong, written to {wrong}")
    return evaluation_of(numbers)


def _tell_what_weakens(run: Run | MeasuredExport, eligible: EligibleImages) -> None:
    """Say what a reader must know of the images or the landmarks before believing a number."""
    if eligible.own and eligible.split in ("train", "val"):
        what = (
            "trained on these images"
            if eligible.split == "train"
            else "validated with these, which chose its best epoch"
        )
        note(f"{run.name} was {what}: the numbers say little about new images")
    elif kin := near_duplicates_of_training(eligible):
        note(
            f"{kin:,} of the {len(eligible.images):,} images are near-duplicates of ones that {run.name} was trained on"
            " or validated with, as the split parts them: the numbers say less about new images"
            f" (landmarks split {eligible.dataset.folder} --anew keeps them together)"
        )
    shown = with_truth(eligible.images, eligible.labels)["truth"].explode(empty_as_null=False).n_unique()
    if 0 < shown < len(run.labels):
        rest = plural(len(run.labels) - shown, "landmark")
        note(f"not judged, as no image here shows any: {rest} of the {len(run.labels):,} that {run.name} answers")
    if (answered := len(run.labels)) <= 5:
        note(f"{run.name} answers {answered} landmarks, which are all among the best five: top5 says nothing")


def _require_what_comes_later(
    submission: Place | None, wrong: Place | None, datasets: Sequence[Place | None], false_acceptance: float | None
) -> None:
    """Raise for tables that cannot be written, datasets that cannot be opened and a rate that cannot be: before all."""
    tables = [Path(csv) for csv in (submission, wrong) if csv is not None]
    for table in tables:
        refuse_other_kind(table, *CSV_ENDINGS)
    if len({table.resolve() for table in tables}) < len(tables):
        raise UsageError("two tables cannot be one file", received=f"{submission} twice", way_out="name another one")
    for data in datasets:
        if data is not None:
            open_dataset(data)
    if false_acceptance is not None:
        require_rate(false_acceptance)


def _require_data(export: MeasuredExport, data: Place | None, false_acceptance: float | None, by: str | None) -> None:
    if by is not None:
        raise UsageError(f"{export.name} is an export, which answers as its run did when it was written", received=by)
    if data is None:
        raise UsageError(f"{export.name} is an export and has no dataset of its own", expected="--data DATA")
    if false_acceptance is not None:
        raise UsageError(
            f"{export.name} is an export, whose threshold cannot be changed",
            way_out="choose it for the run (landmarks evaluate RUN --false-acceptance RATE), then export the run again",
        )


def wrong_answers(run: Run | MeasuredExport, eligible: EligibleImages, name: str) -> pl.DataFrame:
    """Return the images of `eligible` that the predictions called `name` get wrong, the surest answer first.

    Columns: image_id, file (the image, or the TAR that holds IMAGE_ID.jpg), shows, answer, probability, title.
    """
    places = eligible.dataset.images.select("image_id", "title", "shard")
    files = pl.col("shard").map_elements(eligible.dataset.place_of, return_dtype=pl.String)
    wrong = (
        Run(run.folder, {}, run.labels)
        .predictions(name)
        .filter(pl.col("correct").not_())
        .join(places, on="image_id", how="left")
    )
    told = wrong.select(
        "image_id", files.alias("file"), pl.col("shows").list.join(", "), "answer", "probability", "title"
    )
    return told.sort(["probability", "image_id"], descending=[True, False])


def _about(run: Run, eligible: EligibleImages) -> dict[str, Any]:
    """Return what a record of numbers says about the images: where they lie, and what was decided on the way."""
    place = location_record(eligible.dataset.folder, beside=run.folder)
    told = {"data": place["folder"], "split": eligible.split, **eligible.record()}
    return told | ({"data_relative": place["relative"]} if "relative" in place else {})


def with_unknown(
    predictions: pl.DataFrame,
    run: Run,
    judged: EligibleImages,
    data: Place,
    *,
    recogniser: Recogniser,
    batch_size: int,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return `predictions` with those of all images of the dataset `data`, which show nothing known.

    With it comes the record of these. What the run has seen is left out, and what is among the `judged` images.
    Public and Private are forgotten, since these are neither: halves of the groups take their place.
    """
    eligible = eligible_images(run, data, "all", any_landmarks=True)
    twice = find_seen(eligible.images, seen_rows(judged.images, "judged"))
    if len(twice):
        note(f"{len(twice)} of the {len(eligible.images)} images of {data} are among those judged, and left out")
        eligible = replace(
            eligible, images=eligible.images.join(twice, on="image_id", how="anti", maintain_order="left")
        )
    if not len(eligible.images):
        raise LandmarksError(f"every image of {data} is judged already", way_out="name images of other things")
    known = eligible.images.join(eligible.labels, on="landmark_id", how="semi")
    called = f"; {len(known)} of them are said to show a landmark that {run.name} knows" if len(known) else ""
    note(f"{plural(len(eligible.images), 'image')} of {data} count as unknown{called}")
    name = name_of(run, eligible)
    path = write_predictions(run, eligible, name, recogniser, batch_size=batch_size)
    taken, nothing = predictions["image_id"].to_list(), pl.lit([], dtype=pl.List(pl.UInt32))
    apart = pl.when(pl.col("image_id").is_in(taken)).then(pl.format(f"{{}} ({name})", "image_id")).otherwise("image_id")
    strangers = read_predictions(path).with_columns(image_id=apart, truth=nothing, truth_score=None, group=None)
    together = pl.concat([predictions, strangers], how="vertical_relaxed").sort("image_id")
    return together.with_columns(usage=pl.lit(None, pl.String)), _about(run, eligible)


def prepare(
    run: Run,
    batch_size: int,
    *,
    remember: bool,
    own: Dataset | None = None,
    by: str | None = None,
    anew: bool | None = None,
    device: str = "auto",
) -> Recogniser:
    """Return the run's network, tempered on its validation images; with `remember`, knowing its training ones too.

    Both come from the run's dataset (`own`, where it is open already), while that is there. They are the images
    that the run was validated with and trained on, whatever splits these are in now. It answers `by` classifier,
    neighbours or both, see `measured_by`; with `anew`, which may be false, it is chosen which where it is not yet.
    """
    if isinstance(run, MeasuredExport):
        return load(run.export.path)
    with naming_the_extra(f"evaluating the run {run.name}"):
        from landmarks.recognition.choosing import measured_by
        from landmarks.recognition.gallery import ensure_gallery, open_gallery
        from landmarks.recognition.trained import ensure_temperature, open_recogniser
    recogniser = open_recogniser(run, device=device)
    own = own or _own_to_fit_on(run)
    if own is not None:
        recogniser = ensure_temperature(run, own, recogniser, batch_size)
    gallery = open_gallery(run)
    if gallery is None and remember and own is not None:
        gallery = ensure_gallery(run, recogniser.trained, own, batch_size)
    recogniser = replace(recogniser, gallery=gallery)
    may_choose = anew is not None and own is not None
    return measured_by(run, recogniser, by, may_choose=may_choose, anew=bool(anew), device=device)


def _own_to_fit_on(run: Run) -> Dataset | None:
    try:
        own = find_own_dataset(run)
    except LandmarksError as error:
        note(f"nothing new is fitted: {error}")
        return None
    if run.seen is None and not is_own_dataset(run, own):
        note(f"nothing new is fitted: {own.folder} is not as it was, and what {run.name} was trained on is not known")
        return None
    return own


def remember_unknown(run: Run, eligible: EligibleImages, recogniser: Recogniser) -> Recogniser:
    """Return `recogniser` remembering, as its run does from now on, the unknown images that a threshold is chosen on.

    As it was where it remembers no training images, or where the unknown ones are too few.
    """
    from landmarks.recognition.directions import directions
    from landmarks.recognition.gallery import with_unknown_images

    images = with_truth(eligible.images, eligible.labels).sort("image_id")
    halves = halves_of(images["usage"].to_numpy(), images["group"].cast(pl.Int64).fill_null(NO_LABEL).to_numpy())
    chosen = images.filter(pl.Series(halves.chosen) & (pl.col("truth").list.len() == 0))
    if recogniser.gallery is None or len(chosen) < LEAST_IMAGES:
        return recogniser
    chosen = chosen.sample(min(MAX_IMAGES, len(chosen)), seed=0).sort("image_id")
    note(f"remembering {plural(len(chosen), 'image')} of nothing known from {halves.chosen_on}")
    vectors = directions(recogniser.embed(bytes_of(eligible.dataset, chosen))).astype(np.float16)
    keys = tuple(key_of(eligible.dataset.content_digest, id) for id in chosen["image_id"])
    unknown = UnknownImages(vectors, keys)
    write_unknown(run.folder, unknown, run.digest)
    return replace(recogniser, gallery=with_unknown_images(recogniser.gallery, unknown))


def store_threshold(run: Run, arrays: Arrays, false_acceptance: float, *, by: str) -> dict[str, Any]:
    """Choose how images of nothing known are told, and keep it in the run's `model.json`, with who answered them."""
    from landmarks.recognition.trained import update_model

    halves = halves_of(arrays.usage, arrays.groups)
    chosen = {**choose_threshold(arrays.all_scores, arrays.truth.known, halves, false_acceptance), "by": by}
    update_model(run, rejection=chosen)
    return chosen


def export_submission(run: Run, recogniser: Recogniser, arrays: Arrays, path: Place) -> None:
    """Write the best answers in the challenge's form, scored by the rule that the model keeps, else by probability."""
    rule = recogniser.rule or KnownRule(MSP, {MSP: 1.0})
    if isinstance(run, MeasuredExport):  # whose graph has applied the rule
        rule = KnownRule(rule.name, {rule.name: 1.0})
    landmark_ids = run.labels["landmark_id"].gather(arrays.labels[:, 0])
    scores = pl.Series(rule.apply(arrays.all_scores))
    write_submission(path, pl.Series(arrays.ids, dtype=pl.String), landmark_ids, scores)
    note(f"{len(arrays.ids)} answers written to {path}, scored by {rule.name}")
