"""`landmarks import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_(
    source: Annotated[
        Path, typer.Argument(help="A folder per landmark, train/val/test folders of these, or a CSV (path, label).")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the new dataset.")],
    labels: Annotated[
        Path | None, typer.Option(help="Number the landmarks as this dataset or run does; other names are refused.")
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy/--reference", help="Copy the photographs into shards, or leave them where they are.")
    ] = True,
    max_side: Annotated[int, typer.Option(min=1, help="Copies have no side longer than so many pixels.")] = 512,
) -> None:
    """Make a dataset of photographs in folders or of a CSV.

    Photographs in the folder _unknown, or in none, show nothing known.

    Example: landmarks import ~/photographs -o data/mine
    """
    from landmarks.dataset.folders import import_ as import_photographs
    from landmarks.support.console import out as screen

    dataset = import_photographs(source, out, labels=labels, copy=copy, max_side=max_side)
    screen.print(f"{len(dataset.photos):,} photographs of {len(dataset.labels):,} landmarks in {out}", markup=False)
