"""Peak memory of fetch and evaluate above their imports, for two numbers of images, with which it should not grow.

    python benchmarks/memory.py SELECTION.parquet RUN DATA

Each figure comes from a process of its own, which records its resident memory after the imports and its peak at the
end. `evaluate` answers the first 1,000 and then all images of DATA; its figure includes weights and one batch.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from results import save, share_shards

from landmarks.dataset.manifest import REJECTED, open_dataset, write_dataset
from landmarks.support.tables import read_metadata, read_table, write_table

FEW = 1_000

MEASURED = """
import json, resource, sys
import psutil, landmarks.archive.fetch, landmarks.evaluation.evaluate
before = psutil.Process().memory_info().rss
verb, *words = json.loads(sys.argv[1])
if verb == "fetch":
    landmarks.archive.fetch.fetch(words[0], words[1], workers=4)
else:
    landmarks.evaluation.evaluate.evaluate(words[0], data=words[1], split="all")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) // 10**6, file=sys.stderr)
"""


def main() -> None:
    selection, run, data = map(Path, sys.argv[1:])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for few in (True, False):
            chosen = first_of_selection(selection, place / f"selection-{few}.parquet", few)
            images = len(read_table(chosen))
            rows.append(row("fetch", images, peak("fetch", chosen, place / f"data-{few}")))
        for few in (True, False):
            subset = first_of_dataset(data, place / f"part-{few}", few)
            run_copy = place / f"run-{few}"
            shutil.copytree(run, run_copy, ignore=shutil.ignore_patterns("predictions", "metrics"))
            rows.append(row("evaluate", len(open_dataset(subset).images), peak("evaluate", run_copy, subset)))
    save("memory", rows)


def row(verb: str, images: int, mb: int) -> dict[str, Any]:
    """Return one row of the results."""
    return {"verb": verb, "images": images, "mb_above_imports": mb}


def peak(*words: object) -> int:
    """Return the peak memory of one verb above that of its imports, in MB."""
    command = [sys.executable, "-c", MEASURED, json.dumps([str(word) for word in words])]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(ended.stderr.split()[-1])


def first_of_selection(selection: Path, copy: Path, few: bool) -> Path:
    """Write the first images of a selection, or all of them, to `copy`."""
    table, about = read_table(selection), read_metadata(selection)
    write_table(copy, table.head(FEW) if few else table, **{name: about[name] for name in ("mirror", "set", "rule")})
    return copy


def first_of_dataset(data: Path, copy: Path, few: bool) -> Path:
    """Make a dataset of the first images of another, or all of them, with its shards."""
    dataset = open_dataset(data)
    images = dataset.images.head(FEW) if few else dataset.images
    share_shards(data, copy)
    write_dataset(
        copy,
        verb="import",
        images=images,
        labels=dataset.labels,
        rejected=pl.DataFrame(schema=REJECTED),
        record=dataset.record,
    )
    return copy


if __name__ == "__main__":
    main()
