"""`landmarks networks`: what each network costs."""

from __future__ import annotations

from typing import Annotated

import typer


def networks(
    name: Annotated[str | None, typer.Argument(help="One network, also any of timm's names.")] = None,
    classes: Annotated[int, typer.Option(help="Number of landmarks the head answers.")] = 20,
    head: Annotated[str, typer.Option(help="study, linear or cosine.")] = "study",
    image_size: Annotated[int | None, typer.Option(help="Side in pixels, instead of the network's own.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print parameters, input size, cost and licence of the networks.

    Example: landmarks networks resnet50 --classes 100
    """
    from landmarks.networks.catalogue import networks as list_networks
    from landmarks.support.console import print_table

    table = list_networks(name, classes=classes, head=head, image_size=image_size)
    if json:
        print(table.write_json())
        return
    columns = ["network", "parameters", "trainable", "not trained", "pixels", "GMACs", "licence"]
    rows = [
        [
            row["network"],
            *(f"{row[column]:,}" for column in ("parameters", "trainable", "non_trainable")),
            row["image_size"],
            row["gmacs"],
            row["license"] or "-",
        ]
        for row in table.iter_rows(named=True)
    ]
    print_table(columns, rows)
    print("Parameters as Keras counts them; GMACs: billions of multiply-adds for one photograph.")
    if name is None:
        print("Any other network of timm works too: landmarks networks NAME")
