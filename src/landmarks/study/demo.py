"""The verb `demo`: all steps in a few minutes, from a made-up archive to two trained networks and a report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landmarks.archive.fetch import fetch
from landmarks.archive.select import select
from landmarks.dataset.split import split
from landmarks.evaluation.evaluate import evaluate
from landmarks.explanation.explain import explain
from landmarks.miniature.make import make_miniature
from landmarks.reporting.page import report
from landmarks.support.console import command_options, note_after_gap, print_table, run_step
from landmarks.support.files import refuse_foreign
from landmarks.support.places import Place
from landmarks.training.run import open_run
from landmarks.training.train import train


@dataclass(frozen=True)
class Size:
    """The size of a demonstration: of its archive (see `make_miniature`), its trainings and its heat maps."""

    landmarks: int = 12
    images: int = 120
    unknown: int = 240
    image_size: int = 96
    epochs: tuple[tuple[str, int], ...] = (("baseline", 8), ("resnet18", 16))  # of each network
    heat_maps: int = 12


def demo(out: Place = "demo", *, seed: int = 0, size: Size | None = None) -> Path:
    """Run all steps in the folder `out` and return the path of the report.

    Every step is printed as the command that does the same. When an earlier call was interrupted, its finished steps
    are not repeated. Both networks start from random weights, so that nothing is downloaded.
    """
    out, size = Path(out), size or Size()
    refuse_foreign(out, ("mirror",), "demo")
    started = time.monotonic()
    note_after_gap(
        f"a made-up archive of {size.landmarks} landmarks, in the layout of the real one, in {out / 'mirror'}"
    )
    mirror = make_miniature(
        out / "mirror", landmarks=size.landmarks, images=size.images, unknown=size.unknown, seed=seed
    )
    data, test, runs = out / "data", out / "test", [out / name for name, _ in size.epochs]
    train_selection, test_selection = out / "train.parquet", out / "test.parquet"
    run_step(["select", mirror, "-o", train_selection], select, mirror, train_selection)
    run_step(["fetch", train_selection, "-o", data], fetch, train_selection, data)
    run_step(["split", data, "--by", "group", "--test", "0"], split, data, by="group", test=0.0)
    for run, (name, epochs) in zip(runs, size.epochs, strict=True):
        settings: dict[str, Any] = {
            "backbone": name,
            "weights": "none",
            "image_size": size.image_size,
            "epochs": epochs,
        }
        run_step(["train", data, "-o", run, *command_options(settings)], train, data, run, **settings)
    run_step(["select", mirror, "--set", "test", "-o", test_selection], select, mirror, test_selection, set="test")
    run_step(["fetch", test_selection, "-o", test], fetch, test_selection, test)
    rows = []
    for run in runs:
        on_val = run_step(["evaluate", run, "--split", "val"], evaluate, run, split="val")
        on_test = run_step(["evaluate", run, "--data", test], evaluate, run, data=test)
        rows.append((run.name, _parameters(run), str(on_val.top1), str(on_test.top1)))
    best = runs[-1]
    run_step(
        ["explain", best, "--data", test, "--count", size.heat_maps], explain, best, data=test, count=size.heat_maps
    )
    page = out / "report.html"
    run_step(["report", *runs, "-o", page], report, runs, page)
    print_table(["network", "parameters", "validation", "test"], rows, aside=True)
    minutes = (time.monotonic() - started) / 60
    note_after_gap(f"{minutes:.1f} minutes; the report: {page}")
    return page


def _parameters(run: Path) -> str:
    return f"{open_run(run).record['network']['parameters']:,}"
