"""The verb `reproduce`: train the study's networks by its own protocol and by a corrected one.

Everything is in one folder, and works with the other verbs:

    data/random, data/group      the images as divided by each protocol, by reference
    study/NETWORK                runs by the study's protocol
    corrected/NETWORK            runs by the corrected protocol
    study.json, study.csv        the table of results, written anew after every training
    report.html, figures/        the report about all runs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import SPLIT_FILE, SPLITS, Dataset, open_dataset
from landmarks.dataset.naming import identified_by, match_landmarks
from landmarks.evaluation.evaluate import evaluate
from landmarks.explanation.explain import explain
from landmarks.reporting.page import report, study_numbers
from landmarks.reporting.report_tables import trained_epochs
from landmarks.reporting.run_files import RunFiles, read_run_files
from landmarks.study.protocol import (
    DROPPED,
    IMAGES,
    IN_THE_TABLE,
    LANDMARKS,
    PROTOCOLS,
    TEST,
    VAL,
    Attempt,
    Protocol,
    attempts,
    by_reference,
    differences_from_study,
    divided,
    published,
    weights_problem,
)
from landmarks.support.console import command_options, note, plural, run_step
from landmarks.support.errors import BusyError, LandmarksError, StaleError
from landmarks.support.files import digest_of, held, read_record, refuse_foreign, write_record
from landmarks.support.places import Place
from landmarks.support.tables import read_metadata, read_table, write_csv
from landmarks.training.machine import free_memory, is_out_of_memory
from landmarks.training.run import RECORD as RUN_RECORD
from landmarks.training.run import open_run
from landmarks.training.train import train

HEAT_MAPS = 12
"""Number of images explained, with the run that is best on validation."""


def reproduce(
    data: Place,
    out: Place = "reproduction",
    *,
    test: Place | None = None,
    networks: str | Sequence[str] = IN_THE_TABLE,
    image_size: int | None = None,
    epochs: int | None = None,
    weights: str | Mapping[str, Place] = "imagenet",
    seed: int = 0,
) -> dict[str, Any]:
    """Train and evaluate `networks` on `data` by both protocols; return the table of results as a record.

    The record is that of `study.json` (see `landmarks.reporting.page`), with the path of the page as `report`.
    Every run is also evaluated on the dataset `test`, if given, with the same images for both protocols. `weights` is
    `imagenet`, `none` or a mapping from network to file; `epochs` are those of fine-tuning. When it was stopped and is
    called again, it continues without repeating finished trainings. When a network cannot be trained, its rows have the
    reason as `why`, and the others are trained.

    Raises:
        UsageError: a name is unknown.
        StaleError: `out` holds a reproduction with other settings.
        LandmarksError: `data` cannot be trained on.
    """
    trainings = attempts(networks, weights, image_size=image_size, epochs=epochs, seed=seed)
    source, out = open_dataset(data), Path(out)
    settings = {"data": source.content_digest, "seed": seed, "image_size": image_size, "epochs": epochs}
    if test is not None:
        _require_shared_landmarks(source, open_dataset(test))
    refuse_another(out, settings)
    with held(out) as folder:
        test_set = None if test is None else _test_set(open_dataset(test), folder)
        study = Reproduction(folder, source, settings, trainings, test_set)
        study.write_table()
        datasets = _divide(study, seed)
        _fetch_weights(study)
        for attempt in trainings:
            if attempt.run(folder) not in study.failed:
                _train_or_note_failure(study, attempt, datasets[attempt.protocol])
            study.write_table()
        page = _report(study)
        return {**study.write_table(), "report": None if page is None else str(page)}


def _require_shared_landmarks(source: Dataset, test: Dataset) -> None:
    """Raise `LandmarksError` if no landmark of `test` is one of `source`, as the evaluations will match them."""
    ours, theirs = (identified_by(dataset.record, dataset.labels) for dataset in (source, test))
    if not match_landmarks(source.labels, ours, test.labels, theirs).matched:
        known = plural(len(source.labels), "landmark")
        raise LandmarksError(f"{test.folder} shows none of the {known} of {source.folder}")


def _test_set(test: Dataset, folder: Path) -> Dataset:
    """Return a dataset that refers to all images of `test`, in a folder that is not named as a split."""
    name = test.folder.resolve().name
    reserved = (*SPLITS, "all", *(protocol.by for protocol in PROTOCOLS))
    return by_reference(test, folder / "data" / (f"{name}-set" if name in reserved else name))


def _divide(study: Reproduction, seed: int) -> dict[Protocol, Dataset]:
    """Divide the images for each protocol; a protocol that has too few is left out. Raise an error if all have."""
    datasets, last_error = {}, None
    for protocol in PROTOCOLS:
        try:
            datasets[protocol] = divided(study.source, study.folder / "data" / protocol.by, protocol, seed)
        except BusyError:
            raise
        except LandmarksError as error:
            last_error = error
            _fail(study, [attempt for attempt in study.attempts if attempt.protocol == protocol], str(error))
    if last_error and not datasets:
        raise last_error
    return datasets


def _fetch_weights(study: Reproduction) -> None:
    """Fetch all weights before anything is trained; networks without available weights are left out."""
    runs = {attempt.run(study.folder): attempt for attempt in study.attempts}
    unfinished = [
        attempt for run, attempt in runs.items() if run not in study.failed and not (run / RUN_RECORD).exists()
    ]
    for network, start in dict.fromkeys((attempt.network, attempt.settings["weights"]) for attempt in unfinished):
        if problem := weights_problem(network, start):
            _fail(study, [attempt for attempt in unfinished if attempt.network == network], problem)


def _fail(study: Reproduction, attempts: list[Attempt], why: str) -> None:
    names = [f"{attempt.protocol.name}/{attempt.network}" for attempt in attempts]
    note(f"left out: {', '.join(names)}, as {why}")
    study.failed.update((attempt.run(study.folder), why) for attempt in attempts)


def _train_or_note_failure(study: Reproduction, attempt: Attempt, dataset: Dataset) -> None:
    """Train and evaluate one network, unless that is done; note the reason when it fails."""
    try:
        _train_and_evaluate(attempt.run(study.folder), attempt.settings, dataset, study.test_set)
        return
    except BusyError:
        raise
    except LandmarksError as error:
        why = str(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        why = "out of memory, even with one image at a time"
    _fail(study, [attempt], why)
    free_memory()


def _train_and_evaluate(run: Path, settings: dict[str, Any], dataset: Dataset, test_set: Dataset | None) -> None:
    run_step(["train", dataset.folder, "-o", run, *command_options(settings)], train, dataset.folder, run, **settings)
    for name in ("val", "test"):
        if not _is_evaluated(run, dataset, name):
            run_step(["evaluate", run, "--split", name], evaluate, run, split=name, by="classifier")
    if test_set is not None and not _is_evaluated(run, test_set, test_set.folder.name):
        run_step(["evaluate", run, "--data", test_set.folder], evaluate, run, data=test_set.folder, by="classifier")


def _is_evaluated(run: Path, dataset: Dataset, name: str) -> bool:
    """Return whether a run has been evaluated with its current weights on the current images of `dataset`."""
    metrics, predictions = run / "metrics" / f"{name}.json", run / "predictions" / f"{name}.parquet"
    if not (metrics.exists() and predictions.exists()):
        return False
    data_digest = read_metadata(predictions).get("data_digest")
    return read_record(metrics)["inputs"] == open_run(run).digest and data_digest == dataset.digest


def _report(study: Reproduction) -> Path | None:
    """Draw heat maps of the run that is best on validation, and write the page about all runs."""
    runs = [run for attempt in study.attempts if (run := attempt.run(study.folder)) not in study.failed]
    if not runs:
        return None
    best = min(read_run_files(runs), key=lambda run: (-(run.val_accuracy or 0.0), run.name)).folder
    index = best / "maps" / "index.json"
    if not index.exists() or read_record(index)["inputs"] != open_run(best).digest:
        try:
            run_step(["explain", best, "--count", HEAT_MAPS], explain, best, count=HEAT_MAPS)
        except LandmarksError as error:
            note(f"no heat maps: {error}")
    page, table = study.folder / "report.html", study.folder / RECORD
    written: Path = run_step(["report", *runs, "-o", page, "--study", table], report, runs, page, study=table)
    return written


# The record of a reproduction, `study.json`, and the same numbers as `study.csv`; both are written after every step.


RECORD = "study.json"
"""A folder with this file is a reproduction, finished or not."""

NOT_YET = "not trained yet"
"""The `why` of an attempt that is still to come."""

MEASURED = ("run", "parameters", "image_size", "epochs", "validation", "test", "test_set", "head", "seconds")
"""Keys of a row of the table that are None until the run is finished."""


@dataclass(frozen=True)
class Reproduction:
    """The reproduction in `folder`: its data, settings and attempts, and the failures so far."""

    folder: Path
    source: Dataset
    settings: Mapping[str, Any]  # with others, it would be another reproduction
    attempts: list[Attempt]
    test_set: Dataset | None  # on which every run is evaluated in addition to its own splits
    failed: dict[Path, str] = field(default_factory=dict)  # folder of a run → why it failed

    def write_table(self) -> dict[str, Any]:
        """Write the current table as a record and as a CSV; return the record."""
        name = self.test_set.folder.name if self.test_set else None
        record = {
            "settings": dict(self.settings),
            "data": str(self.source.folder.resolve()),
            "landmarks": len(self.source.labels),
            "images": len(self.source.images),
            "test_set": name,
            "protocols": {protocol.name: protocol.meaning for protocol in PROTOCOLS},
            "notes": self._notes(name),
            "rows": [self._row(attempt, name) for attempt in self.attempts],
        }
        write_record(self.folder / RECORD, record, verb="reproduce", inputs=self.source.content_digest)
        write_csv(self.folder / "study.csv", study_numbers(record))
        return record

    def _row(self, attempt: Attempt, test_set: str | None) -> dict[str, Any]:
        run = attempt.run(self.folder)
        protocol, why = attempt.protocol, self.failed.get(run, "")
        row: dict[str, Any] = {
            "network": attempt.network,
            "protocol": protocol.name,
            "published": published(attempt.network) if protocol == PROTOCOLS[0] else None,
            "changed": differences_from_study(attempt),
        }
        if why or not (run / RUN_RECORD).exists():
            return {**row, **dict.fromkeys(MEASURED), "why": why or NOT_YET}
        (files,) = read_run_files([run])
        epochs = trained_epochs(files)
        measured = {
            "run": str(run.relative_to(self.folder)),
            "parameters": files.field("network", "parameters"),
            "image_size": files.field("network", "image_size"),
            "epochs": None if epochs is None else list(epochs),
            "validation": _top1(files, "val"),
            "test": _top1(files, "test"),
            "test_set": _top1(files, test_set),
            "head": files.field("head", "val_accuracy"),
            "seconds": files.field("seconds", "total"),
        }
        return {**row, **measured, "why": ""}

    def _notes(self, test_set: str | None) -> list[str]:
        """Return the notes to read before comparing the rows."""
        notes = [
            f"The study drew {LANDMARKS} landmarks with {IMAGES:,} images; here there are "
            f"{len(self.source.labels):,} with {len(self.source.images):,}. Of the study's figures only those of "
            "Xception are known here.",
            f"Of each landmark {100 * VAL:.0f} % of the images are validation and {100 * TEST:.0f} % test; the "
            "study's shares are not known here, nor is all of its recipe (landmarks.training.recipes tells).",
        ]
        digests = self._test_split_digests()
        if len(digests) > 1:
            differ = len(set(digests)) > 1
            common = f"; those of {test_set} are the same for both" if test_set and differ else ""
            notes.append(f"The two protocols test on {'different' if differ else 'the same'} images{common}.")
        if dropped := [attempt.network for attempt in self.attempts if attempt.network in DROPPED]:
            names = " and ".join(dict.fromkeys(dropped))
            notes.append(f"The study gave up {names} as too large for its memory: there is nothing to compare with.")
        if omitted := [name for name in IN_THE_TABLE if name not in {attempt.network for attempt in self.attempts}]:
            notes.append(f"Not asked for, of the study's networks: {', '.join(omitted)}.")
        reasons: dict[str, list[str]] = {}
        for attempt in self.attempts:
            if why := self.failed.get(attempt.run(self.folder)):
                reasons.setdefault(why, []).append(f"{attempt.protocol.name}/{attempt.network}")
        notes += [f"Not done: {', '.join(attempts)}, as {why}." for why, attempts in reasons.items()]
        return notes

    def _test_split_digests(self) -> list[str]:
        """Return a digest of the test split of each protocol whose data has been divided."""
        splits = [self.folder / "data" / protocol.by / SPLIT_FILE for protocol in PROTOCOLS]
        tables = [read_table(split) for split in splits if split.exists()]
        return [digest_of(table.filter(pl.col("split") == "test")["image_id"].sort().to_list()) for table in tables]


def _top1(run: RunFiles, name: str | None) -> dict[str, Any] | None:
    evaluation = run.evaluation(name) if name else None
    return None if evaluation is None else dict(evaluation.metrics["top1"])


def refuse_another(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise unless `folder` is new, empty, or holds a reproduction with the same `settings`."""
    refuse_foreign(folder, (RECORD,), "reproduction")
    recorded = read_record(folder / RECORD)["settings"] if (folder / RECORD).exists() else settings
    for name, value in settings.items():
        if recorded.get(name) != value:
            raise StaleError(
                f"{folder} holds another reproduction",
                received=f"{name} {value}",
                expected=f"{name} {recorded.get(name)}, with which it was begun",
                way_out="choose another folder with -o",
            )
