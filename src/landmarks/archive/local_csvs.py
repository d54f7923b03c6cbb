"""The CSV files of a mirror as local files, with their digests, and the mean size of the mirror's images."""

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
"""Mean size of an image in the published archive, for mirrors whose TARs' sizes are not available."""

_SAMPLED_TARS = 16


class MirrorCsvs:
    """The mirror's CSVs as local files; the digest of each file used is computed in `pool` meanwhile."""

    def __init__(self, mirror: Mirror, pool: ThreadPoolExecutor) -> None:
        self.mirror = mirror
        self.place = str(mirror.root or mirror.place)
        self._pool = pool
        self._digests: dict[str, Future[str]] = {}

    def find(self, table: CsvTable) -> Path | None:
        """Return the table's file, or None when the mirror lacks it."""
        try:
            file = self.mirror.local(table.path)
        except AbsentError:
            return None
        if table.path not in self._digests:
            self._digests[table.path] = self._pool.submit(file_digest, file)
        return file

    def require(self, table: CsvTable, why: str) -> Path:
        """Return the table's file, or raise an error that says what it is needed for."""
        file = self.find(table)
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
        """Return the digest of every CSV used so far, by its path."""
        return {path: digest.result() for path, digest in sorted(self._digests.items())}


def mean_image_bytes(csvs: MirrorCsvs, set: str) -> float:
    """Return the mean size of a set's images in bytes, estimated from the sizes of some of its TARs.

    Where these are not available, it is that of the published archive.
    """
    mirror = csvs.mirror
    file = csvs.find(TRAIN if set == "train" else SOLUTION)
    try:
        tars = mirror.tar_count(set)
        sample = range(0, tars, -(-tars // _SAMPLED_TARS))
        total = sum(mirror.head(tar_path(set, tar))[0] for tar in sample) * tars / len(sample)
    except LandmarksError:
        return PUBLISHED_BYTES[set]
    images = 0 if file is None else pl.scan_csv(file, infer_schema=False, glob=False).select(pl.len()).collect().item()
    return total / images if images else PUBLISHED_BYTES[set]
