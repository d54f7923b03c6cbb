"""The verb `compare`: is one run better than another, or is it chance? Paired tests on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from scipy.stats import binomtest

from landmarks.evaluation.intervals import mean_interval
from landmarks.evaluation.metrics import Flags, Integers
from landmarks.evaluation.predictions import open_run_or_export, predictions_metadata, read_predictions
from landmarks.evaluation.results import Comparison, comparison_of
from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError, UsageError, did_you_mean
from landmarks.support.places import Place
from landmarks.training.own_data import ARCHIVE_ID
from landmarks.training.run import Run

LEVEL = 0.05
"""Significance level: a difference is called real when its p-value is below this and its interval excludes 0."""

DEFINITIONS = {
    "images": "Images that both runs answered, of landmarks that both know.",
    "left_out": "Images that only one of the runs answered, or knows the landmark of.",
    "top1_first": "Share of the images that the first run's best answer is right on.",
    "top1_second": "The same of the second run.",
    "only_first": "Images that the first run answers right and the second wrong.",
    "only_second": "Images that the second run answers right and the first wrong.",
    "difference": "Top-1 of the second run minus top-1 of the first, on the images of landmarks that both know, "
    "with the percentile bootstrap 95 % interval over groups (Wilson's, where no group differs from another).",
    "same_answer": "Share of the images on which both runs' best answers are the same landmark.",
    "p_value": "McNemar's exact test: of the images that exactly one run answers right, the share that is the "
    "second's is compared with one half (binomial, two-sided). It takes images as independent; the "
    "interval does not.",
    "real": "The interval leaves out 0 and the p-value is below 0.05.",
}


def compare(first: Place, second: Place, *, name: str | None = None) -> Comparison:
    """Compare the top-1 accuracy of two runs on the predictions called `name` that both have.

    Each run is a run's folder or an export that has been evaluated. The default for `name` is `test` where both have
    it, else the only name they share. The runs may know different landmarks: only images of landmarks that both know
    count.
    Raises `LandmarksError` when the runs share no predictions or no images, and when their image ids are file names
    from two datasets, so that equal ids may be different images.
    """
    if Path(first).resolve() == Path(second).resolve():
        note(f"{first} is compared with itself: name two runs or exports to learn anything")
    runs = open_run_or_export(first), open_run_or_export(second)
    name = _shared_name(runs, name)
    tables = [
        _answers(run, name).rename({"correct": side, "answer": f"answer_{side}"})
        for run, side in zip(runs, ("first", "second"), strict=True)
    ]
    both = tables[0].join(tables[1].drop("group"), on="image_id", how="inner").sort("image_id")
    if not _same_dataset(runs, name) and not both["image_id"].str.contains(ARCHIVE_ID).all():
        raise LandmarksError(
            f"{runs[0].name} and {runs[1].name} were not judged on one dataset as {name}: two files that are called "
            f"{both['image_id'][0]} may be two images",
            way_out="evaluate both on the same data first",
        )
    if not len(both):
        raise LandmarksError(f"{runs[0].name} and {runs[1].name} share no image of a landmark that both know")
    left_out = len(tables[0]) + len(tables[1]) - 2 * len(both)
    if left_out:
        note(f"left out: {plural(left_out, 'image')} that only one of the runs answered, or knows the landmark of")
    groups = both["group"].cast(pl.Int64).fill_null(-1).to_numpy()
    numbers = paired_test(both["first"].to_numpy(), both["second"].to_numpy(), groups)
    about = {"first": runs[0].name, "second": runs[1].name, "name": name, "left_out": left_out}
    numbers["same_answer"] = float((both["answer_first"] == both["answer_second"]).mean())  # type: ignore[arg-type]
    return comparison_of({**about, **numbers, "verdict": verdict(about, numbers), "definitions": DEFINITIONS})


def paired_test(first: Flags, second: Flags, groups: Integers | None = None, seed: int = 0) -> dict[str, Any]:
    """Return the difference in accuracy of two runs, with its interval and p-value (keys as in `DEFINITIONS`).

    `first` and `second` `(N,)` say which images each run answers right; `groups` `(N,)` are resampled whole.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    bounds = mean_interval(second.astype(float) - first.astype(float), groups, seed, least=-1.0)
    discordant = only_first + only_second
    p_value = float(binomtest(only_second, discordant).pvalue) if discordant else 1.0
    return {
        "images": len(first),
        "top1_first": float(first.mean()),
        "top1_second": float(second.mean()),
        "only_first": only_first,
        "only_second": only_second,
        "difference": {"value": float(second.mean() - first.mean()), **bounds._asdict()},
        "p_value": p_value,
        "real": bool(p_value < LEVEL and not bounds.low <= 0 <= bounds.high),
    }


def verdict(about: dict[str, Any], numbers: dict[str, Any]) -> str:
    """Return the comparison as one sentence."""
    difference = numbers["difference"]
    points, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    better = about["second"] if points >= 0 else about["first"]
    if points < 0:  # phrased as what the better run gains
        points, low, high = -points, -high, -low
    words = f"{points:+z.1f} points, 95 % interval {low:+z.1f} to {high:+z.1f}, p = {numbers['p_value']:.2g}"
    if numbers["real"]:
        return f"{better} is really better ({words})"
    return f"these {numbers['images']} images do not show that one is better ({words})"


def _shared_name(runs: tuple[Run, Run], name: str | None) -> str:
    """Return `name`, or its default, if both runs have predictions called so; raise otherwise."""
    names = [{path.stem for path in (run.folder / "predictions").glob("*.parquet")} for run in runs]
    shared = sorted(names[0] & names[1])
    if name is None and ("test" in shared or len(shared) == 1):
        return "test" if "test" in shared else shared[0]
    if name in shared:
        return str(name)
    if name is None and shared:
        raise UsageError("the runs share several predictions", expected=f"--name with one of {', '.join(shared)}")
    raise LandmarksError(
        f"{runs[0].name} and {runs[1].name} do not share predictions{f' called {name}' if name else ''}",
        received=" and ".join(", ".join(sorted(stems)) or "none" for stems in names),
        way_out=did_you_mean(name or "", shared) or "evaluate both on the same data first",
    )


def _same_dataset(runs: tuple[Run, Run], name: str) -> bool:
    """Return whether both runs' predictions come from one dataset, whatever its splits."""
    first, second = (predictions_metadata(run.folder / "predictions" / f"{name}.parquet") for run in runs)
    return any(
        first.get(key) not in (None, "None") and first.get(key) == second.get(key)
        for key in ("content_digest", "data_digest")
    )


def _answers(run: Run, name: str) -> pl.DataFrame:
    """Return image_id, group, correct and answer (a landmark_id) of the images of landmarks that the run knows."""
    table = read_predictions(run.folder / "predictions" / f"{name}.parquet").filter(pl.col("truth").list.len() > 0)
    answer, names = pl.col("label").list.first(), run.labels.select(label=pl.col("label"), answer="landmark_id")
    table = table.select("image_id", "group", label=answer, correct=pl.col("truth").list.contains(answer))
    return table.join(names, on="label", how="left", maintain_order="left").drop("label")
