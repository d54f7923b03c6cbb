"""`landmarks plan`: what a training will need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    data: Annotated[Path, typer.Argument(help="A dataset folder, divided by landmarks split.", show_default=False)],
    *,
    recipe: Annotated[str, typer.Option(help="The recipe to begin with: default or study.")] = "default",
    backbone: Annotated[str | None, typer.Option(help="The network; landmarks networks lists them.")] = None,
    weights: Annotated[str | None, typer.Option(help="none: plan a training from scratch.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square picture, in pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of fine-tuning.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Photographs per step.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field of the recipe, NAME=VALUE; may be repeated.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Take a few real steps and say what a training will need: memory, disk, hours, and what fits.

    Example: landmarks plan data --backbone nasnet_large
    """
    from landmarks.training.plan import plan as plan_training
    from landmarks.training.plan import print_plan
    from landmarks.training.recipe import given

    options = {
        "backbone": backbone,
        "weights": weights,
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "precision": precision,
        "device": device,
    }
    print_plan(plan_training(data, recipe=recipe, **given(options, settings)), as_json=json)
