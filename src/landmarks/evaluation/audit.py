"""The verb `audit`: find likely label errors, copies in two splits, and images that show no landmark.

A label is likely wrong when the image's features, estimated without its group, indicate another landmark
(`label_estimates`), or when the image is a copy of one with another label, anywhere in the dataset
(`doubts.copies_in`). See `doubts` for copies in two splits and images without a landmark.

An audit never changes or deletes anything. It writes a sheet of images, a page to decide on, and a CSV with an empty
column for a person's decision, which `split --corrections` applies.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from landmarks.dataset.images import ImageError, decode, shrink
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import ImageReader
from landmarks.dataset.split import decisions_in
from landmarks.evaluation.doubts import (
    COPIES_FOUND,
    DOUBTS,
    copies_in,
    doubts_of_copies,
    find_strangers,
    nearest_cosines,
    write_doubts_page,
)
from landmarks.evaluation.label_estimates import Estimates, disagreements, estimated, nearest_others
from landmarks.evaluation.metrics import Floats, Integers
from landmarks.explanation.explain import shortened, text_and_font
from landmarks.recognition.vectors import directions
from landmarks.support.console import note, plural
from landmarks.support.disk import remove_file
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import file_digest, refuse_other_kind, require_writable, written_whole
from landmarks.support.places import Place, in_shell
from landmarks.support.tables import CSV_ENDINGS, write_csv
from landmarks.training.choices import choose_device, set_memory_layout
from landmarks.training.features import cached_features, positions
from landmarks.training.machine import Machine, open_machine
from landmarks.training.own_data import find_own_dataset, find_seen
from landmarks.training.recipe import recipe_named
from landmarks.training.run import Run, open_run

LABEL_ERRORS = {
    "image_id": pl.String,
    "landmark_id": pl.Int64,  # the label it has
    "name": pl.String,
    "suggested_landmark_id": pl.Int64,
    "suggested_name": pl.String,
    "probability": pl.Float64,  # of the suggested landmark; empty for copies
    "margin": pl.Float64,  # probability of the suggested minus that of the labelled landmark; 1 for copies
    "why": pl.String,
    "correct_landmark_id": pl.String,  # empty, for a person to fill in (an id, "none", "remove", or the present one)
}
"""Columns of the CSV; rows are sorted by margin, the widest first."""


def audit(
    run: Place,
    out: Place,
    *,
    data: Place | None = None,
    split: str = "train",
    device: str = "auto",
) -> pl.DataFrame:
    """Return the likely label errors of a split of the run's dataset (or of `data`), and write them to the CSV `out`.

    More files are written beside `out`, with its name and other endings: `.jpg`, a sheet of the first images;
    `.copies.csv`, copies in two splits or with two labels, for `split --copies`; `.strangers.csv`, images that show no
    landmark at all, with the columns of `out`; and `.html`, a page that asks about all of these. Images that a person
    has already decided on are not listed again.

    Features come from the run's backbone, cached where possible. A backbone that was fine-tuned on wrong labels has
    learned some of them, so a run that stopped after head training finds more. Images that the run was trained on are
    checked like any others, with a note.
    """
    out = Path(out)
    sheet = out.with_suffix(".jpg")
    _refuse_to_replace(out)
    opened = open_run(run)
    dataset = find_own_dataset(opened) if data is None else open_dataset(data)
    _refuse_to_replace_decisions(out, dataset)
    images, features = split_features(opened, dataset, split, device)
    _note_seen(opened, images)
    labels = images["label"].cast(pl.Int64).to_numpy()
    groups = images["group"].cast(pl.Int64).fill_null(-1).to_numpy()
    points = directions(features)
    nearest = nearest_others(points, groups)
    estimates = estimated(points, labels, groups, len(dataset.labels), nearest)
    likely_wrong, margin = disagreements(estimates, labels)
    rows = pl.DataFrame(
        {
            "image_id": images["image_id"],
            "label": labels,
            "suggested": estimates.likeliest,
            "probability": estimates.highest,
            "margin": margin,
            "why": "its features speak for the other landmark",
        }
    ).filter(pl.Series(likely_wrong))
    copies = copies_in(dataset)
    copied = _copies_with_other_labels(copies, images, dataset)
    errors = pl.concat([copied, rows]).unique(subset=["image_id"], keep="first", maintain_order=True)
    table = _with_names(errors, dataset)
    table = table.join(dataset.corrections, on="image_id", how="anti").sort(
        "margin", "image_id", descending=[True, False]
    )
    write_csv(out, table)
    if len(table):
        write_sheet(dataset, table, sheet)
    else:
        remove_file(sheet)  # of an earlier audit
    by_features = table.join(copied, on="image_id", how="anti", maintain_order="left")
    without_landmark = _strangers(dataset, images, nearest.cosines, estimates, labels)
    _write_doubts(dataset, copies, by_features, without_landmark, out)
    return table


def _refuse_to_replace(out: Path) -> None:
    """Raise `UsageError` where a file written beside the CSV `out` would replace it or a foreign file."""
    refuse_other_kind(out, *CSV_ENDINGS)
    require_writable(out)
    beside = [out.with_suffix(ending) for ending in (".jpg", ".html", ".copies.csv", ".strangers.csv")]
    if out in beside:
        raise UsageError(f"{out} is to hold a table", expected="a name that ends in .csv")
    if not out.exists() and (present := next((path for path in beside if path.exists()), None)):
        raise UsageError(
            f"{present} is there already, and one of this name stands beside {out.name}",
            way_out="choose another name, or remove it first",
        )


def _refuse_to_replace_decisions(out: Path, dataset: Dataset) -> None:
    """Raise `UsageError` if a CSV to be written is no audit's, or holds decisions that are not in the dataset yet."""
    for csv in (path for path in (out, out.with_suffix(".strangers.csv")) if path.is_file()):
        decisions = decisions_in(csv)
        if decisions is None:
            raise UsageError(
                f"{csv} is there already, and is no list of doubtful labels",
                way_out="choose another name, or remove it first",
            )
        if decisions and file_digest(csv) not in dataset.corrections["csv"]:
            raise UsageError(
                f"{csv} holds {plural(decisions, 'decision')} that {dataset.folder} does not hold yet",
                way_out=f"landmarks split {in_shell(dataset.folder)} --corrections {in_shell(csv)} takes them; or "
                "choose another name",
            )


def _strangers(
    dataset: Dataset, images: pl.DataFrame, cosines: Floats, estimates: Estimates, labels: Integers
) -> pl.DataFrame:
    """Return the images that show no landmark (columns of `LABEL_ERRORS`), the clearest first."""
    found, strangeness = find_strangers(nearest_cosines(cosines), estimates.own, labels)
    rows = pl.DataFrame(
        {
            "image_id": images["image_id"],
            "label": labels,
            "suggested": pl.Series([None] * len(images), dtype=pl.Int64),
            "probability": pl.Series([None] * len(images), dtype=pl.Float64),
            "margin": strangeness,
            "why": "it is far from all others, and nothing speaks for its landmark",
        }
    )
    table = _with_names(rows.filter(pl.Series(found)), dataset)
    return table.join(dataset.corrections, on="image_id", how="anti").sort(
        "margin", "image_id", descending=[True, False]
    )


def _write_doubts(
    dataset: Dataset, copies: pl.DataFrame, errors: pl.DataFrame, strangers: pl.DataFrame, out: Path
) -> None:
    """Write the CSVs of copies and strangers beside the CSV `out`, and the page that asks about all doubts.

    `copies` are those of the whole dataset (columns of `COPIES_FOUND`), `errors` the label errors that are no copies.
    """
    write_csv(out.with_suffix(".copies.csv"), copies.select(list(COPIES_FOUND)))
    write_csv(out.with_suffix(".strangers.csv"), strangers)
    of_copies = doubts_of_copies(copies).join(dataset.corrections, on="image_id", how="anti", maintain_order="left")
    of_labels, of_strangers = (
        table.select(
            kind=pl.lit(kind),
            image_id="image_id",
            suggested_landmark_id="suggested_landmark_id",
            why="why",
            other_id=pl.lit(None, pl.String),
        ).cast(pl.Schema(DOUBTS))
        for table, kind in (
            (errors.join(strangers, on="image_id", how="anti", maintain_order="left"), "label"),
            (strangers, "nothing"),
        )
    )
    doubts = pl.concat([of_copies, of_labels, of_strangers])
    counts = dict(doubts.group_by("kind").len().iter_rows())
    note(
        f"{counts.get('leak', 0):,} leaks between splits,"
        f" {counts.get('across', 0):,} images whose copy has another label,"
        f" {counts.get('label', 0):,} other labels likely wrong, {counts.get('nothing', 0):,} images of no landmark"
    )
    if len(doubts):
        page = out.with_suffix(".html")
        write_doubts_page(dataset, doubts, page, f"{out.stem}.decisions.csv")
        note(f"decide on them with the keyboard: {page}")
    else:
        remove_file(out.with_suffix(".html"))  # of an earlier audit


def _note_seen(run: Run, images: pl.DataFrame) -> None:
    """Say how many of `images` a fine-tuned run has seen: it may have learned their wrong labels."""
    seen = run.seen
    found = 0 if seen is None else len(find_seen(images, seen))
    if found and (run.record.get("best") or {}).get("phase") == "finetune":
        note(
            f"{found} of the {len(images)} images checked are ones that {run.name} was fine-tuned on or validated "
            "with: their labels can be checked all the same, but it has learned some of the wrong ones"
        )


def _with_names(rows: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Return `rows` with the columns of `LABEL_ERRORS`, names of landmarks included."""
    names = dataset.labels.select("label", "landmark_id", "name").cast({"label": pl.Int64})
    suggested = names.rename(lambda name: "suggested_" + name)
    joined = rows.join(names, on="label", how="left", maintain_order="left").join(
        suggested, left_on="suggested", right_on="suggested_label", how="left", maintain_order="left"
    )
    joined = joined.with_columns(correct_landmark_id=pl.lit(""))
    return joined.select(pl.col(name).cast(kind) for name, kind in LABEL_ERRORS.items())


def _copies_with_other_labels(copies: pl.DataFrame, images: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Return those of `images` that are a copy of an image with another label, and suggest that label.

    `copies` has the columns of `COPIES_FOUND`; of several copies the one that agrees most counts. A copy without a
    label suggests none and only appears on the page.
    """
    labels = dataset.labels.select(suggested=pl.col("label").cast(pl.Int64), suggested_landmark_id="landmark_id")
    across = doubts_of_copies(copies).filter(pl.col("kind") == "across")
    return (
        across.join(images.select("image_id", pl.col("label").cast(pl.Int64)), on="image_id", maintain_order="left")
        .join(labels, on="suggested_landmark_id", maintain_order="left")
        .unique("image_id", keep="first", maintain_order=True)
        .select(
            "image_id",
            "label",
            "suggested",
            probability=pl.lit(None, pl.Float64),
            margin=pl.lit(1.0),
            why=pl.format("a copy of {} ({})", "other_id", "why"),
        )
    )


# The sheet: images whose label is likely wrong, with the label they have and the one suggested.


MOST_ON_SHEET = 40
"""Images on a sheet; the CSV lists all."""

COLUMNS = 5
TILE, SHEET_MARGIN, CAPTION, HEAD = 260, 16, 70, 40
PAPER, EMPTY, INK, QUIET, DOUBT = "#ffffff", "#ececef", "#1c1c1e", "#6b6b70", "#b3261e"


def write_sheet(dataset: Dataset, errors: pl.DataFrame, path: Path) -> None:
    """Write the first `MOST_ON_SHEET` images of `errors` (columns of `LABEL_ERRORS`) to one JPEG, with captions."""
    shown = errors.head(MOST_ON_SHEET)
    columns = min(COLUMNS, max(1, len(shown)))
    rows = -(-len(shown) // columns)
    size = SHEET_MARGIN + columns * (TILE + SHEET_MARGIN), HEAD + rows * (TILE + CAPTION + SHEET_MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    _line(draw, (SHEET_MARGIN, 12), f"{len(shown)} of {len(errors)} likely label errors", 18, INK)
    locations = dataset.images.join(shown.select("image_id"), on="image_id", how="semi").select(
        "image_id", "shard", "offset", "length"
    )
    places = {row["image_id"]: row for row in locations.iter_rows(named=True)}
    reader = ImageReader(dataset)
    for number, row in enumerate(shown.iter_rows(named=True)):
        left = SHEET_MARGIN + number % columns * (TILE + SHEET_MARGIN)
        top = HEAD + number // columns * (TILE + CAPTION + SHEET_MARGIN)
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=EMPTY)
        image = _tile(reader, places[row["image_id"]])
        if image is not None:
            tile = Image.fromarray(image)
            sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        _caption(draw, left, top + TILE + 6, row)
    with written_whole(path, tidy=True) as aside:
        sheet.save(aside, format="JPEG", quality=88)


def _tile(reader: ImageReader, place: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    """Return an image shrunk to fit a tile; None where it cannot be decoded."""
    try:
        return shrink(decode(reader.read(place["shard"], place["offset"], place["length"])), TILE)
    except ImageError:
        return None


def _caption(draw: ImageDraw.ImageDraw, left: int, top: int, row: dict[str, Any]) -> None:
    doubt = row["why"]
    if row["probability"] is not None:
        doubt = f"{100 * row['probability']:.0f} % {row['suggested_name'] or row['suggested_landmark_id']}"
    _line(draw, (left, top), str(row["name"] or row["landmark_id"]), 16, INK)
    _line(draw, (left, top + 22), doubt, 16, DOUBT)
    _line(draw, (left, top + 44), row["image_id"], 13, QUIET)


def _line(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str) -> None:
    text, font = text_and_font(text, size)
    draw.text(at, shortened(text, font, TILE if size < 18 else 4 * TILE), fill=colour, font=font)


# The features of a split by a run's backbone: those that head training used, where they are still cached.


def split_features(
    run: Run, dataset: Dataset, split: str, device: str = "auto"
) -> tuple[pl.DataFrame, NDArray[np.float16]]:
    """Return the images of `split` that show known landmarks, with their `label`, and their features `(N, C)`.

    Training caches the features of train and val together, so both are requested where one of them is wanted. They are
    computed as in training, in the same precision and, with `device` auto, on the same device if it is available.
    Raises `LandmarksError` when the split shows no known landmark.
    """
    images = _labelled_images(dataset, split)
    if not len(images):
        raise LandmarksError(
            f"the {split} split of {dataset.folder} shows no known landmark: there is nothing to compare"
        )
    cached = images
    if split in ("train", "val"):
        cached = pl.concat([_labelled_images(dataset, name) for name in ("train", "val")]).sort("image_id")
    machine = open_training_machine(run, dataset, device)
    network = run.network().to(machine.device)
    set_memory_layout(network)
    values = cached_features(network, dataset, cached, machine=machine).values
    return images, np.asarray(values[positions(cached, images)])


def open_training_machine(run: Run, dataset: Dataset, device: str) -> Machine:
    """Open the device and precision that the run was trained with, or the best available device in its place."""
    recorded = run.record.get("recipe", {})
    settings = {name: recorded[name] for name in ("device", "precision") if name in recorded}
    recipe = recipe_named("default", **settings, tracking="none")
    if device != "auto":
        recipe = replace(recipe, device=device)
    else:
        try:
            choose_device(recipe.device)
        except UsageError:
            recipe = replace(recipe, device="auto")
    return open_machine(recipe, dataset.folder)[0]


def _labelled_images(dataset: Dataset, split: str) -> pl.DataFrame:
    return dataset.split(split).filter(pl.col("label").is_not_null())
