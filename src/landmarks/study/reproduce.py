"""The verb `reproduce`: the study's networks under its own protocol and under a corrected one, in one command.

Everything lies in one folder, and can be looked at, used or repeated with the other verbs:

    data/random, data/group      the images as each protocol divides them, by reference
    study/NETWORK                runs of the study's protocol
    corrected/NETWORK            runs of the corrected one
    study.json, study.csv        the table, from the first minute on
    report.html, figures/        the report over all runs
import polars as pl

"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import SPLIT_FILE, SPLITS, Dataset, open_dataset
from landmarks.evaluation.evaluate import evaluate
from landmarks.explanation.explain import explain
from landmarks.reporting.page import report
from landmarks.reporting.report_tables import trained_epochs
from landmarks.reporting.run_files import RunFiles, read_run_files
from landmarks.reporting.study_table import study_numbers
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
    changed,
    divided,
    out_of_reach,
    published,
)
from landmarks.support.console import note, options, step
from landmarks.support.errors import BusyError, LandmarksError, StaleError
from landmarks.support.files import digest_of, held, read_record, refuse_foreign, write_record
from landmarks.support.places import Place
from landmarks.support.tables import read_metadata, read_table, write_csv
from landmarks.training.machine import free_memory, is_out_of_memory
from landmarks.training.run import RECORD as RUN_RECORD
from landmarks.training.run import open_run
from landmarks.training.train import train

HEAT_MAPS = 12
"""Images explained, of the run that did best on validation."""


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
    """Train and judge `networks` on `data` as the study did and as it should be done; return the table as a record.

    The record is `study.json` (see `landmarks.reporting.study_table`) and `report`, where the page lies. Every run is
    also judged on the dataset `test`, where one is named, whose images are the same for both protocols. `weights` is
    `imagenet`, `none` or a mapping from network to file; `epochs` are those of fine-tuning. Called again after a kill
    it goes on, and trains nothing twice. A network that cannot be trained is named, with the reason in its lines'
    `why`, and the others go on. Raises `UsageError` for names that do not exist, `StaleError` when `out` holds a
    reproduction with other settings, and `LandmarksError` for data that cannot be trained on.
    """
    every = attempts(networks, weights, image_size=image_size, epochs=epochs, seed=seed)
    source, out = open_dataset(data), Path(out)
    settings = {"data": source.content_digest, "seed": seed, "image_size": image_size, "epochs": epochs}
    refuse_another(out, settings)
    with held(out) as folder:
        test_set = None if test is None else _test_set(source, open_dataset(test), folder)
        study = Reproduction(folder, source, settings, every, test_set)
        study.keep()
        datasets = _divide(study, seed)
        _look_for_weights(study)
        for attempt in every:
            if attempt.run(folder) not in study.missed:
                _carry_out(study, attempt, datasets[attempt.protocol])
            study.keep()
        page = _report(study)
        return {**study.keep(), "report": None if page is None else str(page)}


def _test_set(source: Dataset, test: Dataset, folder: Path) -> Dataset:
    """Return the images of `test`, all of them, by reference, under a name that is no split's."""
    if not set(source.labels["landmark_id"]) & set(test.labels["landmark_id"]):
        raise LandmarksError(f"{test.folder} shows none of the {len(source.labels)} landmarks of {source.folder}")
    name = test.folder.resolve().name
    taken = (*SPLITS, "all", *(protocol.by for protocol in PROTOCOLS))
    return by_reference(test, folder / "data" / (f"{name}-set" if name in taken else name))


def _divide(study: Reproduction, seed: int) -> dict[Protocol, Dataset]:
    """Divide the images for each protocol; one for which they are too few is left out, unless all are."""
    datasets, why = {}, None
    for protocol in PROTOCOLS:
        try:
            datasets[protocol] = divided(study.source, study.folder / "data" / protocol.by, protocol, seed)
        except BusyError:
            raise
        except LandmarksError as error:
            why = error
            _miss(study, [attempt for attempt in study.attempts if attempt.protocol == protocol], str(error))
    if why and not datasets:
        raise why
    return datasets


def _look_for_weights(study: Reproduction) -> None:
    """Fetch all weights that are needed before anything is trained; whose weights cannot be had is left out."""
    runs = {attempt.run(study.folder): attempt for attempt in study.attempts}
    unfinished = [
        attempt for run, attempt in runs.items() if run not in study.missed and not (run / RUN_RECORD).exists()
    ]
    for network, start in dict.fromkeys((attempt.network, attempt.settings["weights"]) for attempt in unfinished):
        if why := out_of_reach(network, start):
            _miss(study, [attempt for attempt in unfinished if attempt.network == network], why)


def _miss(study: Reproduction, attempts: list[Attempt], why: str) -> None:
    names = [f"{attempt.protocol.name}/{attempt.network}" for attempt in attempts]
    note(f"left out: {', '.join(names)}, as {why}")
    study.missed.update((attempt.run(study.folder), why) for attempt in attempts)


def _carry_out(study: Reproduction, attempt: Attempt, dataset: Dataset) -> None:
    """Train and judge one network, as far as that is not done; what hinders it is named, and the next one's turn."""
    try:
        _train_and_judge(attempt.run(study.folder), attempt.settings, dataset, study.test_set)
        return
    except BusyError:
        raise
    except LandmarksError as error:
        why = str(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        why = "out of memory, even with one image at a time"
    _miss(study, [attempt], why)
    free_memory()


def _train_and_judge(run: Path, settings: dict[str, Any], dataset: Dataset, test_set: Dataset | None) -> None:
    step(["train", dataset.folder, "-o", run, *options(settings)], train, dataset.folder, run, **settings)
    for name in ("val", "test"):
        if not _is_judged(run, dataset, name):
            step(["evaluate", run, "--split", name], evaluate, run, split=name, by="classifier")
    if test_set is not None and not _is_judged(run, test_set, test_set.folder.name):
        step(["evaluate", run, "--data", test_set.folder], evaluate, run, data=test_set.folder, by="classifier")


def _is_judged(run: Path, dataset: Dataset, name: str) -> bool:
    """Return whether a run has been evaluated, with its present weights, on the present images of `dataset`."""
    metrics, predictions = run / "metrics" / f"{name}.json", run / "predictions" / f"{name}.parquet"
    if not (metrics.exists() and predictions.exists()):
        return False
    answered = read_metadata(predictions).get("data_digest")
    return read_record(metrics)["inputs"] == open_run(run).digest and answered == dataset.digest


def _report(study: Reproduction) -> Path | None:
    """Draw heat maps of the run that did best on validation, and write the page about all runs there are."""
    runs = [run for attempt in study.attempts if (run := attempt.run(study.folder)) not in study.missed]
    if not runs:
        return None
    best = min(read_run_files(runs), key=lambda run: (-(run.val_accuracy or 0.0), run.name)).folder
    index = best / "maps" / "index.json"
    if not index.exists() or read_record(index)["inputs"] != open_run(best).digest:
        try:
            step(["explain", best, "--count", HEAT_MAPS], explain, best, count=HEAT_MAPS)
        except LandmarksError as error:
            note(f"no heat maps: {error}")
    page, table = study.folder / "report.html", study.folder / RECORD
    written: Path = step(["report", *runs, "-o", page, "--study", table], report, runs, page, study=table)
    return written


# The record of a reproduction: `study.json`, the same numbers as `study.csv`, both written anew after every step.


RECORD = "study.json"
"""A folder that holds it is a reproduction, finished or not."""

NOT_YET = "not trained yet"
"""What is said of an attempt that is still to come."""

MEASURED = ("run", "parameters", "image_size", "epochs", "validation", "test", "test_set", "head", "seconds")
"""Keys of a line of the table that are None until there is a finished run."""


@dataclass(frozen=True)
class Reproduction:
    """What the reproduction in `folder` consists of, and what has hindered its attempts so far."""

    folder: Path
    source: Dataset
    settings: Mapping[str, Any]  # with others, it would be another reproduction
    attempts: list[Attempt]
    test_set: Dataset | None  # images that every run is judged on beside its own splits
    missed: dict[Path, str] = field(default_factory=dict)  # run folder → why there is none

    def keep(self) -> dict[str, Any]:
        """Write the table as it stands, as a record and as a CSV; return the record."""
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
        protocol, why = attempt.protocol, self.missed.get(run, "")
        told: dict[str, Any] = {"network": attempt.network, "protocol": protocol.name}
        told |= {"published": published(attempt.network) if protocol == PROTOCOLS[0] else None}
        told |= {"changed": changed(attempt)}
        if why or not (run / RUN_RECORD).exists():
            return {**told, **dict.fromkeys(MEASURED), "why": why or NOT_YET}
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
        return {**told, **measured, "why": ""}

    def _notes(self, test_set: str | None) -> list[str]:
        """Return what must be known before the lines are compared."""
        known = "Of the study's figures only those of Xception are known here"
        notes = [
            f"The study drew {LANDMARKS} landmarks with {IMAGES:,} images; here there are "
            f"{len(self.source.labels):,} with {len(self.source.images):,}. {known}.",
            f"Of each landmark {100 * VAL:.0f} % of the images are validation and {100 * TEST:.0f} % test; the "
            "study's shares are not known here, nor is all of its recipe (landmarks.training.recipes.study tells).",
        ]
        tested = self._tested_on()
        if len(tested) > 1:
            told = "the same images" if len(set(tested)) == 1 else "different images"
            common = f"; those of {test_set} are the same for both" if test_set and len(set(tested)) > 1 else ""
            notes.append(f"The two protocols test on {told}{common}.")
        if dropped := [attempt.network for attempt in self.attempts if attempt.network in DROPPED]:
            listed = " and ".join(dict.fromkeys(dropped))
            notes.append(f"The study gave up {listed} for want of memory: there is nothing to compare with.")
        if left := [name for name in IN_THE_TABLE if name not in {attempt.network for attempt in self.attempts}]:
            notes.append(f"Not asked for, of the study's networks: {', '.join(left)}.")
        reasons: dict[str, list[str]] = {}
        for attempt in self.attempts:
            if why := self.missed.get(attempt.run(self.folder)):
                reasons.setdefault(why, []).append(f"{attempt.protocol.name}/{attempt.network}")
        notes += [f"Not done: {', '.join(names)}, as {why}." for why, names in reasons.items()]
        return notes

    def _tested_on(self) -> list[str]:
        """Return which images each protocol tests on, as a digest, of those whose data is divided already."""
        splits = [self.folder / "data" / protocol.by / SPLIT_FILE for protocol in PROTOCOLS]
        tables = [read_table(split) for split in splits if split.exists()]
        return [digest_of(table.filter(pl.col("split") == "test")["image_id"].sort().to_list()) for table in tables]


def _top1(run: RunFiles, name: str | None) -> dict[str, Any] | None:
    evaluation = run.evaluation(name) if name else None
    return None if evaluation is None else dict(evaluation.metrics["top1"])


def refuse_another(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise unless `folder` is new, empty, or holds a reproduction with the same `settings`."""
    refuse_foreign(folder, (RECORD,), "reproduction")
    begun = read_record(folder / RECORD)["settings"] if (folder / RECORD).exists() else settings
    for name, value in settings.items():
        if begun.get(name) != value:
            raise StaleError(
                f"{folder} holds another reproduction",
                received=f"{name} {value}",
                expected=f"{name} {begun.get(name)}, with which it was begun",
                way_out="choose another folder with -o",
            )
