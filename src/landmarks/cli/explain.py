"""`landmarks explain`: where a network looked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landmarks.support.errors import UsageError


def explain(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    photos: Annotated[list[Path] | None, typer.Argument(help="Photographs and folders of them.")] = None,
    *,
    data: Annotated[Path | None, typer.Option(help="Take the gallery from this dataset, not the run's own.")] = None,
    part: Annotated[str, typer.Option(help="Take the gallery from this part: train, val, test or all.")] = "test",
    count: Annotated[int | None, typer.Option(help="Photographs: 12 in a gallery, 200 measured.")] = None,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Measure instead how far the maps can be believed.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> int:
    """Draw heat maps of the four best answers for photographs, or for a gallery of recognised ones.

    Example: landmarks explain runs/resnet50 holiday/*.jpg
    """
    from json import dumps

    from landmarks.explanation.explain import explain as draw
    from landmarks.support.console import print_table

    if faithfulness:
        if photos:
            raise UsageError("--faithfulness measures a dataset's photographs", way_out="name it with --data")
        return _measure(run, data=data, part=part, count=count or 200, device=device, json=json)
    result = draw(run, photos, data=data, part=part, count=12 if count is None else count, device=device)
    if json:
        print(dumps(result, ensure_ascii=False))
    else:
        rows = [
            [entry["picture"], entry["answers"][0]["name"], f"{100 * entry['answers'][0]['probability']:.1f} %"]
            for entry in result["made"]
        ]
        print_table(["picture", "answer", "probability"], rows, title=f"{run / 'maps'}: {result['method']}")
    return 1 if result["rejected"] else 0


def _measure(run: Path, *, data: Path | None, part: str, count: int, device: str, json: bool) -> int:
    from json import dumps

    from landmarks.explanation.faithfulness import faithfulness
    from landmarks.support.console import print_table

    record = faithfulness(run, data=data, part=part, count=count, device=device)
    if json:
        print(dumps(record))
        return 0
    rows = [[each["map"], *(_told(each[curve]) for curve in ("deletion", "insertion"))] for each in record["maps"]]
    title = f"{record['photographs']} photographs: area under the curve (what the heat map gains, 95 % interval)"
    print_table(["map", "deletion, less is better", "insertion, more is better"], rows, title=title)
    return 0


def _told(curve: dict[str, float | None]) -> str:
    if "gain" not in curve:
        return f"{curve['area']:.3f}"
    interval = "" if curve["low"] is None else f"; {curve['low']:+.3f} to {curve['high']:+.3f}"
    return f"{curve['area']:.3f} ({curve['gain']:+.3f}{interval})"
