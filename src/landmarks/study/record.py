"""The record of a reproduction: `study.json`, the same numbers as `study.csv`, both written anew after every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from landmarks.dataset.manifest import Dataset
from landmarks.report.pieces import Pieces, read_pieces
from landmarks.report.study import study_numbers
from landmarks.report.tables import trained_epochs
from landmarks.study.attempts import Attempt, changed
from landmarks.study.protocol import PROTOCOLS, TEST, VAL
from landmarks.study.published import DROPPED, IN_THE_TABLE, LANDMARKS, PHOTOGRAPHS, published
from landmarks.support.errors import LandmarksError, StaleError
from landmarks.support.files import digest_of, read_record, write_record, written_whole
from landmarks.support.tables import read_table
from landmarks.training.run import RECORD as RUN_RECORD

RECORD = "study.json"
"""A folder that holds it is a reproduction, finished or not."""

SPLIT_FILE = "split.parquet"
"""Where a dataset's folder says which part each photograph is in."""

NOT_YET = "not trained yet"
"""What is said of an attempt that is still to come."""

MEASURED = ("run", "parameters", "image_size", "epochs", "validation", "test", "test_set", "warmup", "seconds")
"""Keys of a line of the table that are None until there is a finished run."""


@dataclass(frozen=True)
class Reproduction:
    """What the reproduction in `folder` consists of, and what has hindered its attempts so far."""

    folder: Path
    source: Dataset
    settings: Mapping[str, Any]  # with others, it would be another reproduction
    attempts: list[Attempt]
    test_set: Dataset | None  # photographs that every run is judged on beside its own parts
    missed: dict[Path, str] = field(default_factory=dict)  # run folder → why there is none

    def keep(self) -> dict[str, Any]:
        """Write the table as it stands, as a record and as a CSV; return the record."""
        name = self.test_set.folder.name if self.test_set else None
        record = {
            "settings": dict(self.settings),
            "data": str(self.source.folder.resolve()),
            "landmarks": len(self.source.labels),
            "photographs": len(self.source.photos),
            "test_set": name,
            "protocols": {protocol.name: protocol.meaning for protocol in PROTOCOLS},
            "notes": self._notes(name),
            "rows": [self._row(attempt, name) for attempt in self.attempts],
        }
        write_record(self.folder / RECORD, record, verb="reproduce", inputs=self.source.content_digest)
        with written_whole(self.folder / "study.csv") as aside:
            study_numbers(record).write_csv(aside)
        return record

    def _row(self, attempt: Attempt, test_set: str | None) -> dict[str, Any]:
        run = attempt.run(self.folder)
        protocol, why = attempt.protocol, self.missed.get(run, "")
        told: dict[str, Any] = {"network": attempt.network, "protocol": protocol.name}
        told |= {"published": published(attempt.network) if protocol == PROTOCOLS[0] else None}
        told |= {"changed": changed(attempt)}
        if why or not (run / RUN_RECORD).exists():
            return {**told, **dict.fromkeys(MEASURED), "why": why or NOT_YET}
        (pieces,) = read_pieces([run])
        epochs = trained_epochs(pieces)
        measured = {
            "run": str(run.relative_to(self.folder)),
            "parameters": pieces.part("network", "parameters"),
            "image_size": pieces.part("network", "image_size"),
            "epochs": None if epochs is None else list(epochs),
            "validation": _top1(pieces, "val"),
            "test": _top1(pieces, "test"),
            "test_set": _top1(pieces, test_set),
            "warmup": pieces.part("warmup", "val_accuracy"),
            "seconds": pieces.part("seconds", "total"),
        }
        return {**told, **measured, "why": ""}

    def _notes(self, test_set: str | None) -> list[str]:
        """Return what must be known before the lines are compared."""
        known = "Of the study's figures only those of Xception are known here"
        notes = [
            f"The study drew {LANDMARKS} landmarks with {PHOTOGRAPHS:,} photographs; here there are "
            f"{len(self.source.labels):,} with {len(self.source.photos):,}. {known}.",
            f"Of each landmark {100 * VAL:.0f} % of the photographs are validation and {100 * TEST:.0f} % test; the "
            "study's shares are not known here, nor is all of its recipe (landmarks.training.recipes.study tells).",
        ]
        tested = self._tested_on()
        if len(tested) > 1:
            told = "the same photographs" if len(set(tested)) == 1 else "different photographs"
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
        """Return which photographs each protocol tests on, as a digest, of those whose data is divided already."""
        splits = [self.folder / "data" / protocol.by / SPLIT_FILE for protocol in PROTOCOLS]
        tables = [read_table(split) for split in splits if split.exists()]
        return [digest_of(table.filter(pl.col("part") == "test")["id"].sort().to_list()) for table in tables]


def _top1(run: Pieces, name: str | None) -> dict[str, Any] | None:
    evaluation = run.evaluation(name) if name else None
    return None if evaluation is None else dict(evaluation.metrics["top1"])


def refuse_another(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise unless `folder` is new, empty, or holds a reproduction with the same `settings`."""
    if not folder.exists():
        return
    if (folder / RECORD).exists():
        begun = read_record(folder / RECORD)["settings"]
        for name, value in settings.items():
            if begun.get(name) != value:
                raise StaleError(
                    f"{folder} holds another reproduction",
                    received=f"{name} {value}",
                    expected=f"{name} {begun.get(name)}, with which it was begun",
                    way_out="choose another folder with -o",
                )
        return
    strangers = sorted(entry.name for entry in folder.iterdir() if entry.name != ".lock") if folder.is_dir() else ["it"]
    if strangers:
        raise LandmarksError(
            f"{folder} exists and is no reproduction", received=strangers[0], way_out="choose another folder with -o"
        )
