"""How alike an export and its run answer, how large it is, and how long both take to the first answer.

python benchmarks/export.py RUN TESTDATA --work WORK [--kinds float32 int8] [--starts 3]
python benchmarks/export.py RUN TESTDATA --work WORK --networks resnet18 xception=legacy_xception.safetensors

The first form exports RUN and asks run and export about every image of TESTDATA: as the run reads them, and from whole
JPEGs. The second puts other networks with a random head over RUN's landmarks in its place, and compares outputs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from landmarks.dataset.images import decode
from landmarks.dataset.manifest import open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.predictions import read_predictions
from landmarks.models.network import build_network, save_network
from landmarks.recognition.export import export
from landmarks.recognition.recogniser import load
from landmarks.support.errors import LandmarksError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kinds", nargs="*", default=["float32", "int8"])
    parser.add_argument("--networks", nargs="*", default=[])
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--starts", type=int, default=0)
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    for network in chosen.networks:
        name, _, weights = network.partition("=")
        run = untrained(chosen.run, chosen.work / f"run-{name}", name, weights or "none", chosen.image_size)
        for kind in chosen.kinds:
            show(outputs_apart(run, chosen.work / f"{name}-{kind}.onnx", kind))
    if not chosen.networks:
        for kind in chosen.kinds:
            show(agreement(chosen.run, chosen.data, chosen.work / f"{chosen.run.name}-{kind}.onnx", kind))
        if chosen.starts:
            place = chosen.work / f"{chosen.run.name}-{chosen.kinds[0]}.onnx"
            show(starts(chosen.run, place, chosen.data, chosen.work, chosen.starts))


def show(figures: dict[str, Any]) -> None:
    print(json.dumps(figures, indent=2), flush=True)


def untrained(run: Path, folder: Path, name: str, weights: str, image_size: int | None) -> Path:
    """Return a copy of `run` with another network: pretrained or random below a random head."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in run.iterdir():
        if path.suffix in (".json", ".parquet") and path.name != "model.json":
            shutil.copy(path, folder / path.name)
    classes = len(load(run, device="cpu").names)
    network = build_network(name, classes=classes, head="linear", weights=weights, image_size=image_size)
    save_network(network, folder, temperature=1.0)
    return folder


def outputs_apart(run: Path, place: Path, kind: str) -> dict[str, Any]:
    """Export `run`, whose head is random, and return how its verification went, or why it was refused."""
    try:
        written = export(run, place, int8=kind == "int8")
    except LandmarksError as error:
        return {"run": run.name, "kind": kind, "refused": str(error)}
    return {"run": run.name, "kind": kind, "bytes": written.bytes, "maps": written.maps, **vars(written.verification)}


def agreement(run: Path, data: Path, place: Path, kind: str) -> dict[str, Any]:
    """Export `run` and return how alike both answer all images of `data`."""
    written = export(run, place, int8=kind == "int8")
    first, second = evaluate(run, data=data), evaluate(place, data=data)
    tables = [
        read_predictions(folder / "predictions" / f"{numbers.name}.parquet")
        for folder, numbers in ((run, first), (place.with_suffix(".evaluation"), second))
    ]
    both = tables[0].select("image_id").join(tables[1].select("image_id"), on="image_id", how="semi")
    tables = [both.join(table, on="image_id", how="left", maintain_order="left") for table in tables]
    best = [table["label"].list.first().to_numpy() for table in tables]
    scores = [{row["score"]: row["auroc"] for row in numbers.record["rejection"]} for numbers in (first, second)]
    return {
        "run": run.name,
        "kind": kind,
        "bytes": written.bytes,
        "images": len(tables[0]),
        "agreement_decoded": float((best[0] == best[1]).mean()),
        "agreement_from_whole_jpeg": from_whole_jpeg(tables[0]["image_id"].to_list(), best[0], data, place),
        "top1": [first.top1.value, second.top1.value],
        "auroc": scores,
    }


def from_whole_jpeg(ids: list[str], best: np.ndarray[Any, Any], data: Path, place: Path) -> float:
    """Return on which share of the images the export agrees when JPEGs are decoded whole, as other programs do."""
    dataset, export = open_dataset(data), load(place).network
    rows = {row["image_id"]: row for row in dataset.images.iter_rows(named=True)}
    reader, same = ImageReader(dataset), []
    for id, label in zip(ids, best, strict=True):
        row = rows[id]
        pixels = decode(reader.read(row["shard"], row["offset"], row["length"]))
        same.append(export.outputs([pixels]).best[0, 0] == label)  # type: ignore[union-attr]
    return float(np.mean(same))


def starts(run: Path, place: Path, data: Path, work: Path, times: int) -> dict[str, Any]:
    """Return the seconds from a shell's command to the answer of one image, run and export in turn."""
    dataset = open_dataset(data)
    row = dataset.images.row(0, named=True)
    image = work / "one.jpg"
    image.write_bytes(ImageReader(dataset).read(row["shard"], row["offset"], row["length"]))
    seconds: dict[str, list[float]] = {"run": [], "export": []}
    for _ in range(times):
        for name, what in (("run", run), ("export", place)):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "landmarks", "predict", what, image], check=True, capture_output=True)
            seconds[name].append(round(time.perf_counter() - started, 2))
    return {"seconds_to_an_answer": seconds}


if __name__ == "__main__":
    main()
