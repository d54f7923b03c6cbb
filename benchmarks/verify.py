"""`search --verify` for landmarks with five images each: accuracy, known against unknown, and time per query.

    python benchmarks/verify.py RUN DATA TESTDATA --work WORK [--draws 3] [--queries 60] [--unknown 30]

DATA's training images are indexed with RUN's network, which should not have been fine-tuned on them (`--epochs 0`).
In each draw five landmarks keep only five of their images; test images of these landmarks and unknown images are
searched for with and without `--verify`. The answer is the landmark of the first image found. The score for known
against unknown is that image's cosine, with `--verify` plus 1 if its matched points are convincing.
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
        unknown = images.filter(pl.col("landmark_id").is_null())
        known, unknown = (
            table.sample(min(count, len(table)), seed=draw)
            for table, count in ((known, chosen.queries), (unknown, chosen.unknown))
        )
        queries = pl.concat([known, unknown])
        folder = write_images(test, queries, chosen.work / f"asked-{draw}")
        for verify in (False, True):
            started = time.perf_counter()
            table = landmarks.search(index, folder, top=10, verify=verify)
            seconds[verify] += time.perf_counter() - started
            first = table.filter(pl.col("rank") == 1).with_columns(
                image_id=pl.col("path").str.extract(r"([^/]+)\.jpg$")
            )
            answers = queries.select("image_id", truth="landmark_id").join(first, on="image_id")
            found[verify] += answers.select("truth", "landmark_id", "cosine", "inliers").to_dicts()
    rows = [row(verify, found[verify], seconds[verify]) for verify in (False, True)]
    save("verify", rows, run=chosen.run.name, draws=chosen.draws, images_of_each_new_landmark=EACH)


def write_images(dataset: Dataset, images: pl.DataFrame, folder: Path) -> Path:
    """Write `images` of `dataset` as files into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    reader = ImageReader(dataset)
    for id, *place in images.select("image_id", "shard", "offset", "length").iter_rows():
        (folder / f"{id}.jpg").write_bytes(reader.read(*place))
    return folder


def row(verify: bool, answers: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Return the results of searching with or without `verify`."""
    known = np.array([answer["truth"] is not None for answer in answers])
    right = np.array([answer["truth"] == answer["landmark_id"] for answer in answers])
    score = [answer["cosine"] + float((answer["inliers"] or 0) >= CONVINCING) for answer in answers]
    return {
        "verify": verify,
        "queries": len(answers),
        "right_of_new": float(right[known].mean()),
        "auroc": float(roc_auc_score(known, score)),
        "convinced": float(np.mean([(answer["inliers"] or 0) >= CONVINCING for answer in answers])),
        "ms_a_query": 1e3 * seconds / len(answers),
    }


if __name__ == "__main__":
    main()
