"""The landmarks a person names: by ids, by a file, by an earlier selection, a dataset or a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from landmarks.archive.categories import not_landmarks
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.tables import read_table
from landmarks.support.text import require_text

NOT_LANDMARKS = "not-landmarks"
"""The word for the shipped list of categories that are no landmark."""

_MOST_BYTES = 100_000_000


def landmark_ids(wanted: str | Path | Sequence[int]) -> list[int]:
    """Return the landmark ids that `wanted` names, sorted, each once.

    `wanted` is ids separated by commas or spaces (`6051,9633`), the word `not-landmarks`, a text or CSV file (whose
    column `landmark_id` counts), a selection, or the folder of a dataset or a run, whose labels count.

    Raises:
        UsageError: it is none of these. LandmarksError: it cannot be read, or names no landmark.
    """
    if not isinstance(wanted, str | Path):
        return sorted({int(landmark) for landmark in wanted})
    text = str(wanted)
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
    cells = pl.read_csv(file, columns=["landmark_id"], infer_schema=False)["landmark_id"].drop_nulls()
    strange = cells.filter(~cells.str.contains("^[0-9]{1,18}$"))
    if len(strange):
        raise LandmarksError(f"{file} is strange", received=f'landmark_id "{strange[0][:80]}"', expected="ids")
    return _unique(cells)


def _of_table(file: Path) -> list[int]:
    table = read_table(file, {"landmark_id": pl.Int64})
    return table["landmark_id"].drop_nulls().unique().sort().to_list()


def _unique(ids: Sequence[str] | pl.Series) -> list[int]:
    return sorted({int(landmark) for landmark in ids})
