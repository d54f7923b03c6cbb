"""`landmarks credits`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def credits(
    data: Annotated[Path, typer.Argument(help="The folder of a dataset.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the list here: CSV if the name ends with .csv, else text.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List who made the photographs and under which licence, as the licences ask of whoever passes them on.

    Example: landmarks credits data/twenty -o CREDITS.txt
    """
    from landmarks.dataset.credits import as_text
    from landmarks.dataset.credits import credits as list_credits
    from landmarks.support.console import note

    listed = list_credits(data, out)
    if as_json:
        print(listed.write_json())
    elif out is None:
        print(as_text(listed), end="")
    if out is not None:
        note(f"credits of {len(listed):,} photographs written to {out}")
