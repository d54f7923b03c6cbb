"""The rule of a selection: which landmarks, in which order, and which of them are drawn."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from landmarks.archive.landmark_names import named, not_landmarks
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.places import Place
from landmarks.support.seeds import generator
from landmarks.support.systems import require_text
from landmarks.support.tables import read_table

KINDS = ("natural", "human-made")

DATA = "data"
"""Stands for the archive's sets where the images come from a dataset."""


@dataclass(frozen=True)
class Rule:
    """Everything that decides a selection; the order of the fields is the order in which they are applied."""

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
        _refuse_unknown_words(self)
        _refuse_impossible_numbers(self)
        _refuse_contradictions(self)

    def __str__(self) -> str:
        """Return the rule in the words of the command line; lists of landmarks are shortened."""
        words = [] if self.set == DATA else [f"--set {self.set}"]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            option = "--" + field.name.replace("_", "-")
            if field.name == "seed":
                if any(number is not None for number in (self.choose, self.unknown, self.images_per_landmark)):
                    words.append(f"{option} {value}")
            elif value is True:
                words.append(option)
            elif isinstance(value, Sequence) and not isinstance(value, str):
                shown = ",".join(map(str, value[:10]))
                words.append(f"{option} {shown}" + (f",… ({len(value)})" if len(value) > 10 else ""))
            elif value is not None and value is not False and value != field.default:
                words.append(f"{option} {shlex.quote(str(value))}")
        return " ".join(words)


def eligible(rule: Rule, landmarks: pl.DataFrame) -> pl.DataFrame:
    """Return the landmarks that pass every condition of the rule but the draw, unordered.

    `landmarks` has one row each, with `images` and what `categories` tells; `images` counts the images that
    the rule's own conditions on images (clean, licence) left.
    """
    conditions = [pl.col("images") > 0]
    if rule.landmarks is not None:
        conditions.append(pl.col("landmark_id").is_in(list(rule.landmarks)))
    if rule.exclude is not None:
        conditions.append(~pl.col("landmark_id").is_in(list(rule.exclude)))
    if rule.name is not None:
        conditions.append(named(rule.name))
    if rule.supercategory is not None:
        conditions.append(_same_words("supercategory", rule.supercategory))
    if rule.kind is not None:
        conditions.append(_same_words("natural_or_human_made", rule.kind))
    if rule.min_images is not None:
        conditions.append(pl.col("images") >= rule.min_images)
    if rule.max_images is not None:
        conditions.append(pl.col("images") <= rule.max_images)
    return landmarks.filter(pl.all_horizontal(conditions))


def drawn(rule: Rule, landmarks: pl.DataFrame) -> pl.DataFrame:
    """Rank by images (ties: landmark id ascending), skip, take, draw at random; return them in that rank.

    Raises:
        LandmarksError: nothing is left.
    """
    ranked = landmarks.sort(["images", "landmark_id"], descending=[True, False])
    if len(ranked) == 0:
        raise LandmarksError("no landmark was chosen", received=str(rule), way_out=_way_out(rule))
    if rule.skip >= len(ranked):
        raise LandmarksError(
            f"--skip {rule.skip} leaves none of the {len(ranked)} landmarks there are",
            way_out="leave it out, or skip fewer: it passes by the landmarks with most images",
        )
    taken = ranked[rule.skip :] if rule.take is None else ranked[rule.skip : rule.skip + rule.take]
    if rule.choose is None:
        return taken
    if rule.choose > len(taken):
        note(f"--choose {rule.choose}: only {len(taken)} landmarks were there to draw from")
    lots = generator(rule.seed, "select").random(len(taken))
    return taken[np.sort(np.argsort(lots, kind="stable")[: rule.choose])]


def refuse_unknown_supercategory(rule: Rule, landmarks: pl.DataFrame) -> None:
    """Raise when the rule names a supercategory that no landmark has, with the closest that there is."""
    if rule.supercategory is None:
        return
    known = landmarks["supercategory"].drop_nulls().unique().sort().to_list()
    if rule.supercategory.casefold() not in {word.casefold() for word in known}:
        close = did_you_mean(rule.supercategory, known) or f"some that exist: {', '.join(known[:8])}"
        raise UsageError(f'no landmark has the supercategory "{rule.supercategory}"', way_out=close)


def _same_words(column: str, words: str) -> pl.Expr:
    return pl.col(column).str.to_lowercase().eq_missing(words.lower())


def _refuse_unknown_words(rule: Rule) -> None:
    if rule.set not in ("train", "test", DATA):
        close = difflib.get_close_matches(rule.set, ("train", "test"), n=1)
        raise UsageError(
            f'no set "{rule.set}"', expected="train or test", way_out=f'did you mean "{close[0]}"?' if close else ""
        )
    if rule.kind is not None and rule.kind.lower() not in KINDS:
        raise UsageError(f'no kind of landmark "{rule.kind}"', expected=" or ".join(KINDS))


def _refuse_impossible_numbers(rule: Rule) -> None:
    least = {"skip": 0, "unknown": 0, "take": 1, "choose": 1, "min_images": 1, "max_images": 1}
    least["images_per_landmark"] = 1
    for name, lowest in least.items():
        value = getattr(rule, name)
        if value is not None and value < lowest:
            raise UsageError(f"--{name.replace('_', '-')} {value} is impossible", expected=f"{lowest} or more")
    if rule.take is not None and rule.choose is not None and rule.choose > rule.take:
        raise UsageError(f"--choose {rule.choose} cannot be more than --take {rule.take}")
    if rule.min_images is not None and rule.max_images is not None and rule.min_images > rule.max_images:
        raise UsageError(f"--min-images {rule.min_images} is more than --max-images {rule.max_images}")


def _refuse_contradictions(rule: Rule) -> None:
    if rule.set == "train" and rule.unknown is not None:
        raise UsageError("--unknown belongs to --set test: every image of the training set shows a landmark")
    only_train = ("skip", "take", "choose", "min_images", "max_images", "images_per_landmark", "license")
    given = [f"--{name.replace('_', '-')}" for name in only_train if getattr(rule, name) not in (None, 0)]
    if rule.set == "test" and given:
        raise UsageError(
            f"{', '.join(given)}: only with --set train",
            way_out="for the test images of a selection use: --set test --landmarks SELECTION",
        )


def _way_out(rule: Rule) -> str:
    if rule.landmarks is not None:
        return "are these the ids of landmarks in this archive?"
    if rule.min_images is not None or rule.max_images is not None:
        return "change --min-images or --max-images"
    return "loosen the rule"


# ── The landmarks a person names: by ids, by a file, by an earlier selection, a dataset or a run ────────────────────


NOT_LANDMARKS = "not-landmarks"
"""The word for the shipped list of categories that are no landmark."""

_MOST_BYTES = 100_000_000


def landmark_ids(wanted: Place | int | Sequence[int]) -> list[int]:
    """Return the landmark ids that `wanted` names, sorted, each once.

    `wanted` is ids separated by commas or spaces (`6051,9633`), the word `not-landmarks`, a text or CSV file (whose
    column `landmark_id` counts), a selection, or the folder of a dataset or a run, whose labels count.

    Raises:
        UsageError: it is none of these. LandmarksError: it cannot be read, or names no landmark.
    """
    if not isinstance(wanted, str | os.PathLike):
        return sorted({int(landmark) for landmark in ([wanted] if isinstance(wanted, int) else wanted)})
    text = os.fspath(wanted)
    if text == NOT_LANDMARKS:
        return not_landmarks()["landmark_id"].sort().to_list()
    if re.fullmatch(r"[\s,]*[0-9]{1,18}([\s,]+[0-9]{1,18})*[\s,]*", text):
        return _unique(re.findall("[0-9]+", text))
    path = Path(text)
    if not path.exists():
        raise UsageError(
            f'no landmarks "{text}"',
            expected=f"ids separated by commas, a file, a selection, a dataset, a run, or {NOT_LANDMARKS}",
        )
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    if not found:
        raise LandmarksError(f"{path} names no landmark")
    return found


def _of_folder(folder: Path) -> list[int]:
    labels = folder / "labels.parquet"
    if not labels.is_file():
        raise LandmarksError(f"{folder} has no labels.parquet", expected="the folder of a dataset or a run")
    return _of_table(labels)


def _of_file(file: Path) -> list[int]:
    with open(file, "rb") as stream:
        if stream.read(4) == b"PAR1":
            return _of_table(file)
    if file.stat().st_size > _MOST_BYTES:
        raise LandmarksError(f"{file} is too large for a list of landmarks", received=f"{file.stat().st_size} bytes")
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    if lines and "landmark_id" in lines[0].replace('"', "").split(","):
        return _of_csv(file)
    found: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.split("#")[0].replace(",", " ").split()
        strange = next((word for word in words if not re.fullmatch("[0-9]{1,18}", word)), None)
        if strange is not None:
            raise LandmarksError(f"{file} line {number} is strange", received=f'"{strange[:80]}"', expected="ids")
        found += words
    return _unique(found)


def _of_csv(file: Path) -> list[int]:
    require_text(file)
    cells = pl.read_csv(file, columns=["landmark_id"], infer_schema=False, glob=False)["landmark_id"].drop_nulls()
    strange = cells.filter(~cells.str.contains("^[0-9]{1,18}$"))
    if len(strange):
        raise LandmarksError(f"{file} is strange", received=f'landmark_id "{strange[0][:80]}"', expected="ids")
    return _unique(cells)


def _of_table(file: Path) -> list[int]:
    table = read_table(file, {"landmark_id": pl.Int64})
    return table["landmark_id"].drop_nulls().unique().sort().to_list()


def _unique(ids: Sequence[str] | pl.Series) -> list[int]:
    return sorted({int(landmark) for landmark in ids})
