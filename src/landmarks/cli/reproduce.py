"""`landmarks reproduce`: the study's table, under its own protocol and under a corrected one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    data: Annotated[Path, typer.Argument(help="A dataset folder; its own parts are not used.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write everything to.")] = Path("reproduction"),
    *,
    test: Annotated[
        Path | None, typer.Option(help="Another dataset folder, all of which every run is judged on too.")
    ] = None,
    networks: Annotated[
        str,
        typer.Option(
            help="Names with commas between; inception_resnet_v2 and nasnet_large, which the study "
            "gave up, can be among them."
        ),
    ] = "baseline,resnet18,resnet50,xception,inception_v3",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the square picture, in pixels, for all networks.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of fine-tuning, for all networks.")] = None,
    weights: Annotated[
        str, typer.Option(help="imagenet, none, or NETWORK=FILE for each network with weights of its own.")
    ] = "imagenet",
    seed: Annotated[int, typer.Option(help="Of the parts and of every draw.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON, for programs.")] = False,
) -> int:
    """Train the study's networks as it did, and as it should be done, and show both beside what it published.

    Photographs are not copied. Killed and run again, it goes on and trains nothing twice. Ends with exit code 1 when a
    network could not be trained.

    Example: landmarks reproduce twenty -o reproduction --networks baseline,xception --image-size 160
    """
    import json as json_module

    from landmarks.report.study import study_lines
    from landmarks.study.reproduce import reproduce as run_study
    from landmarks.support.console import print_table

    record = run_study(
        data, out, test=test, networks=networks, image_size=image_size, epochs=epochs, weights=weights, seed=seed
    )
    if json:
        print(json_module.dumps(record, indent=2, ensure_ascii=False))
    else:
        print_table(*study_lines(record))
        print("\n".join(record["notes"]))
        print(record["report"] or "no report: no network was trained")
    return 1 if any(row["why"] for row in record["rows"]) else 0
