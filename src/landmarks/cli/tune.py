"""`landmarks tune`: a search for the head and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tune(
    data: Annotated[Path, typer.Argument(help="A dataset folder, divided by landmarks split.", show_default=False)],
    *,
    recipe: Annotated[str, typer.Option(help="The recipe to begin with: default or study.")] = "default",
    backbone: Annotated[str | None, typer.Option(help="The network; landmarks networks lists them.")] = None,
    weights: Annotated[str | None, typer.Option(help="Where it starts from: imagenet, a file, another run.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square picture, in pixels.")] = None,
    trials: Annotated[int, typer.Option(help="Heads to train; each takes seconds.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print all trials as JSON.")] = False,
) -> None:
    """Search head, learning rate, decay, batch size and smoothing on features computed once.

    Example: landmarks tune data --backbone mobilenetv2_100 --image-size 160 --trials 50
    """
    from landmarks.training.recipe import given
    from landmarks.training.tune import print_trials
    from landmarks.training.tune import tune as search

    options = {"backbone": backbone, "weights": weights, "image_size": image_size}
    table = search(data, recipe=recipe, trials=trials, seed=seed, **given(options))
    print_trials(table, data, as_json=json)
