"""`landmarks compare`: is one run really better than another?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    first: Annotated[Path, typer.Argument(help="A run's folder.")],
    second: Annotated[Path, typer.Argument(help="Another run's folder.")],
    name: Annotated[str | None, typer.Option(help="Which predictions: val, test, or a dataset's folder name.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say whether the difference between two runs is real, by paired tests over the same photographs.

    Example: landmarks compare runs/baseline runs/mobilenet
    """
    import json as json_module

    from landmarks.evaluation.compare import compare as compare_runs
    from landmarks.support.console import print_table

    numbers = compare_runs(first, second, name=name)
    if json:
        print(json_module.dumps(numbers, indent=2, ensure_ascii=False))
        return
    rows = [
        (numbers["first"], f"{100 * numbers['top1_first']:.1f} %", numbers["only_first"]),
        (numbers["second"], f"{100 * numbers['top1_second']:.1f} %", numbers["only_second"]),
    ]
    title = f"{numbers['name']}: {numbers['photographs']} photographs"
    print_table(["run", "top-1", "right where the other is wrong"], rows, title)
    print(numbers["verdict"])
