"""`landmarks fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fetch(
    selection: Annotated[Path, typer.Argument(help="What landmarks select wrote.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The dataset's folder.")],
    mirror: Annotated[
        str | None, typer.Option(help="Where the TARs are, if not where the selection was made: a path or an address.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="A byte index (path or address): only the photographs travel, not whole TARs.")
    ] = None,
    max_side: Annotated[int, typer.Option(help="The longest side that is stored, in pixels.")] = 512,
    workers: Annotated[int | None, typer.Option(help="TARs worked on at once (default: by the processors).")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Let a Dask cluster do the work: its scheduler's address, tcp://host:8786.")
    ] = None,
    method: Annotated[str, typer.Option(help="auto (by cost), ranges, or stream.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost, and stop.")] = False,
) -> int | None:
    """Fetch the selected photographs: upright, no larger than --max-side, one shard per TAR, MD5 checked.

    Can be stopped at any time and run again. Ends with exit code 1 when a TAR could not be had.

    Example: landmarks fetch twenty.parquet -o twenty --index https://example.org/index.parquet
    """
    from landmarks.archive.fetch import fetch as fetch_photographs

    dataset = fetch_photographs(
        selection,
        out,
        mirror=mirror,
        index=index,
        max_side=max_side,
        workers=workers,
        cluster=cluster,
        method=method,  # type: ignore[arg-type]
        dry_run=dry_run,
    )
    return 1 if dataset is not None and dataset.record["failed"] else None
