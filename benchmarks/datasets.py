"""Seconds and memory of selecting from, splitting and joining datasets as large as the archive: 4,132,914 rows.

    python benchmarks/datasets.py [ROWS]

The rows are made up: class sizes of the archive, random hashes, one shard name per 8,266 images. There are no image
bytes, so joins and subsets are made by reference. Each figure is for a process of its own, interpreter included.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from results import landmarks, measured, save
from simulated_tables import class_sizes

from landmarks.dataset.manifest import IMAGES, LABELS, REJECTED, write_dataset
from landmarks.dataset.naming import ARCHIVE_IDS

ARCHIVE = 4_132_914


def make(folder: Path, rows: int, start: int) -> Path:
    """Write the tables of a dataset whose image ids begin at `start`; ids and hashes are distinct."""
    generator = np.random.default_rng(start)
    sizes = class_sizes()
    shown = np.repeat(np.arange(len(sizes)), sizes)[generator.permutation(sizes.sum())[:rows]]
    ids = [f"{start + number:016x}" for number in range(rows)]
    images = pl.DataFrame({"image_id": ids, "landmark_id": shown}).with_columns(
        shard=pl.format("images_{}.tar", pl.int_range(pl.len()) // 8266),
        offset=pl.int_range(pl.len()) % 8266 * 60_000 + 512,
        length=pl.lit(58_000),
        width=pl.lit(512),
        height=pl.lit(384),
        phash=pl.Series(generator.integers(1, 2**63, rows, dtype=np.uint64)),
        author=pl.format("author {}", pl.int_range(pl.len()) // 7),
        license=pl.lit("CC BY-SA 4.0"),
    )
    missing = [pl.lit(None).cast(kind).alias(name) for name, kind in IMAGES.items() if name not in images.columns]
    images = images.with_columns(missing).with_columns(group=pl.int_range(pl.len()))
    counts = images.group_by("landmark_id").agg(images=pl.len()).sort("landmark_id").with_row_index("label")
    labels = counts.with_columns(name=pl.format("landmark {}", "landmark_id"), category=pl.lit(None, pl.String))
    record = {
        "set": "train",
        "origin": "made up",
        "rule": "",
        "max_side": 512,
        "identified_by": ARCHIVE_IDS,
        "failed": [],
    }
    write_dataset(
        folder, verb="fetch", images=images, labels=labels.select(list(LABELS)), rejected=pl.DataFrame(schema=REJECTED),
        record=record,
    )  # fmt: skip
    return folder


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ARCHIVE
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        whole = make(place / "whole", rows, 0)
        small = make(place / "small", max(1, rows // 40), 1 << 40)
        work = (
            ("select, the study's rule", ("select", whole, "--skip", "49", "--take", "100", "--choose", "20")),
            ("select, half of the landmarks", ("select", whole, "--take", "100000")),
            ("fetch those by reference", ("fetch", place / "1.parquet", "--by-reference")),
            ("split, by stored hashes", ("split", whole, "--copies", "no")),
            ("join with a 40th as many", ("join", whole, small, "--by-reference")),
        )
        for number, (what, words) in enumerate(work):
            target = place / (f"{number}.parquet" if words[0] == "select" else f"out{number}")
            out = () if words[0] == "split" else ("-o", str(target))
            seconds, processor, megabytes = measured(landmarks(*words, *out))
            figures = {"seconds": round(seconds, 1), "processor_seconds": round(processor, 1), "MB": round(megabytes)}
            found.append({"what": what, "rows": rows, **figures})
            print(found[-1], flush=True)
    save("datasets", found)


if __name__ == "__main__":
    main()
