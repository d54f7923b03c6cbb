"""Seconds and memory of `landmarks select` at the archive's true size, interpreter included.

    python benchmarks/selection.py [FOLDER]

FOLDER keeps the CSV files of 4,132,914 rows (1.4 GB) for the next time.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from results import landmarks, measured, save
from simulated_archive import Archive
from simulated_tables import write_tables

STUDY = ("--skip", "49", "--take", "100", "--choose", "20")
RULES = (
    ("the study's rule", STUDY),
    ("the study's rule, clean", ("--clean", *STUDY)),
    ("100 to 200 images", ("--min-images", "100", "--max-images", "200")),
    ("a pattern of names", ("--name", "^old town hall")),
    ("everything", ()),
)
TIMES = 3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir()) / "landmarks-simulated")
    folder = options.parse_args().folder
    if not (folder / "metadata/train_attribution.csv").exists():
        write_tables(folder, Archive(), attribution=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        bare = Path(temporary) / "bare"
        (bare / "metadata").mkdir(parents=True)
        for name in ("train.csv", "train_clean.csv", "train_label_to_category.csv"):
            (bare / "metadata" / name).symlink_to((folder / "metadata" / name).resolve())
        for mirror, files in ((bare, "without attribution"), (folder, "with attribution")):
            for name, rule in RULES:
                runs = [
                    measured(landmarks("select", mirror, "-o", Path(temporary) / "s.parquet", *rule))
                    for _ in range(TIMES)
                ]
                seconds, processor, megabytes = (sorted(column)[TIMES // 2] for column in zip(*runs, strict=True))
                rows.append(
                    {
                        "rule": name,
                        "files": files,
                        "seconds": round(seconds, 2),
                        "processor_seconds": round(processor, 2),
                        "peak_memory_mb": round(megabytes),
                    }
                )
    save("selection", rows, command="landmarks select", times=TIMES, statistic="median")


if __name__ == "__main__":
    main()
