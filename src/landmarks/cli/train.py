"""`landmarks train`: from a dataset and a recipe to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    data: Annotated[Path, typer.Argument(help="A dataset folder, divided by landmarks split.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder to write.", show_default=False)],
    recipe: Annotated[str, typer.Option(help="The recipe to begin with: default or study.")] = "default",
    backbone: Annotated[str | None, typer.Option(help="The network; landmarks networks lists them.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Where it starts from: imagenet, a file, another run's folder, or none.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="What stands on the network: study, linear or cosine.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square picture, in pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of fine-tuning; 0 stops after the warm-up.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Photographs per step, all processes together.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the head; the trunk's keeps its ratio unless it is set.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every draw.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror every second photograph.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that read photographs.")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Minutes of fine-tuning at most.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    tracking: Annotated[
        str | None, typer.Option(help="auto (TensorBoard if installed), none, or a tracker of accelerate.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field of the recipe, NAME=VALUE; may be repeated.")
    ] = None,
) -> None:
    """Train a network: warm-up on features computed once, then fine-tuning of everything.

    Killed and run again, it goes on to the same weights. Several processes:
    torchrun --standalone --nproc_per_node 2 -m landmarks train …

    Example: landmarks train data -o run --backbone mobilenetv2_100 --image-size 160
    """
    from landmarks.training.recipe import given
    from landmarks.training.train import train

    options = {
        "backbone": backbone,
        "weights": weights,
        "head": head,
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "flip": flip,
        "workers": workers,
        "time_limit": time_limit,
        "precision": precision,
        "device": device,
        "tracking": tracking,
    }
    train(data, out, recipe=recipe, **given(options, settings))
