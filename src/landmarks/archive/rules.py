"""The rule of a selection: which landmarks qualify, how they are ranked, and which are drawn at random."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from landmarks.archive.csv_tables import name_contains, not_landmarks
from landmarks.dataset.csv_files import read_text_columns
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.places import Place
from landmarks.support.seeds import generator
from landmarks.support.tables import read_table

KINDS = ("natural", "human-made")

DATA = "data"
"""The value of `SelectionRule.set` when the images come from a dataset instead of the archive."""


@dataclass(frozen=True)
class SelectionRule:
    """Everything that decides a selection, in fields ordered as they are applied."""

    set: str = "train"
    clean: bool = False
    license: str | None = None
    landmarks: Sequence[int] | None = None
    exclude: Sequence[int] | None = None
    name: str | None = None
    supercategory: str | None = None
    kind: str | None = None
    min_images: int | None = None
    max_images: int | None = None
    skip: int = 0
    take: int | None = None
    choose: int | None = None
    images_per_landmark: int | None = None
    unknown: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse_unknown_values(self)
        _refuse_impossible_numbers(self)
        _refuse_contradictions(self)

    def __str__(self) -> str:
        """Return the rule as command-line options, with long lists of landmarks shortened."""
        options = [] if self.set == DATA else [f"--set {self.set}"]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            option = "--" + field.name.replace("_", "-")
            if field.name == "seed":
                if any(number is not None for number in (self.choose, self.unknown, self.images_per_landmark)):
                    options.append(f"{option} {value}")
            elif value is True:
                options.append(option)
            elif isinstance(value, Sequence) and not isinstance(value, str):
                shown = ",".join(map(str, value[:10]))
                options.append(f"{option} {shown}" + (f",… ({len(value)})" if len(value) > 10 else ""))
            elif value is not None and value is not False and value != field.default:
                options.append(f"{option} {shlex.quote(str(value))}")
        return " ".join(options)


def eligible(rule: SelectionRule, landmarks: pl.DataFrame) -> pl.DataFrame:
    """Return the landmarks that meet every condition of the rule, unordered and before any draw.

    `landmarks` has one row per landmark, with the columns `LANDMARK_DETAILS` and `images`: the number of images that
    meet the rule's conditions on images (`clean`, `license`).
    """
    conditions = [pl.col("images") > 0]
    if rule.landmarks is not None:
        conditions.append(pl.col("landmark_id").is_in(list(rule.landmarks)))
    if rule.exclude is not None:
        conditions.append(~pl.col("landmark_id").is_in(list(rule.exclude)))
    if rule.name is not None:
        conditions.append(name_contains(rule.name))
    if rule.supercategory is not None:
        conditions.append(_equals_ignoring_case("supercategory", rule.supercategory))
    if rule.kind is not None:
        conditions.append(_equals_ignoring_case("natural_or_human_made", rule.kind))
    if rule.min_images is not None:
        conditions.append(pl.col("images") >= rule.min_images)
    if rule.max_images is not None:
        conditions.append(pl.col("images") <= rule.max_images)
    return landmarks.filter(pl.all_horizontal(conditions))


def ranked_and_drawn(rule: SelectionRule, landmarks: pl.DataFrame) -> pl.DataFrame:
    """Rank landmarks by number of images, then skip, take and draw at random as the rule says.

    The most images come first, and of equal numbers the smallest landmark id. The result keeps this order.

    Raises:
        LandmarksError: no landmark is left.
    """
    ranked = landmarks.sort(["images", "landmark_id"], descending=[True, False])
    if len(ranked) == 0 and not str(rule):
        raise LandmarksError("no image shows a landmark: there is nothing to choose")
    if len(ranked) == 0:
        raise LandmarksError("no landmark was chosen", received=str(rule), way_out=_way_out(rule))
    if rule.skip >= len(ranked):
        raise LandmarksError(
            f"--skip {rule.skip} leaves none of the {len(ranked)} landmarks there are",
            way_out="leave it out, or skip fewer: it passes by the landmarks with most images",
        )
    candidates = ranked[rule.skip :] if rule.take is None else ranked[rule.skip : rule.skip + rule.take]
    if rule.choose is None:
        return candidates
    if rule.choose > len(candidates):
        note(f"--choose {rule.choose}: only {len(candidates)} landmarks were there to draw from")
    lots = generator(rule.seed, "select").random(len(candidates))
    return candidates[np.sort(np.argsort(lots, kind="stable")[: rule.choose])]


def refuse_unknown_supercategory(rule: SelectionRule, landmarks: pl.DataFrame) -> None:
    """Raise `UsageError` when no landmark has the rule's supercategory, with the closest match as a suggestion."""
    if rule.supercategory is None:
        return
    existing = landmarks["supercategory"].drop_nulls().unique().sort().to_list()
    if rule.supercategory.casefold() not in {name.casefold() for name in existing}:
        suggestion = did_you_mean(rule.supercategory, existing) or f"some that exist: {', '.join(existing[:8])}"
        raise UsageError(f'no landmark has the supercategory "{rule.supercategory}"', way_out=suggestion)


def _equals_ignoring_case(column: str, value: str) -> pl.Expr:
    return pl.col(column).str.to_lowercase().eq_missing(value.lower())


def _refuse_unknown_values(rule: SelectionRule) -> None:
    if rule.set not in ("train", "test", DATA):
        way_out = did_you_mean(rule.set, ("train", "test"))
        raise UsageError(f'no set "{rule.set}"', expected="train or test", way_out=way_out)
    if rule.kind is not None and rule.kind.lower() not in KINDS:
        raise UsageError(f'no kind of landmark "{rule.kind}"', expected=" or ".join(KINDS))


def _refuse_impossible_numbers(rule: SelectionRule) -> None:
    minimums = {"skip": 0, "unknown": 0, "take": 1, "choose": 1, "min_images": 1, "max_images": 1}
    minimums["images_per_landmark"] = 1
    for name, minimum in minimums.items():
        value = getattr(rule, name)
        if value is not None and value < minimum:
            raise UsageError(f"--{name.replace('_', '-')} {value} is impossible", expected=f"{minimum} or more")
    if rule.take is not None and rule.choose is not None and rule.choose > rule.take:
        raise UsageError(f"--choose {rule.choose} cannot be more than --take {rule.take}")
    if rule.min_images is not None and rule.max_images is not None and rule.min_images > rule.max_images:
        raise UsageError(f"--min-images {rule.min_images} is more than --max-images {rule.max_images}")


def _refuse_contradictions(rule: SelectionRule) -> None:
    if rule.set == "train" and rule.unknown is not None:
        raise UsageError("--unknown belongs to --set test: every image of the training set shows a landmark")
    only_train = ("skip", "take", "choose", "min_images", "max_images", "images_per_landmark", "license")
    options = [f"--{name.replace('_', '-')}" for name in only_train if getattr(rule, name) not in (None, 0)]
    if rule.set == "test" and options:
        raise UsageError(
            f"{', '.join(options)}: only with --set train",
            way_out="for the test images of a selection use: --set test --landmarks SELECTION",
        )


def _way_out(rule: SelectionRule) -> str:
    if rule.landmarks is not None:
        return "are these the ids of landmarks in this archive?"
    if rule.min_images is not None or rule.max_images is not None:
        return "change --min-images or --max-images"
    return "loosen the rule"


# ── The landmarks that a user names: by ids, by a file, by an earlier selection, a dataset or a run ─────────────────


NOT_LANDMARKS = "not-landmarks"
"""The name of the shipped list of categories that are no landmarks."""

_MAX_LIST_BYTES = 100_000_000


def landmark_ids(wanted: Place | int | Sequence[int]) -> list[int]:
    """Return the landmark ids that `wanted` stands for, sorted and unique.

    `wanted` is one of: ids, as integers or as text with commas or spaces (`6051,9633`); the word `not-landmarks`; a
    text file of ids; a CSV file or a selection with a column `landmark_id`; the folder of a dataset or a run, for the
    ids of its labels.

    Raises:
        UsageError: it is none of these.
        LandmarksError: it cannot be read, or names no landmark.
    """
    if not isinstance(wanted, str | os.PathLike):
        return sorted({int(landmark) for landmark in ([wanted] if isinstance(wanted, int) else wanted)})
    text = os.fspath(wanted)
    if text == NOT_LANDMARKS:
        return not_landmarks()["landmark_id"].sort().to_list()
    if re.fullmatch(r"[\s,]*[0-9]{1,18}([\s,]+[0-9]{1,18})*[\s,]*", text):
        return _sorted_unique(re.findall("[0-9]+", text))
    path = Path(text)
    if not path.exists():
        raise UsageError(
            f'no landmarks "{text}"',
            expected=f"ids separated by commas, a file, a selection, a dataset, a run, or {NOT_LANDMARKS}",
        )
    ids = _ids_of_folder(path) if path.is_dir() else _ids_of_file(path)
    if not ids:
        raise LandmarksError(f"{path} names no landmark")
    return ids


def _ids_of_folder(folder: Path) -> list[int]:
    labels = folder / "labels.parquet"
    if not labels.is_file():
        raise LandmarksError(f"{folder} has no labels.parquet", expected="the folder of a dataset or a run")
    return _ids_of_table(labels)


def _ids_of_file(file: Path) -> list[int]:
    with open(file, "rb") as stream:
        if stream.read(4) == b"PAR1":
            return _ids_of_table(file)
    if file.stat().st_size > _MAX_LIST_BYTES:
        raise LandmarksError(f"{file} is too large for a list of landmarks", received=f"{file.stat().st_size} bytes")
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    if lines and "landmark_id" in lines[0].replace('"', "").split(","):
        return _ids_of_csv(file)
    ids: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.split("#")[0].replace(",", " ").split()
        invalid = next((word for word in words if not re.fullmatch("[0-9]{1,18}", word)), None)
        if invalid is not None:
            raise LandmarksError(f"{file} line {number} is invalid", received=f'"{invalid[:80]}"', expected="ids")
        ids += words
    return _sorted_unique(ids)


def _ids_of_csv(file: Path) -> list[int]:
    cells = read_text_columns(file, ("landmark_id",), "").filter(pl.col("landmark_id") != "")
    invalid = cells.filter(~pl.col("landmark_id").str.contains("^[0-9]{1,18}$"))
    for line, text in invalid.head(1).iter_rows():
        raise LandmarksError(f"{file} line {line} is invalid", received=f'landmark_id "{text[:80]}"', expected="ids")
    return _sorted_unique(cells["landmark_id"])


def _ids_of_table(file: Path) -> list[int]:
    table = read_table(file, {"landmark_id": pl.Int64})
    return table["landmark_id"].drop_nulls().unique().sort().to_list()


def _sorted_unique(ids: Sequence[str] | pl.Series) -> list[int]:
    return sorted({int(id) for id in ids})
