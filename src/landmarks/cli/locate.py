"""`landmarks locate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def locate(
    mirror: Annotated[
        str, typer.Argument(help="A mirror of the archive: a folder, or an http(s):// or s3:// address.")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The byte index (parquet).")],
    set: Annotated[str, typer.Option(help="train, test or index.")] = "train",
    workers: Annotated[int, typer.Option(help="TARs walked at once; one request each is under way.")] = 64,
) -> int | None:
    """Make the byte index of a mirror: where each photograph lies, so that fetch moves photographs and not TARs.

    Moves half a kilobyte per photograph. Can be stopped at any time and run again.

    Example: landmarks locate https://s3.amazonaws.com/google-landmark -o index.parquet
    """
    from landmarks.archive.locate import locate as locate_photographs
    from landmarks.support.console import note

    index = locate_photographs(mirror, out, set=set, workers=workers)
    note(f"{len(index.tars)} of {index.tar_count} TARs indexed, written to {out}")
    return 1 if index.unindexed else None
