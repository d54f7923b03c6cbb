"""Corrections: decisions of people about the labels of single images.

Nothing is overwritten: `images.parquet` keeps all images and labels, and `corrections.parquet` holds the decisions.
`open_dataset` applies them, so that every verb sees corrected labels and no removed images. Deleting the file undoes
them.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from landmarks.dataset.csv_files import read_text_columns
from landmarks.dataset.manifest import CORRECTIONS, CORRECTIONS_FILE, Dataset
from landmarks.support.disk import remove_file
from landmarks.support.errors import LandmarksError
from landmarks.support.files import file_digest
from landmarks.support.places import Place
from landmarks.support.tables import write_table

NOTHING = "none"
"""In the CSV: the image shows nothing known."""

REMOVE = "remove"
"""In the CSV: the image is to be left out of the dataset."""


_COLUMNS = ("image_id", "correct_landmark_id")


def add_corrections(dataset: Dataset, decided: pl.DataFrame) -> None:
    """Add decisions (columns of `CORRECTIONS`) to a dataset; they replace earlier ones about the same images.

    The caller holds the folder.
    """
    earlier = dataset.corrections.join(decided, on="image_id", how="anti")
    write_table(dataset.folder / CORRECTIONS_FILE, pl.concat([earlier, decided]).sort("image_id"))


def remove_corrections(dataset: Dataset) -> int:
    """Remove all corrections of a dataset, and return how many there were. The caller holds the folder."""
    remove_file(dataset.folder / CORRECTIONS_FILE)
    return len(dataset.corrections)


def read_corrections(dataset: Dataset, csv: Place) -> pl.DataFrame:
    """Return the decisions (columns of `CORRECTIONS`, sorted by id) in a CSV such as `landmarks audit` writes.

    It has the columns `image_id` and `correct_landmark_id`. The latter holds a landmark of the dataset, `none` for
    nothing known, or `remove` for an image to be left out of the dataset. Rows in which it is empty are skipped.

    Raises `LandmarksError` with the first line that is invalid.
    """
    csv = Path(csv)
    table = read_text_columns(csv, _COLUMNS, "landmarks audit RUN -o FILE.csv writes such a file")
    rows = table.filter(pl.col("correct_landmark_id") != "")
    fetched = dict(dataset.as_fetched().select("image_id", "landmark_id").iter_rows())
    known = {str(landmark_id): landmark_id for landmark_id in dataset.labels["landmark_id"]} | {
        NOTHING: None,
        REMOVE: None,
    }
    # Tables with gaps write integers as `8.0`.
    integer = pl.col("correct_landmark_id").str.to_lowercase().str.replace(r"^(-?[0-9]+)\.0+$", "${1}")
    decided: dict[str, str] = {}
    for line, id, answer in rows.select("line", "image_id", integer).iter_rows():
        where = f"{csv} line {line}"
        if id not in fetched:
            raise LandmarksError(f'{where}: {dataset.folder} holds no image "{id}"', way_out=_id_hint(id))
        if answer not in known:
            raise LandmarksError(
                f'{where}: {dataset.folder} knows no landmark "{answer}"',
                expected=f'the landmark_id of one of its {len(dataset.labels)} landmarks, "{NOTHING}" or "{REMOVE}"',
                way_out=_name_hint(dataset, answer),
            )
        if decided.setdefault(id, answer) != answer:
            raise LandmarksError(f'{where}: the image "{id}" is decided on twice, not the same both times')
    digest = file_digest(csv)
    return pl.DataFrame(
        [(id, known[answer], fetched[id], digest, answer == REMOVE) for id, answer in decided.items()],
        schema=CORRECTIONS,
        orient="row",
    ).sort("image_id")


def decisions_in(csv: Path) -> int | None:
    """Return the number of rows in which a person has filled in a decision; None if it is no CSV of decisions."""
    try:
        table = read_text_columns(csv, _COLUMNS, "")
    except LandmarksError:
        return None
    return int((table["correct_landmark_id"] != "").sum())


def _name_hint(dataset: Dataset, answer: str) -> str:
    """Return the id of the only landmark with the name `answer`, in words, or an empty string."""
    named = dataset.labels.filter(pl.col("name").str.to_lowercase() == answer)
    return f'"{named["name"][0]}" has the landmark_id {named["landmark_id"][0]}' if len(named) == 1 else ""


def _id_hint(id: str) -> str:
    numeric = id.replace(".", "").replace("+", "").upper().replace("E", "").isdigit() and not id.isdigit()
    return "a spreadsheet turned the id into a number: read the column as text" if numeric else ""
