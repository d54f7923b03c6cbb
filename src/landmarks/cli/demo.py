"""`landmarks demo`: the whole way on a made-up archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write everything to.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of the made-up archive.")] = 0,
) -> None:
    """Walk the whole way in a few minutes: a made-up archive, two networks from scratch, a report.

    Every step is printed as the command that does the same. Run again after an interruption, it goes on.

    landmarks demo -o demo
    """
    from landmarks.study.demo import demo as walk

    print(walk(out, seed=seed))
