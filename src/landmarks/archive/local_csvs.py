"""The CSV files of a mirror as local files, with their digests, and what an image of the mirror weighs."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl

from landmarks.archive.csv_tables import SOLUTION, TRAIN, CsvTable
from landmarks.archive.mirror import Mirror, tar_path
from landmarks.support.errors import LandmarksError
from landmarks.support.files import file_digest
from landmarks.support.requests import AbsentError

PUBLISHED_BYTES = {"train": 121_000, "test": 85_000}
"""Mean size of an image in the published archive, for mirrors whose TARs cannot be asked."""

_TARS_ASKED = 16


class Csvs:
    """The mirror's CSVs as local files; the digest of each one used is computed meanwhile in other threads."""

    def __init__(self, mirror: Mirror, aside: ThreadPoolExecutor) -> None:
        self.mirror = mirror
        self.place = str(mirror.root or mirror.place)
        self._aside = aside
        self._digests: dict[str, Future[str]] = {}

    def given(self, table: CsvTable) -> Path | None:
        """Return the table's file, or None when the mirror does not have it."""
        try:
            file = self.mirror.local(table.path)
        except AbsentError:
            return None
        if table.path not in self._digests:
            self._digests[table.path] = self._aside.submit(file_digest, file)
        return file

    def needed(self, table: CsvTable, why: str) -> Path:
        """Return the table's file, or raise an error that says what it is needed for."""
        file = self.given(table)
        if file is not None:
            return file
        way_out = "add it to the mirror, from where the archive is published"
        root = self.mirror.root
        if root is not None and (root.parent / table.path).is_file():
            way_out = f"did you mean {root.parent}?"
        elif table in (TRAIN, SOLUTION):
            way_out = "is it a mirror of the archive?"
        raise LandmarksError(f"{self.place} has no {table.path}, which {why}", way_out=way_out)

    def digests(self) -> dict[str, str]:
        """Return path → digest of every CSV used so far."""
        return {path: digest.result() for path, digest in sorted(self._digests.items())}


def bytes_of_one(files: Csvs, set: str) -> float:
    """Return the mean size of an image of a set, from the sizes of some of its TARs where they can be asked."""
    mirror = files.mirror
    table = TRAIN if set == "train" else SOLUTION
    rows = files.given(table)
    try:
        tars = mirror.tar_count(set)
        asked = range(0, tars, -(-tars // _TARS_ASKED))
        total = sum(mirror.head(tar_path(set, tar))[0] for tar in asked) * tars / len(asked)
    except LandmarksError:
        return PUBLISHED_BYTES[set]
    count = 0 if rows is None else pl.scan_csv(rows, infer_schema=False, glob=False).select(pl.len()).collect().item()
    return total / count if count else PUBLISHED_BYTES[set]
