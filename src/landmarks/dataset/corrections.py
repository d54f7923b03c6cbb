"""Corrections: what people decided about single photographs, beside the labels as they were fetched.

Nothing is overwritten: `photos.parquet` keeps every label it came with, `corrections.parquet` holds the decisions, and
`open_dataset` applies them, so that each verb sees the corrected label. Delete the file, and all is as before.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from landmarks.dataset.manifest import CORRECTIONS, CORRECTIONS_FILE, Dataset
from landmarks.support.errors import LandmarksError
from landmarks.support.files import file_digest
from landmarks.support.tables import write_table
from landmarks.support.text import require_text

NOTHING = "none"
"""What stands in the CSV for: shows nothing known."""


def add_corrections(dataset: Dataset, decided: pl.DataFrame) -> None:
    """Add decisions (columns of `CORRECTIONS`) to the dataset's, a later one replacing an earlier about the same id.

    The caller holds the folder.
    """
    earlier = dataset.corrections.join(decided, on="id", how="anti")
    write_table(dataset.folder / CORRECTIONS_FILE, pl.concat([earlier, decided]).sort("id"))


def remove_corrections(dataset: Dataset) -> int:
    """Take back all corrections of a dataset, and return how many there were. The caller holds the folder."""
    (dataset.folder / CORRECTIONS_FILE).unlink(missing_ok=True)
    return len(dataset.corrections)


def read_corrections(dataset: Dataset, csv: Path | str) -> pl.DataFrame:
    """Return the decisions (columns of `CORRECTIONS`, sorted by id) in a CSV as `landmarks evaluate --suspects` writes.

    Columns `id` and `correct_landmark_id`: a landmark of the dataset, or `none` for nothing known. A row where it is
    empty was not decided and is passed over. Raises `LandmarksError` that names the first row which cannot be meant.
    """
    csv = Path(csv)
    table = _text_of(csv)
    rows = table.with_row_index("row", 2).filter(pl.col("correct_landmark_id") != "")  # row 1 holds the names
    fetched = dict(dataset.as_fetched().select("id", "landmark_id").iter_rows())
    known = {str(landmark_id): landmark_id for landmark_id in dataset.labels["landmark_id"]} | {NOTHING: None}
    decided: dict[str, int | None] = {}
    for row, id, answer in rows.select("row", "id", "correct_landmark_id").iter_rows():
        where = f"{csv}, row {row}"
        if id not in fetched:
            raise LandmarksError(f'{where}: {dataset.folder} holds no photograph "{id}"', way_out=_about_id(id))
        if answer.lower() not in known:
            raise LandmarksError(
                f'{where}: {dataset.folder} knows no landmark "{answer}"',
                expected=f'the landmark_id of one of its {len(dataset.labels)} landmarks, or "{NOTHING}"',
            )
        if decided.setdefault(id, known[answer.lower()]) != known[answer.lower()]:
            raise LandmarksError(f'{where}: the photograph "{id}" is decided on twice, not the same both times')
    digest = file_digest(csv)
    return pl.DataFrame(
        [(id, landmark_id, fetched[id], digest) for id, landmark_id in decided.items()],
        schema=CORRECTIONS,
        orient="row",
    ).sort("id")


def _text_of(csv: Path) -> pl.DataFrame:
    """Return the two columns of a CSV as text without spaces around it, empty where there is none."""
    require_text(csv)
    try:
        table = pl.read_csv(csv, infer_schema=False)
    except pl.exceptions.NoDataError as error:
        raise LandmarksError(f"{csv} is empty") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LandmarksError(f"{csv} cannot be read as CSV ({str(error).splitlines()[0]})") from error
    wanted = ("id", "correct_landmark_id")
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise LandmarksError(
            f"{csv} lacks the column {missing[0]}",
            received=", ".join(table.columns)[:200],
            way_out="landmarks evaluate RUN --suspects FILE.csv writes such a file",
        )
    return table.select(pl.col(name).fill_null("").str.strip_chars() for name in wanted)


def _about_id(id: str) -> str:
    numeric = id.replace(".", "").replace("+", "").upper().replace("E", "").isdigit() and not id.isdigit()
    return "a spreadsheet turned the id into a number: read the column as text" if numeric else ""
