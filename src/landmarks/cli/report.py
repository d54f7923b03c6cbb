"""`landmarks report`: runs become one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders that `landmarks train` made.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    study: Annotated[
        Path | None, typer.Option(help="The study.json of a reproduction: its table is shown beside the results.")
    ] = None,
) -> None:
    """Write one HTML page about one or several runs: tables, charts, photographs, and what the numbers mean.

    The page needs no network. Every figure also lies beside it, under figures/, as SVG and as CSV.

    Example: landmarks report runs/resnet50 runs/xception -o report.html
    """
    from landmarks.report.page import report as write_report

    print(write_report(runs, out, study=study))
