"""What `search --verify` is worth for landmarks known from five images: accuracy, known against unknown, milliseconds.

    python benchmarks/verify.py RUN DATA TESTDATA --work WORK [--draws 3] [--queries 60] [--unknown 30]

DATA's training images are indexed with RUN's network, which should not have been fine-tuned on them (`--epochs 0`).
For each draw five of the landmarks keep five images of theirs and lose all others; test images of these five
landmarks, and images of nothing known, are searched for with and without `--verify`. The answer is the landmark of
the first image found. Known from unknown is told by the first one's cosine, and with `--verify` by that plus 1 where
its points convince.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from results import save
from sklearn.metrics import roc_auc_score

import landmarks
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.shards import ImageReader
from landmarks.recognition.searching import CONVINCING

NEW, EACH = 5, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("testdata", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--unknown", type=int, default=30)
    chosen = parser.parse_args()
    whole, test = chosen.work / "images.index", landmarks.open_dataset(chosen.testdata)
    if not whole.exists():
        landmarks.index(chosen.data, whole, run=chosen.run)
    train = landmarks.open_dataset(chosen.data).split("train")
    everything = landmarks.open_dataset(chosen.data).images["image_id"]
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    seconds = {False: 0.0, True: 0.0}
    for draw in range(chosen.draws):
        random = np.random.default_rng(draw)
        ids = train["landmark_id"].drop_nulls().unique().sort().to_numpy()
        new = random.permutation(ids)[:NEW].tolist()
        few = train.filter(pl.col("landmark_id").is_in(new)).sample(fraction=1, shuffle=True, seed=draw)
        few = few.group_by("landmark_id", maintain_order=True).head(EACH)
        kept = pl.concat([few["image_id"], train.filter(~pl.col("landmark_id").is_in(new))["image_id"]])
        index = chosen.work / f"draw-{draw}.index"
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(whole, index)
        landmarks.index([], index, remove=everything.filter(~everything.is_in(kept.implode())).to_list())
        images = test.split("all")
        known = images.filter(pl.col("landmark_id").is_in(new))
        strange = images.filter(pl.col("landmark_id").is_null())
        known, strange = (
            some.sample(min(count, len(some)), seed=draw)
            for some, count in ((known, chosen.queries), (strange, chosen.unknown))
        )
        asked = pl.concat([known, strange])
        folder = written(test, asked, chosen.work / f"asked-{draw}")
        for verify in (False, True):
            started = time.perf_counter()
            table = landmarks.search(index, folder, top=10, verify=verify)
            seconds[verify] += time.perf_counter() - started
            first = table.filter(pl.col("rank") == 1).with_columns(
                image_id=pl.col("path").str.extract(r"([^/]+)\.jpg$")
            )
            answers = asked.select("image_id", truth="landmark_id").join(first, on="image_id")
            found[verify] += answers.select("truth", "landmark_id", "cosine", "inliers").to_dicts()
    rows = [row(verify, found[verify], seconds[verify]) for verify in (False, True)]
    save("verify", rows, run=chosen.run.name, draws=chosen.draws, images_of_each_new_landmark=EACH)


def written(dataset: Dataset, images: pl.DataFrame, folder: Path) -> Path:
    """Write the images into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    reader = ImageReader(dataset)
    for id, *place in images.select("image_id", "shard", "offset", "length").iter_rows():
        (folder / f"{id}.jpg").write_bytes(reader.read(*place))
    return folder


def row(verify: bool, answers: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Return what one way of searching reached."""
    known = np.array([one["truth"] is not None for one in answers])
    right = np.array([one["truth"] == one["landmark_id"] for one in answers])
    score = [one["cosine"] + float((one["inliers"] or 0) >= CONVINCING) for one in answers]
    return {
        "verify": verify,
        "queries": len(answers),
        "right_of_new": float(right[known].mean()),
        "auroc": float(roc_auc_score(known, score)),
        "convinced": float(np.mean([(one["inliers"] or 0) >= CONVINCING for one in answers])),
        "ms_a_query": 1e3 * seconds / len(answers),
    }


if __name__ == "__main__":
    main()
