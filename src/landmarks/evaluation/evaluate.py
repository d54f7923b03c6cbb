"""The verb `evaluate`: answer the images of a split, store the answers, and compute every number from them."""

from __future__ import annotations

import contextlib
import glob
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from landmarks.dataset.manifest import NO_LABEL, Dataset, open_dataset
from landmarks.dataset.shards import require_images
from landmarks.evaluation.measure import choose_threshold, require_rate, threshold_parts
from landmarks.evaluation.predictions import (
    ExportAsRun,
    PredictionArrays,
    evaluation_name,
    key_of,
    open_run_or_export,
    prediction_arrays,
    read_predictions,
    stored_bytes,
    with_truth,
    write_predictions,
)
from landmarks.evaluation.results import Evaluation, evaluation_of
from landmarks.evaluation.retrieval import neighbour_numbers
from landmarks.evaluation.submission import SUBMISSION, write_metrics, write_submission
from landmarks.recognition.answers import MSP, KnownRule
from landmarks.recognition.recogniser import CLASSIFIER, Recogniser, load, require_by
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError, UsageError, naming_the_extra
from landmarks.support.files import held, require_writable
from landmarks.support.places import Place, in_shell
from landmarks.support.tables import refuse_other_csv, write_csv
from landmarks.training.eligible_images import NAMED, EligibleImages, eligible_images, near_duplicates_of_training
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

    `run` is a run's folder or an export. An export is evaluated on `data`, and its results go to the folder
    `NAME.evaluation` beside it.

    Writes `predictions/<name>.parquet` and, computed from it, `metrics/<name>.json` and two tables. `<name>` is the
    split, or comes from the folder name of `data` (see `evaluation_name`). A dataset without splits is evaluated as a
    whole. `eligible_images` decides which images are judged and how landmarks are matched.

    All images of the dataset `unknown` are judged too and count as unknown, whatever they show. `false_acceptance`
    chooses the rule that separates known from unknown images, and stores it with the model for `predict`. `submission`
    is a file for the split's answers in the challenge's form. `wrong` is a CSV for the misclassified images, most
    confident first (columns: see `misclassified_images`).
    `by` is the way of answering: classifier, neighbours or both. The default is the one that validation chose; a run
    that has a gallery but no choice yet makes it now and stores it. Results of any other way are called
    `<name>-by-<by>`. `retrieval` adds recall and GAP by the nearest images of the gallery, and the dataset `references`
    adds mAP@100 among its images. `device` is auto, cpu, cuda or mps.

    Raises `LandmarksError` when the run knows none of the dataset's landmarks, when it has seen all of the images, and
    when its own dataset has been split again since.
    """
    if Path(run).suffix.lower() == ".csv" and Path(run).is_file():
        raise UsageError(
            f"{run} is a CSV file",
            expected="a run's folder, or an export",
            way_out="landmarks score SUBMISSION.csv SOLUTION.csv measures a submission of the challenge",
        )
    require_by(by)
    opened = open_run_or_export(run)
    if isinstance(opened, ExportAsRun):
        _require_data(opened, data, false_acceptance, by)
    elif by is not None and false_acceptance is not None:
        raise UsageError(
            "a threshold is chosen for answers as validation chose them", received=f"by {by}", way_out="leave out --by"
        )
    _check_arguments(submission, wrong, unknown, references, false_acceptance)
    eligible = eligible_images(opened, data, split)
    _note_caveats(opened, eligible)
    others = None if unknown is None else _eligible_unknown(opened, eligible, unknown)
    with held(opened.folder):
        started = time.monotonic()
        name = evaluation_name(opened, eligible)
        if not any((opened.folder / "predictions").glob(f"{glob.escape(name)}*.parquet")):
            require_images(eligible.dataset, eligible.images["shard"], "evaluate")
        has_unknown = bool(with_truth(eligible.images, eligible.labels)["truth"].list.len().eq(0).any())
        recogniser = prepare_recogniser(
            opened,
            batch_size,
            needs_gallery=has_unknown or retrieval or unknown is not None,
            own=eligible.dataset if eligible.own else None,
            by=by,
            choose_again=false_acceptance is not None,
            device=device,
        )
        _note_learned(opened)
        if by is not None and by != (recogniser.choice.by if recogniser.choice else CLASSIFIER):
            name = f"{name}-by-{by}"
        if false_acceptance is not None and unknown is None:
            recogniser = remember_unknown(opened, eligible, recogniser)
        path = write_predictions(opened, eligible, name, recogniser, batch_size=batch_size)
        predictions = read_predictions(path)
        judged = prediction_arrays(predictions)
        about: dict[str, Any] = {"name": name, "run": opened.name, **_provenance(opened, eligible)}
        arrays = judged
        if others is not None:
            combined, about["unknown_data"] = with_unknown(
                predictions, opened, others, recogniser=recogniser, batch_size=batch_size
            )
            arrays = prediction_arrays(combined)
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
            misclassified = misclassified_images(opened, eligible, name)
            write_csv(wrong, misclassified)
            note(f"{plural(len(misclassified), 'image')} answered wrong, written to {wrong}")
    return evaluation_of(numbers)


def _note_caveats(run: Run | ExportAsRun, eligible: EligibleImages) -> None:
    """Say what makes the numbers less meaningful: images seen in training, landmarks without images, few landmarks."""
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
            f" (landmarks split {in_shell(eligible.dataset.folder)} --anew keeps them together)"
        )
    shown = with_truth(eligible.images, eligible.labels)["truth"].explode(empty_as_null=False).n_unique()
    if 0 < shown < len(run.labels):
        rest = plural(len(run.labels) - shown, "landmark")
        note(f"not judged, as no image here shows any: {rest} of the {len(run.labels):,} that {run.name} answers")
    if (answered := len(run.labels)) <= 5:
        note(f"{run.name} answers {answered} landmarks, which are all among the best five: top5 says nothing")


def _note_learned(run: Run | ExportAsRun) -> None:
    """Say that landmarks which a run has learned are not judged; those of an export are."""
    if isinstance(run, ExportAsRun):
        return
    from landmarks.recognition.closed_form import read_learned

    with contextlib.suppress(LandmarksError):  # what another network learned is not used either
        if names := read_learned(run.folder, run.digest).names:
            learned = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
            note(
                f"without the {plural(len(names), 'landmark')} that {run.name} has learned ({learned}): what is judged "
                "is its training; an export answers with them, and evaluate judges that too"
            )


def _check_arguments(
    submission: Place | None,
    wrong: Place | None,
    unknown: Place | None,
    references: Place | None,
    false_acceptance: float | None,
) -> None:
    """Raise, before any work, for tables that cannot be written, unreadable datasets and an impossible rate."""
    tables = [
        (Path(csv), names) for csv, names in ((submission, SUBMISSION.columns), (wrong, WRONG)) if csv is not None
    ]
    for table, columns in tables:
        refuse_other_csv(table, columns)
        require_writable(table)
    if len({table.resolve() for table, _ in tables}) < len(tables):
        raise UsageError("two tables cannot be one file", received=f"{submission} twice", way_out="name another one")
    if unknown is not None:
        open_dataset(unknown)
    if references is not None:
        dataset = open_dataset(references)
        require_images(dataset, dataset.images["shard"], "evaluate --references")
    if false_acceptance is not None:
        require_rate(false_acceptance)


def _require_data(export: ExportAsRun, data: Place | None, false_acceptance: float | None, by: str | None) -> None:
    if by is not None:
        raise UsageError(f"{export.name} is an export, which answers as its run did when it was written", received=by)
    if data is None:
        raise UsageError(f"{export.name} is an export and has no dataset of its own", expected="--data DATA")
    if false_acceptance is not None:
        raise UsageError(
            f"{export.name} is an export, whose threshold cannot be changed",
            way_out="choose it for the run (landmarks evaluate RUN --false-acceptance RATE), then export the run again",
        )


WRONG = ("image_id", "file", "shows", "answer", "probability", "title")
"""Columns of the table of wrong answers; `file` is the image, or the TAR that holds IMAGE_ID.jpg."""


def misclassified_images(run: Run | ExportAsRun, eligible: EligibleImages, name: str) -> pl.DataFrame:
    """Return the images of `eligible` that the predictions called `name` get wrong (`WRONG`), most confident first."""
    places = eligible.dataset.images.select("image_id", "title", "shard")
    files = pl.col("shard").map_elements(eligible.dataset.place_of, return_dtype=pl.String)
    wrong = (
        Run(run.folder, {}, run.labels)
        .predictions(name)
        .filter(pl.col("correct").not_())
        .join(places, on="image_id", how="left")
    )
    wrong = wrong.with_columns(files.alias("file"), pl.col("shows").list.join(", "))
    return wrong.select(WRONG).sort(["probability", "image_id"], descending=[True, False])


def _provenance(run: Run, eligible: EligibleImages) -> dict[str, Any]:
    """Return what a metrics file records about the images: where they are, and how they were selected and matched."""
    place = location_record(eligible.dataset.folder, relative_to=run.folder)
    record = {"data": place["folder"], "split": eligible.split, **eligible.record()}
    return record | ({"data_relative": place["relative"]} if "relative" in place else {})


def _eligible_unknown(run: Run, judged: EligibleImages, data: Place) -> EligibleImages:
    """Return all images of the dataset `data`, which count as unknown, without any seen by the run or among `judged`.

    Raises `LandmarksError` if none is left.
    """
    eligible = eligible_images(run, data, "all", any_landmarks=True)
    repeated = find_seen(eligible.images, seen_rows(judged.images, "judged"))
    if len(repeated):
        note(f"{len(repeated)} of the {len(eligible.images)} images of {data} are among those judged, and left out")
        eligible = replace(
            eligible, images=eligible.images.join(repeated, on="image_id", how="anti", maintain_order="left")
        )
    if not len(eligible.images):
        raise LandmarksError(f"every image of {data} is judged already", way_out="name images of other things")
    known = eligible.images.join(eligible.labels, on="landmark_id", how="semi")
    labelled = f"; {len(known)} of them are said to show a landmark that {run.name} knows" if len(known) else ""
    note(f"{plural(len(eligible.images), 'image')} of {data} count as unknown{labelled}")
    return eligible


def with_unknown(
    predictions: pl.DataFrame, run: Run, eligible: EligibleImages, *, recogniser: Recogniser, batch_size: int
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return `predictions` with those of the images `eligible`, counted as unknown, and the provenance of these.

    The column `usage` is emptied, because the added images are neither Public nor Private: thresholds are then chosen
    and reported on halves of the groups.
    """
    name = evaluation_name(run, eligible)
    path = write_predictions(run, eligible, name, recogniser, batch_size=batch_size)
    used_ids, nothing = predictions["image_id"].to_list(), pl.lit([], dtype=pl.List(pl.UInt32))
    renamed = pl.format(f"{{}} ({name})", "image_id")
    unique_id = pl.when(pl.col("image_id").is_in(used_ids)).then(renamed).otherwise("image_id")
    unknown = read_predictions(path).with_columns(image_id=unique_id, truth=nothing, truth_score=None, group=None)
    combined = pl.concat([predictions, unknown], how="vertical_relaxed").sort("image_id")
    return combined.with_columns(usage=pl.lit(None, pl.String)), _provenance(run, eligible)


def prepare_recogniser(
    run: Run,
    batch_size: int,
    *,
    needs_gallery: bool,
    own: Dataset | None,
    by: str | None,
    choose_again: bool,
    device: str,
) -> Recogniser:
    """Return the run's recogniser with a fitted temperature and, with `needs_gallery`, a gallery.

    Both are computed where they are missing, from the images that the run was validated with and trained on, whatever
    splits these are in now; `own` is the run's dataset where it is open already. Without that dataset nothing is added.
    The recogniser answers `by` classifier, neighbours or both (see `measured_by`). With `choose_again` the run may
    change the way it has chosen, as its threshold is chosen again too.
    """
    if isinstance(run, ExportAsRun):
        return load(run.export.path)
    with naming_the_extra(f"evaluating the run {run.name}"):
        from landmarks.recognition.gallery import ensure_gallery, open_gallery
        from landmarks.recognition.making_ready import measured_by
        from landmarks.recognition.trained import ensure_temperature, open_recogniser
    recogniser = open_recogniser(run, device=device)
    own = own or _dataset_to_fit_on(run)
    if own is not None:
        recogniser = ensure_temperature(run, own, recogniser, batch_size)
    gallery = open_gallery(run)
    if gallery is None and needs_gallery and own is not None:
        gallery = ensure_gallery(run, recogniser.trained, own, batch_size)
    recogniser = replace(recogniser, gallery=gallery)
    return measured_by(run, recogniser, by, may_choose=own is not None, anew=choose_again, device=device)


def _dataset_to_fit_on(run: Run) -> Dataset | None:
    """Return the run's own dataset, or None, with a note, where it is gone or no longer as it was."""
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
    """Add the unknown images that a threshold is chosen on to the recogniser's gallery and to the run's, and return it.

    Nothing changes where there is no gallery or where there are too few unknown images.
    """
    from landmarks.recognition.gallery import (
        LEAST_UNKNOWN,
        MAX_UNKNOWN,
        UnknownImages,
        with_unknown_images,
        write_unknown,
    )
    from landmarks.recognition.vectors import directions

    images = with_truth(eligible.images, eligible.labels).sort("image_id")
    groups = images["group"].cast(pl.Int64).fill_null(NO_LABEL).to_numpy()
    parts = threshold_parts(images["usage"].to_numpy(), groups)
    unknown_images = images.filter(pl.Series(parts.chosen) & (pl.col("truth").list.len() == 0))
    if recogniser.gallery is None or len(unknown_images) < LEAST_UNKNOWN:
        return recogniser
    unknown_images = unknown_images.sample(min(MAX_UNKNOWN, len(unknown_images)), seed=0).sort("image_id")
    note(f"remembering {plural(len(unknown_images), 'image')} of nothing known from {parts.chosen_on}")
    vectors = directions(recogniser.embed(stored_bytes(eligible.dataset, unknown_images))).astype(np.float16)
    keys = tuple(key_of(eligible.dataset.content_digest, id) for id in unknown_images["image_id"])
    unknown = UnknownImages(vectors, keys)
    write_unknown(run.folder, unknown, run.digest)
    return replace(recogniser, gallery=with_unknown_images(recogniser.gallery, unknown))


def store_threshold(run: Run, arrays: PredictionArrays, false_acceptance: float, *, by: str) -> dict[str, Any]:
    """Choose the rule and threshold for unknown images, and store them in the run's `model.json`.

    `by` is the way of answering that the scores come from.
    """
    from landmarks.recognition.trained import update_model

    parts = threshold_parts(arrays.usage, arrays.groups)
    chosen = {**choose_threshold(arrays.all_scores, arrays.truth.known, parts, false_acceptance), "by": by}
    update_model(run, rejection=chosen)
    return chosen


def export_submission(run: Run, recogniser: Recogniser, arrays: PredictionArrays, path: Place) -> None:
    """Write the best answers in the challenge's form, scored by the model's stored rule, else by probability."""
    rule = recogniser.rule or KnownRule(MSP, {MSP: 1.0})
    if isinstance(run, ExportAsRun):  # its graph has applied the rule already
        rule = KnownRule(rule.name, {rule.name: 1.0})
    landmark_ids = run.labels["landmark_id"].gather(arrays.labels[:, 0])
    scores = pl.Series(rule.apply(arrays.all_scores))
    write_submission(path, pl.Series(arrays.ids, dtype=pl.String), landmark_ids, scores)
    note(f"{len(arrays.ids)} answers written to {path}, scored by {rule.name}")
