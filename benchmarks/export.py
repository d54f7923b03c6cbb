"""Agreement of an export with its run, its size, and the time of both to the first answer.

    python benchmarks/export.py RUN TESTDATA --work WORK [--kinds float32 float16 int8] [--starts 3]
    python benchmarks/export.py RUN TESTDATA --work WORK --networks resnet18 xception=legacy_xception.safetensors
    python benchmarks/export.py RUN TESTDATA --work WORK --timm 100

The first form exports RUN in every kind and compares the answers of run and export on every image of TESTDATA: decoded
as the run does, and with JPEGs decoded in full size, as other programs do. A second column of agreement ignores ties,
answers that the run gives equal probabilities (`TIE`). The second form exports other networks in its place, pretrained
or random, below a random head over RUN's landmarks, and reports their verification on RUN's images. The third compares
timm's answers, from the folder that `landmarks export --timm` writes, on the given number of images.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import timm
import torch
from results import save
from sklearn.metrics import roc_auc_score

from landmarks.dataset.images import decode
from landmarks.dataset.manifest import open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.predictions import read_predictions
from landmarks.evaluation.results import Evaluation
from landmarks.models.network import build_network, save_network
from landmarks.recognition.answers import SCORE_DEFINITIONS
from landmarks.recognition.export import export
from landmarks.recognition.export_verification import TIE
from landmarks.recognition.portable import ExportedNetwork
from landmarks.recognition.recogniser import Recogniser, load
from landmarks.support.errors import LandmarksError
from landmarks.training.run import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kinds", nargs="*", default=["float32", "float16", "int8"])
    parser.add_argument("--networks", nargs="*", default=[])
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--images", type=int, default=None, help="that verify the other networks")
    parser.add_argument("--starts", type=int, default=0)
    parser.add_argument("--timm", type=int, default=0)
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    if chosen.timm:
        save("export-timm", [timm_apart(chosen.run, chosen.data, chosen.work / "timm", chosen.timm)])
        return
    rows: list[dict[str, Any]] = []
    for network in chosen.networks:
        name, _, weights = network.partition("=")
        run = untrained(chosen.run, chosen.work / f"run-{name}", name, weights or "none", chosen.image_size)
        for kind in chosen.kinds:
            rows.append(outputs_apart(run, chosen.work / f"{name}-{kind}.onnx", kind, chosen.images))
            print(rows[-1], flush=True)
    if chosen.networks:
        save("export-networks", [{column: row.get(column) for column in COLUMNS_OF_OTHERS} for row in rows])
        return
    places = {kind: chosen.work / f"{chosen.run.name}-{kind}.onnx" for kind in chosen.kinds}
    first = evaluate(chosen.run, data=chosen.data)
    rows = [agreement(chosen.run, first, chosen.data, place, kind) for kind, place in places.items()]
    took = starts(chosen.run, places[chosen.kinds[0]], chosen.data, chosen.work, chosen.starts) if chosen.starts else {}
    save("export", rows, **took)


COLUMNS_OF_OTHERS = (
    "network",
    "kind",
    "megabytes",
    "maps",
    "images",
    "same_but_for_ties",
    "largest_difference",
    "features_apart",
    "refused",
)


def untrained(run: Path, folder: Path, name: str, weights: str, image_size: int | None) -> Path:
    """Return a copy of `run` with another network, pretrained or random, below a random head."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in run.iterdir():
        if path.suffix in (".json", ".parquet") and path.name != "model.json":
            shutil.copy(path, folder / path.name)
    classes = len(load(run, device="cpu").names)
    network = build_network(name, classes=classes, head="linear", weights=weights, image_size=image_size)
    save_network(network, folder, temperature=1.0)
    return folder


def outputs_apart(run: Path, place: Path, kind: str, images: int | None) -> dict[str, Any]:
    """Export `run` and return the result of its verification, or why it was refused."""
    network = {"network": run.name.removeprefix("run-"), "kind": kind}
    try:
        written = export(run, place, int8=kind == "int8", half=kind == "float16", images=images)
    except LandmarksError as error:
        return {**network, "refused": str(error)}
    found = written.verification
    assert found is not None
    return {
        **network,
        "megabytes": written.bytes / 1e6,
        "maps": written.maps,
        "images": found.images,
        "same_but_for_ties": found.agreement,
        "largest_difference": found.largest_difference,
        "features_apart": found.features_difference,
    }


def agreement(run: Path, first: Evaluation, data: Path, place: Path, kind: str) -> dict[str, Any]:
    """Export `run` and return the agreement of both on all images of `data`."""
    written = export(run, place, int8=kind == "int8", half=kind == "float16")
    second = evaluate(place, data=data)
    tables = [
        read_predictions(folder / "predictions" / f"{numbers.name}.parquet")
        for folder, numbers in ((run, first), (place.with_suffix(".evaluation"), second))
    ]
    both = tables[0].select("image_id").join(tables[1].select("image_id"), on="image_id", how="semi")
    tables = [both.join(table, on="image_id", how="left", maintain_order="left") for table in tables]
    of_run, of_export = tables
    best = of_export["label"].list.first()
    same = best == of_run["label"].list.first()
    scores = zip(of_run["label"], of_run["score"], best, strict=True)
    ties = [dict(zip(labels, values, strict=True)).get(label, 0) >= values[0] - TIE for labels, values, label in scores]
    numbers = [top1_and_auroc(table, load(path, device="cpu")) for table, path in ((of_run, run), (of_export, place))]
    assert written.verification is not None
    return {
        "network": run.name.removeprefix("run-"),
        "kind": kind,
        "megabytes": written.bytes / 1e6,
        "maps": written.maps,
        "images": len(of_run),
        "same_answer": float(same.mean()),  # type: ignore[arg-type]
        "same_but_for_ties": float(np.mean(ties)),
        "same_from_whole_jpeg": from_whole_jpeg(
            of_run["image_id"].to_list(), of_run["label"].list.first().to_numpy(), data, place
        ),
        "top1": numbers[1][0],
        "top1_of_run": numbers[0][0],
        "auroc": numbers[1][1],
        "auroc_of_run": numbers[0][1],
        "largest_difference": written.verification.largest_difference,
        "features_apart": written.verification.features_difference,
    }


def top1_and_auroc(predictions: pl.DataFrame, recogniser: Recogniser) -> tuple[float, float]:
    """Return the share of right answers on known images, and the AUROC of known against unknown on Private.

    The evaluations' own numbers do not compare: a run leaves out the images it has seen in training, an export cannot.
    """
    known = (predictions["truth"].list.len().fill_null(0) > 0).to_numpy()
    right = predictions.select(pl.col("truth").list.contains(pl.col("label").list.first())).to_series().to_numpy()
    scores = {name: predictions[name].to_numpy() for name in SCORE_DEFINITIONS if name in predictions.columns}
    scores["msp"] = predictions["score"].list.first().to_numpy()
    if recogniser.rule is None:
        score = scores["msp"]
    elif isinstance(recogniser.network, ExportedNetwork):
        score = predictions[recogniser.network.record.score].to_numpy()
    else:
        score = recogniser.rule.apply(scores)
    private = (predictions["usage"] != "Public").fill_null(value=True).to_numpy()  # the gallery may hold Public ones
    return float(right[known].mean()), float(roc_auc_score(known[private], score[private]))


@torch.no_grad()
def timm_apart(run: Path, data: Path, folder: Path, count: int) -> dict[str, Any]:
    """Return the largest difference of timm's logits from the run's, relative to the largest logit of the image."""
    export(run, folder, timm=True)
    model, recogniser = timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), load(run, device="cpu")
    dataset = open_dataset(data)
    reader, places = ImageReader(dataset), dataset.images.select("shard", "offset", "length").head(count)
    images = torch.from_numpy(recogniser.transform([reader.read(*place) for place in places.iter_rows()]))
    network = open_run(run).network().eval()
    of_run, of_timm = (torch.cat([each(batch) for batch in images.split(20)]) for each in (network, model))
    difference = (of_run - of_timm).abs().amax(1) / of_run.abs().amax(1)
    return {
        "images": len(images),
        "largest_difference": float(difference.max()),
        "same": bool((difference <= 1e-5).all()),
    }


def from_whole_jpeg(ids: list[str], best: np.ndarray[Any, Any], data: Path, place: Path) -> float:
    """Return the share of images on which the export's answer to the JPEG decoded in full size is `best`."""
    dataset, export = open_dataset(data), load(place).network
    rows = {row["image_id"]: row for row in dataset.images.iter_rows(named=True)}
    reader, same = ImageReader(dataset), []
    for id, label in zip(ids, best, strict=True):
        row = rows[id]
        pixels = decode(reader.read(row["shard"], row["offset"], row["length"]))
        same.append(export.outputs([pixels]).best[0, 0] == label)  # type: ignore[union-attr]
    return float(np.mean(same))


def starts(run: Path, place: Path, data: Path, work: Path, times: int) -> dict[str, Any]:
    """Return the seconds from starting the command to the answer for one image, run and export in turns."""
    dataset = open_dataset(data)
    row = dataset.images.row(0, named=True)
    image = work / "one.jpg"
    image.write_bytes(ImageReader(dataset).read(row["shard"], row["offset"], row["length"]))
    seconds: dict[str, list[float]] = {"run": [], "export": []}
    for _ in range(times):
        for name, path in (("run", run), ("export", place)):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "landmarks", "predict", path, image], check=True, capture_output=True)
            seconds[name].append(round(time.perf_counter() - started, 2))
    return {"seconds_to_an_answer": seconds}


if __name__ == "__main__":
    main()
