"""Memory of training and evaluation with a manifest as long as the whole archive's, above that of the imports.

    python benchmarks/many_images.py [--rows 4132914] [--landmarks 1000]

Every row of the made-up dataset refers to one of a few images, so that only the manifest is large; all but 400 rows are
training images. `train` trains the smallest network for a few seconds, validates and writes its run; `evaluate` answers
the 200 test images. Each is a process of its own, which records its resident memory after the imports and after opening
the dataset, and its peak at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from results import save

from landmarks.dataset.images import encode
from landmarks.dataset.manifest import IMAGES, LABELS, REJECTED, SPLIT, write_dataset
from landmarks.dataset.shards import ShardWriter

DISTINCT_IMAGES = 64

MEASURED = """
import json, resource, sys, time
import psutil, landmarks.evaluation.evaluate, landmarks.training.train, accelerate
from landmarks.dataset.manifest import open_dataset
def resident():
    return psutil.Process().memory_info().rss
before = resident()
verb, data, run = sys.argv[1:]
opened = open_dataset(data)
table = resident() - before
del opened
started = time.monotonic()
if verb == "train":
    landmarks.training.train.train(data, run, backbone="test_resnet", weights="none", image_size=32, epochs=1,
                                   batch_size=32, time_limit=0.05, tracking="none", workers=2, precision="float32")
else:
    landmarks.evaluation.evaluate.evaluate(run)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
row = {"verb": verb, "imports_mb": before, "tables_mb": table, "peak_above_imports_mb": peak - before}
row = {name: value if name == "verb" else value // 10**6 for name, value in row.items()}
print(json.dumps(row | {"seconds": round(time.monotonic() - started, 1)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_132_914)
    parser.add_argument("--landmarks", type=int, default=1000)
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        make(data, chosen.rows, chosen.landmarks)
        for verb in ("train", "evaluate"):
            command = [sys.executable, "-c", MEASURED, verb, str(data), str(run)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                raise SystemExit(ended.stderr[-3000:])
            rows.append({"rows": chosen.rows, **json.loads(ended.stdout.splitlines()[-1])})
    save("many-images", rows, landmarks=chosen.landmarks)


def make(data: Path, count: int, landmarks: int) -> None:
    """Write a dataset with splits and `count` rows over a few images."""
    random = np.random.default_rng(0)
    places = []
    with ShardWriter(data / "shards" / "a.tar") as shard:
        for number in range(DISTINCT_IMAGES):
            places.append(shard.add(str(number), encode(random.integers(0, 256, (48, 64, 3), dtype=np.uint8))))
    which, numbers = np.arange(count) % DISTINCT_IMAGES, pl.arange(count, eager=True)
    offsets, lengths = np.array(places)[which].T
    images = pl.DataFrame(
        {
            "image_id": numbers.cast(pl.String).str.zfill(16),
            "landmark_id": np.arange(count) % landmarks,
            "offset": offsets,
            "length": lengths,
            "phash": numbers,
            "group": numbers,
        }
    ).with_columns(shard=pl.lit("a.tar"), width=64, height=48)
    images = images.with_columns(
        pl.lit(None, dtype=kind).alias(name) for name, kind in IMAGES.items() if name not in images.columns
    )
    ids = images["image_id"]
    split = np.where(np.arange(count) < 200, "test", np.where(np.arange(count) < 400, "val", "train"))
    each = pl.arange(landmarks, eager=True)
    labels = pl.DataFrame({"label": each, "landmark_id": each, "name": each.cast(pl.String), "images": each * 0 + 1})
    labels = labels.with_columns(category=pl.lit(None, dtype=LABELS["category"]))
    write_dataset(
        data,
        verb="fetch",
        images=images,
        labels=labels,
        rejected=pl.DataFrame(schema=REJECTED),
        record={"origin": "made up", "set": "train"},
        split=(pl.DataFrame({"image_id": ids, "split": split}, schema=SPLIT), {"rule": "made up", "seed": 0}),
    )


if __name__ == "__main__":
    main()
