"""`landmarks split`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def split(
    data: Annotated[Path, typer.Argument(help="The folder of a dataset.")],
    *,
    by: Annotated[
        str | None,
        typer.Option(
            help="group: near-duplicates stay together, and an author's photographs of one landmark; or random.",
            show_default="group",
        ),
    ] = None,
    val: Annotated[
        float | None, typer.Option(help="Share of the photographs for validation; 0 for none.", show_default="0.15")
    ] = None,
    test: Annotated[
        float | None,
        typer.Option(help="Share for the test; 0 where a test set exists elsewhere.", show_default="0.15"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides which photographs go where.", show_default="0")] = None,
    keep_test: Annotated[
        bool | None,
        typer.Option(
            "--keep-test/--anew",
            help="Leave the test part as it is and take val out of the others, or divide everything.",
            show_default="keep a test part that came with the photographs",
        ),
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(help="The CSV of evaluate --suspects, its last column filled in; it holds from here on."),
    ] = None,
    keep_corrections: Annotated[
        bool, typer.Option("--keep-corrections/--no-corrections", help="Keep earlier corrections, or take them back.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts and the leakage as JSON.")] = False,
) -> None:
    """Divide a dataset into train, val and test, landmark by landmark, and say what that gives away.

    A test part that came with the photographs (import of train and test folders, or of a CSV with parts) stays as it
    is, and validation comes out of the others; --anew divides everything. With --corrections alone every photograph
    stays in its part.

    What evaluate --suspects found is taken back with --corrections once a person filled in its last column: the id of
    the landmark, or none. Rows left empty are passed over, labels as they were fetched are kept.

    Example: landmarks split data/twenty --by group --val 0.15 --test 0.15 --seed 0
    """
    from landmarks.dataset.manifest import PARTS
    from landmarks.dataset.split import split as split_dataset
    from landmarks.support.console import print_table
    from landmarks.support.tables import read_metadata

    dataset = split_dataset(
        data,
        by=by,
        val=val,
        test=test,
        seed=seed,
        keep_test=keep_test,
        corrections=corrections,
        keep_corrections=keep_corrections,
    )
    rows = []
    for part in PARTS:
        photos = dataset.part(part)
        known = photos["landmark_id"].drop_nulls()
        rows.append((part, len(photos), known.n_unique(), len(photos) - len(known), photos["group"].n_unique()))
    columns = ("part", "photographs", "landmarks", "of nothing known", "groups")
    if as_json:
        leakage = json.loads(read_metadata(dataset.folder / "split.parquet")["leakage"])
        parts = [dict(zip(columns, row, strict=True)) for row in rows]
        print(json.dumps({"parts": parts, "leakage": leakage, "corrected": len(dataset.corrected)}, indent=2))
    else:
        print_table(columns, rows)
