"""`landmarks unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def unpack(
    data: Annotated[Path, typer.Argument(help="The folder of a dataset.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the folders are written.")],
) -> None:
    """Write a dataset's photographs into folders per part and landmark, for people and other tools.

    Example: landmarks unpack data/twenty -o folders/twenty
    """
    from landmarks.dataset.unpack import unpack as unpack_photographs
    from landmarks.support.console import out as screen

    screen.print(f"unpacked into {unpack_photographs(data, out)}", markup=False)
