"""The verb `audit`: which labels are likely wrong? Images that look like another landmark, copies with two labels.

A label is doubted when its image, judged without its group, speaks for another landmark (`label_estimates`), or when
the image is a copy of one with another label, anywhere in the dataset (`doubts.copies_in`).

Beside these it lists what else to doubt (see `doubts`): copies in two splits, and images that show no landmark at all.

A check never changes or deletes anything: it writes a sheet to look at, a page to decide on, and a CSV with an empty
column for a person's decision, which `split --corrections` takes over.
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
from landmarks.evaluation.doubts import COPIES_FOUND, copies_in, doubts_of_copies, nearest_cosines, strangers
from landmarks.evaluation.doubts_page import DOUBTS, write_doubts_page
from landmarks.evaluation.intervals import group_places
from landmarks.evaluation.label_estimates import Estimates, cross_validated, disagreements, nearest_others
from landmarks.evaluation.metrics import Floats, Integers
from landmarks.explanation.drawing import fitted, lettering
from landmarks.recognition.directions import directions
from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import written_whole
from landmarks.support.places import Place
from landmarks.support.tables import write_csv
from landmarks.training.choices import choose_device, lay_out
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
    "margin": pl.Float64,  # probability of the suggested minus that of the given landmark; 1 for copies
    "why": pl.String,
    "correct_landmark_id": pl.String,  # empty: for a person to fill in (an id, "none", "remove", or the given one)
}
"""Columns of the CSV, the widest margin first."""


def audit(
    run: Place,
    out: Place,
    *,
    data: Place | None = None,
    split: str = "train",
    device: str = "auto",
) -> pl.DataFrame:
    """Return the likely label errors of a split of the run's dataset (or of `data`), and write them to the CSV `out`.

    Beside it the first of them are shown on a sheet, `out` with the ending `.jpg`. The page, with the ending `.html`,
    asks about them too, about copies in two splits or with two labels, which `.copies.csv` lists for `split --copies`,
    and about images that show no landmark at all, which `.strangers.csv` lists as `out` does. Images a person has
    decided on are not listed again. What the run was trained on is checked like anything else, with a note. The
    features are those of the run's backbone, from the cache where they are there. A backbone that was fine-tuned on
    wrong labels has learned some of them: a run that stopped after the head training sees more.
    """
    out = Path(out)
    sheet = out.with_suffix(".jpg")
    _refuse_to_replace(out)
    opened = open_run(run)
    dataset = find_own_dataset(opened) if data is None else open_dataset(data)
    images, features = split_features(opened, dataset, split, device)
    _tell_seen(opened, images)
    labels = images["label"].cast(pl.Int64).to_numpy()
    groups = images["group"].cast(pl.Int64).fill_null(-1).to_numpy()
    points = directions(features)
    estimates = cross_validated(points, labels, groups, len(dataset.labels))
    listed, margin = disagreements(estimates, labels)
    rows = pl.DataFrame(
        {
            "image_id": images["image_id"],
            "label": labels,
            "suggested": estimates.likeliest,
            "probability": estimates.highest,
            "margin": margin,
            "why": "its features speak for the other landmark",
        }
    ).filter(pl.Series(listed))
    copies = copies_in(dataset)
    copied = _copied(copies, images, dataset)
    table = _named(pl.concat([copied, rows]).unique(subset=["image_id"], keep="first", maintain_order=True), dataset)
    table = table.join(dataset.corrections, on="image_id", how="anti").sort(
        "margin", "image_id", descending=[True, False]
    )
    write_csv(out, table)
    if len(table):
        write_sheet(dataset, table, sheet)
    cosines, _ = nearest_others(points, group_places(groups, len(labels)))
    by_features = table.join(copied, on="image_id", how="anti", maintain_order="left")
    strange = _strange(dataset, images, cosines, estimates, labels)
    _write_doubts(dataset, copies, by_features, strange, out)
    return table


def _refuse_to_replace(out: Path) -> None:
    """Raise `UsageError` where what stands beside the CSV `out` would replace it, or a file of somebody else's."""
    beside = [out.with_suffix(ending) for ending in (".jpg", ".html", ".copies.csv", ".strangers.csv")]
    if out in beside:
        raise UsageError(f"{out} is to hold a table", expected="a name that ends in .csv")
    if not out.exists() and (there := next((path for path in beside if path.exists()), None)):
        raise UsageError(
            f"{there} is there already, and one of this name stands beside {out.name}",
            way_out="choose another name, or remove it first",
        )


def _strange(
    dataset: Dataset, images: pl.DataFrame, cosines: Floats, estimates: Estimates, labels: Integers
) -> pl.DataFrame:
    """Return the images that show no landmark (columns of `LABEL_ERRORS`), the surest first."""
    found, away = strangers(nearest_cosines(cosines), estimates.own, labels)
    rows = pl.DataFrame(
        {
            "image_id": images["image_id"],
            "label": labels,
            "suggested": pl.Series([None] * len(images), dtype=pl.Int64),
            "probability": pl.Series([None] * len(images), dtype=pl.Float64),
            "margin": away,
            "why": "it is far from all others, and nothing speaks for its landmark",
        }
    )
    listed = _named(rows.filter(pl.Series(found)), dataset)
    return listed.join(dataset.corrections, on="image_id", how="anti").sort(
        "margin", "image_id", descending=[True, False]
    )


def _write_doubts(
    dataset: Dataset, copies: pl.DataFrame, errors: pl.DataFrame, strange: pl.DataFrame, out: Path
) -> None:
    """Write what else there is to doubt beside the CSV `out`, and the page that asks about everything.

    `copies` are all of the dataset (columns of `COPIES_FOUND`), `errors` without those among them.
    """
    write_csv(out.with_suffix(".copies.csv"), copies.select(list(COPIES_FOUND)))
    write_csv(out.with_suffix(".strangers.csv"), strange)
    others = doubts_of_copies(copies).join(dataset.corrections, on="image_id", how="anti", maintain_order="left")
    of_labels, of_strangers = (
        table.select(
            kind=pl.lit(kind),
            image_id="image_id",
            suggested_landmark_id="suggested_landmark_id",
            why="why",
            other_id=pl.lit(None, pl.String),
        ).cast(pl.Schema(DOUBTS))
        for table, kind in (
            (errors.join(strange, on="image_id", how="anti", maintain_order="left"), "label"),
            (strange, "nothing"),
        )
    )
    doubts = pl.concat([others, of_labels, of_strangers])
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


def _tell_seen(run: Run, images: pl.DataFrame) -> None:
    """Say how many of `images` a fine-tuned run has seen: to check labels that is no harm, but it hides some."""
    seen = run.seen
    found = 0 if seen is None else len(find_seen(images, seen))
    if found and (run.record.get("best") or {}).get("phase") == "finetune":
        note(
            f"{found} of the {len(images)} images checked are ones that {run.name} was fine-tuned on or validated "
            "with: their labels can be checked all the same, but it has learned some of the wrong ones"
        )


def _named(rows: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Return `rows` in the columns of `LABEL_ERRORS`."""
    names = dataset.labels.select("label", "landmark_id", "name").cast({"label": pl.Int64})
    suggested = names.rename(lambda name: "suggested_" + name)
    joined = rows.join(names, on="label", how="left", maintain_order="left").join(
        suggested, left_on="suggested", right_on="suggested_label", how="left", maintain_order="left"
    )
    joined = joined.with_columns(correct_landmark_id=pl.lit(""))
    return joined.select(pl.col(name).cast(kind) for name, kind in LABEL_ERRORS.items())


def _copied(copies: pl.DataFrame, images: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Return those of `images` that are a copy of one with another label, which it suggests; the surest of each.

    `copies` has the columns of `COPIES_FOUND`. A copy that shows no landmark suggests none, and is left to the page.
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


# A sheet to look at: images whose label is likely wrong, with the label they have and the one suggested.


MOST = 40
"""Images on a sheet; the CSV beside it names all."""

COLUMNS = 5
TILE, SHEET_MARGIN, CAPTION, HEAD = 260, 16, 70, 40
PAPER, EMPTY, INK, QUIET, DOUBT = "#ffffff", "#ececef", "#1c1c1e", "#6b6b70", "#b3261e"


def write_sheet(dataset: Dataset, listed: pl.DataFrame, path: Path) -> None:
    """Write the first `MOST` of `listed` (columns of `LABEL_ERRORS`) as a JPEG, row by row, with captions."""
    shown = listed.head(MOST)
    columns = min(COLUMNS, max(1, len(shown)))
    rows = -(-len(shown) // columns)
    size = SHEET_MARGIN + columns * (TILE + SHEET_MARGIN), HEAD + rows * (TILE + CAPTION + SHEET_MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    _line(draw, (SHEET_MARGIN, 12), f"{len(shown)} of {len(listed)} likely label errors", 18, INK)
    places = {row["image_id"]: row for row in _places(dataset, shown).iter_rows(named=True)}
    reader = ImageReader(dataset)
    for number, row in enumerate(shown.iter_rows(named=True)):
        left = SHEET_MARGIN + number % columns * (TILE + SHEET_MARGIN)
        top = HEAD + number // columns * (TILE + CAPTION + SHEET_MARGIN)
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=EMPTY)
        image = _image(reader, places[row["image_id"]])
        if image is not None:
            tile = Image.fromarray(image)
            sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        _caption(draw, left, top + TILE + 6, row)
    with written_whole(path, tidy=True) as aside:
        sheet.save(aside, format="JPEG", quality=88)


def _places(dataset: Dataset, shown: pl.DataFrame) -> pl.DataFrame:
    return dataset.images.join(shown.select("image_id"), on="image_id", how="semi").select(
        "image_id", "shard", "offset", "length"
    )


def _image(reader: ImageReader, place: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    """Return an image no side of which is longer than a tile; None where it cannot be decoded."""
    try:
        return shrink(decode(reader.read(place["shard"], place["offset"], place["length"])), TILE)
    except ImageError:
        return None


def _caption(draw: ImageDraw.ImageDraw, left: int, top: int, row: dict[str, Any]) -> None:
    against = row["why"]
    if row["probability"] is not None:
        against = f"{100 * row['probability']:.0f} % {row['suggested_name'] or row['suggested_landmark_id']}"
    _line(draw, (left, top), str(row["name"] or row["landmark_id"]), 16, INK)
    _line(draw, (left, top + 22), against, 16, DOUBT)
    _line(draw, (left, top + 44), row["image_id"], 13, QUIET)


def _line(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str) -> None:
    text, font = lettering(text, size)
    draw.text(at, fitted(text, font, TILE if size < 18 else 4 * TILE), fill=colour, font=font)


# What a run's backbone sees in the images of a split: the features that head training was trained on, if they are kept.


def split_features(
    run: Run, dataset: Dataset, split: str, device: str = "auto"
) -> tuple[pl.DataFrame, NDArray[np.float16]]:
    """Return the images of `split` that show known landmarks, with their `label`, and their features `(P, C)`.

    Training keeps the features of train and val together, so both are asked for where one of them is wanted. They are
    computed as in training, in the same precision and, with `device` auto and where it is there, on the same device.
    Raises `LandmarksError` when the split shows no known landmark.
    """
    images = _known(dataset, split)
    if not len(images):
        raise LandmarksError(
            f"the {split} split of {dataset.folder} shows no known landmark: there is nothing to compare"
        )
    together = images
    if split in ("train", "val"):
        together = pl.concat([_known(dataset, name) for name in ("train", "val")]).sort("image_id")
    machine = machine_of(run, dataset, device)
    network = run.network().to(machine.device)
    lay_out(network)
    values = cached_features(network, dataset, together, machine=machine).values
    return images, np.asarray(values[positions(together, images)])


def machine_of(run: Run, dataset: Dataset, device: str) -> Machine:
    """Open this machine as the run's training did; a device that is not here is replaced by the best there is."""
    trained = run.record.get("recipe", {})
    same = {name: trained[name] for name in ("device", "precision") if name in trained}
    recipe = recipe_named("default", **same, tracking="none")
    if device != "auto":
        recipe = replace(recipe, device=device)
    else:
        try:
            choose_device(recipe.device)
        except UsageError:
            recipe = replace(recipe, device="auto")
    return open_machine(recipe, dataset.folder)[0]


def _known(dataset: Dataset, split: str) -> pl.DataFrame:
    return dataset.split(split).filter(pl.col("label").is_not_null())
