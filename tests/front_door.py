"""Every public name of the package, used once: `make check` has mypy read it, and nothing runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

import landmarks
from landmarks import LandmarksError, Recipe


def the_whole_way(mirror: Path, folder: Path) -> None:
    """Use each function as somebody in a notebook would, and what it returns."""
    chosen = landmarks.select(mirror, folder / "chosen.parquet", take=20, seed=1)
    print(len(chosen.images), chosen.rule)
    landmarks.locate(mirror, folder / "index.parquet")
    landmarks.fetch(folder / "chosen.parquet", folder / "data", index=folder / "index.parquet")
    landmarks.import_(folder / "album", folder / "own", max_side=256)
    landmarks.fetch(folder / "chosen.parquet", folder / "data", add=True)
    landmarks.join([folder / "data", folder / "own"], folder / "both", by_reference=True)
    dataset = landmarks.split(folder / "data", val=0.2, test=0.2)
    counts: dict[str, int] = {name: len(dataset.split(name)) for name in ("train", "val", "test")}
    landmarks.unpack(folder / "data", folder / "files")
    credit: pl.DataFrame = landmarks.credits(folder / "data")
    print(counts, credit.columns, landmarks.open_dataset(folder / "data").labels.height)

    table: pl.DataFrame = landmarks.networks("resnet18", classes=20)
    print(table, landmarks.plan(folder / "data", backbone="resnet18").memory_mb)
    run = landmarks.train(folder / "data", folder / "run", backbone="resnet18", epochs=3)
    trials: pl.DataFrame = landmarks.tune(folder / "data", trials=5)
    print(run.name, trials, landmarks.open_run(folder / "run").history)

    numbers = landmarks.evaluate(folder / "run", split="test")
    errors: pl.DataFrame = landmarks.audit(folder / "run", folder / "errors.csv")
    draws = landmarks.subsets(folder / "run", 5)
    judged = landmarks.score(folder / "answers.csv", folder / "solution.csv")
    landmarks.explain(folder / "run", count=4)
    verdict = landmarks.compare(folder / "run", folder / "other")
    page: Path = landmarks.report([folder / "run"], folder / "report.html")
    print(numbers.top1.low, errors, draws.mean, judged.gap, verdict.verdict, page)

    recogniser = landmarks.load(folder / "run")
    print(recogniser.recognise(folder / "one.jpg"), recogniser.recognise([np.zeros((8, 8, 3), dtype=np.uint8)]))
    features = recogniser.embed([folder / "one.jpg"])
    print(features.shape, recogniser.explain(folder / "one.jpg"))
    answers: pl.DataFrame = landmarks.predict(folder / "run", [folder / "one.jpg"], top=3)
    print(answers)
    known: pl.DataFrame = landmarks.learn(folder / "run", folder / "belem", name="Torre de Belém")
    print(known, landmarks.forget(folder / "run", "Torre de Belém"), recogniser.learn(folder / "one.jpg", "One"))
    print(landmarks.serve(folder / "run", port=0, queue=64).answered)
    written = landmarks.export(folder / "run", folder / "run.onnx")
    print(
        landmarks.learn(written.path, from_=folder / "learned.json"), landmarks.forget(written.path, "Torre de Belém")
    )
    print(landmarks.export_page(written.path, folder / "run.html").bytes)
    print(
        written.verification and written.verification.agreement,
        landmarks.load(written.path).recognise(folder / "one.jpg"),
    )
    images = landmarks.index([folder / "data"], folder / "images.index", run=folder / "run")
    found: pl.DataFrame = landmarks.search(folder / "images.index", folder / "one.jpg", top=5)
    print(len(images), found)
    try:
        landmarks.reproduce(folder / "data", folder / "study", networks="baseline")
        landmarks.demo(folder / "demo")
    except LandmarksError as error:
        print(
            error,
            error.exit_code,
            landmarks.recipe("default", epochs=2).backbone,
            Recipe(name="default"),
            landmarks.__version__,
        )
