"""Corrections: what people decided about single images, beside the labels as they were fetched.

Nothing is overwritten: `images.parquet` keeps every image and label it came with, `corrections.parquet` holds the
decisions, and `open_dataset` applies them, so that each verb sees the corrected label, and no removed image. Delete the
file, and all is as before.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from landmarks.dataset.csv_text import SEPARATORS, text_of
from landmarks.dataset.manifest import CORRECTIONS, CORRECTIONS_FILE, Dataset
from landmarks.support.disk import remove_file
from landmarks.support.errors import LandmarksError
from landmarks.support.files import file_digest
from landmarks.support.places import Place
from landmarks.support.systems import require_text
from landmarks.support.tables import unescaped, write_table

NOTHING = "none"
"""What stands in the CSV for: shows nothing known."""

REMOVE = "remove"
"""What stands in the CSV for: not to be in the dataset at all."""


def add_corrections(dataset: Dataset, decided: pl.DataFrame) -> None:
    """Add decisions (columns of `CORRECTIONS`) to the dataset's, a later one replacing an earlier about the same id.

    The caller holds the folder.
    """
    earlier = dataset.corrections.join(decided, on="image_id", how="anti")
    write_table(dataset.folder / CORRECTIONS_FILE, pl.concat([earlier, decided]).sort("image_id"))


def remove_corrections(dataset: Dataset) -> int:
    """Take back all corrections of a dataset, and return how many there were. The caller holds the folder."""
    remove_file(dataset.folder / CORRECTIONS_FILE)
    return len(dataset.corrections)


def read_corrections(dataset: Dataset, csv: Place) -> pl.DataFrame:
    """Return the decisions (columns of `CORRECTIONS`, sorted by id) in a CSV as `landmarks audit` writes.

    Columns `image_id` and `correct_landmark_id`: a landmark of the dataset, `none` for nothing known, or `remove` for
    an image that is to be left out of everything. A row where it is empty was not decided and is passed over.

    Raises `LandmarksError` that names the first row which cannot be meant.
    """
    csv = Path(csv)
    table = columns_of(csv, ("image_id", "correct_landmark_id"), "landmarks audit RUN -o FILE.csv writes such a file")
    rows = table.with_row_index("row", 2).filter(pl.col("correct_landmark_id") != "")  # row 1 holds the names
    fetched = dict(dataset.as_fetched().select("image_id", "landmark_id").iter_rows())
    known = {str(landmark_id): landmark_id for landmark_id in dataset.labels["landmark_id"]} | {
        NOTHING: None,
        REMOVE: None,
    }
    # `8.0` is what tables with gaps make of whole numbers.
    whole = pl.col("correct_landmark_id").str.to_lowercase().str.replace(r"^(-?[0-9]+)\.0+$", "${1}")
    decided: dict[str, str] = {}
    for row, id, answer in rows.select("row", "image_id", whole).iter_rows():
        where = f"{csv}, row {row}"
        if id not in fetched:
            raise LandmarksError(f'{where}: {dataset.folder} holds no image "{id}"', way_out=_about_id(id))
        if answer not in known:
            raise LandmarksError(
                f'{where}: {dataset.folder} knows no landmark "{answer}"',
                expected=f'the landmark_id of one of its {len(dataset.labels)} landmarks, "{NOTHING}" or "{REMOVE}"',
                way_out=_about_name(dataset, answer),
            )
        if decided.setdefault(id, answer) != answer:
            raise LandmarksError(f'{where}: the image "{id}" is decided on twice, not the same both times')
    digest = file_digest(csv)
    return pl.DataFrame(
        [(id, known[answer], fetched[id], digest, answer == REMOVE) for id, answer in decided.items()],
        schema=CORRECTIONS,
        orient="row",
    ).sort("image_id")


def columns_of(csv: Path, wanted: tuple[str, ...], way_out: str) -> pl.DataFrame:
    """Return columns of a CSV as text without spaces around it, empty where there is none; raise where one lacks."""
    require_text(csv)
    text = text_of(csv)
    header = text.partition("\n")[0]
    separator = max(SEPARATORS, key=lambda mark: sum(name.strip(' "\r') in wanted for name in header.split(mark)))
    try:
        table = pl.read_csv(text.encode(), infer_schema=False, separator=separator, glob=False)
    except pl.exceptions.NoDataError as error:
        raise LandmarksError(f"{csv} is empty") from error
    except pl.exceptions.PolarsError as error:
        raise LandmarksError(f"{csv} cannot be read as CSV ({str(error).splitlines()[0]})") from error
    table = table.rename({name: name.strip() for name in table.columns if name.strip() not in table.columns})
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise LandmarksError(
            f"{csv} lacks the column {missing[0]}", received=", ".join(table.columns)[:200], way_out=way_out
        )
    return unescaped(table.select(pl.col(name).fill_null("").str.strip_chars() for name in wanted))


def _about_name(dataset: Dataset, answer: str) -> str:
    """Return the id of the landmark that is called so, where it is one."""
    called = dataset.labels.filter(pl.col("name").str.to_lowercase() == answer)
    return f'"{called["name"][0]}" has the landmark_id {called["landmark_id"][0]}' if len(called) == 1 else ""


def _about_id(id: str) -> str:
    numeric = id.replace(".", "").replace("+", "").upper().replace("E", "").isdigit() and not id.isdigit()
    return "a spreadsheet turned the id into a number: read the column as text" if numeric else ""
