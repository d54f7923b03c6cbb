"""The images of a dataset that a network is trained on and validated with."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from landmarks.dataset.division import MIN_IMAGES_TO_SPLIT
from landmarks.dataset.manifest import Dataset
from landmarks.support.console import plural
from landmarks.support.errors import LandmarksError


@dataclass(frozen=True)
class TrainingImages:
    """The images to train on and to validate with, all of known landmarks, with their labels."""

    train: pl.DataFrame
    val: pl.DataFrame
    notes: tuple[str, ...] = ()  # what the user should know about them


def check_data(dataset: Dataset) -> TrainingImages:
    """Return the images to train on and to validate with; raise `LandmarksError` when there are too few."""
    landmarks = len(dataset.labels)
    if landmarks < 2:
        raise LandmarksError(
            f"{dataset.folder} cannot be trained on", received=plural(landmarks, "landmark"), expected="2 or more"
        )
    train, val = _known(dataset, "train"), _known(dataset, "val")
    if dataset.images["landmark_id"].drop_nulls().is_empty():
        removed = int(dataset.corrections["removed"].sum())
        raise LandmarksError(
            f"{dataset.folder} holds no image of a landmark",
            way_out=f"corrections removed {plural(removed, 'image')}: landmarks split {dataset.folder}"
            " --no-corrections takes them back"
            if removed
            else "",
        )
    if not len(train):
        raise LandmarksError(
            f"the train split of {dataset.folder} shows no known landmark",
            way_out=f"divide everything anew with: landmarks split {dataset.folder} --anew",
        )
    if not len(val):
        most = int(train["label"].value_counts()["count"].max() or 0)  # type: ignore[arg-type]
        share = 0.15 if most >= MIN_IMAGES_TO_SPLIT else 0.5  # 0.15 of a few images is none
        way_out = f"divide it with: landmarks split {dataset.folder} --val {share}"
        if dataset.count("test"):
            way_out = (
                "take some out of train, while test stays as it is, with: "
                f"landmarks split {dataset.folder} --val {share} --keep-test"
            )
        if most < 2:
            way_out = "every landmark has a single image to train on: validation takes landmarks of two images or more"
        raise LandmarksError(f"the val split of {dataset.folder} shows no known landmark", way_out=way_out)
    counts = train["label"].value_counts()
    absent = dataset.labels.filter(~pl.col("label").is_in(counts["label"].to_list()))
    notes = []
    if len(absent):
        notes.append(
            f"{len(absent)} of {landmarks} landmarks have no image to train on and will never be answered: "
            + ", ".join(str(name) for name in absent["name"].head(3).fill_null("?"))
            + (", …" if len(absent) > 3 else "")
        )
    single = int((counts["count"] == 1).sum())
    if single:
        notes.append(f"{single} landmark{'s have' if single > 1 else ' has'} a single image to train on")
    unvalidated = counts.filter(~pl.col("label").is_in(val["label"].unique().implode()))
    if len(unvalidated):
        notes.append(
            f"{len(unvalidated):,} of {landmarks:,} landmarks have no validation image: validation says nothing of them"
        )
    unknown = dataset.count("train") - len(train)
    if unknown:
        notes.append(f"left out of training: {plural(unknown, 'image')} of nothing known")
    return TrainingImages(train, val, tuple(notes))


def _known(dataset: Dataset, split: str) -> pl.DataFrame:
    """Return the images of a split that show a known landmark, without the columns that training does not use."""
    images = dataset.split(split).drop("author", "license", "title", "usage", "landmarks")
    return images.filter(pl.col("label").is_not_null()) if images["label"].null_count() else images
