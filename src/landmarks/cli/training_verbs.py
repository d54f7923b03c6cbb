"""The verbs that plan, train and tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landmarks.support.terminal import show, show_json


def networks(
    name: Annotated[str | None, typer.Argument(help="One network, also any of timm's names.")] = None,
    classes: Annotated[int, typer.Option(help="Number of landmarks the head answers.")] = 20,
    head: Annotated[str, typer.Option(help="mlp, linear or arcface.")] = "mlp",
    image_size: Annotated[int | None, typer.Option(help="Side in pixels, instead of the network's own.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print parameters, input size, cost and licence of the networks.

    Example: landmarks networks resnet50 --classes 100
    """
    from landmarks.models.catalogue import networks as list_networks
    from landmarks.support.console import print_table

    table = list_networks(name, classes=classes, head=head, image_size=image_size)
    if json:
        show_json(table.to_dicts(), indent=None)
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
    show("Parameters as Keras counts them; GMACs: billions of multiply-adds for one image.")
    if name is None:
        show("Any other network of timm works too: landmarks networks NAME")


# ── `landmarks plan`: what a training will need ─────────────────────────────────────────────────────────────────────


def plan(
    data: Annotated[Path, typer.Argument(help="A dataset folder, divided by landmarks split.", show_default=False)],
    *,
    recipe: Annotated[str, typer.Option(help="The recipe to begin with: default, instant or study.")] = "default",
    backbone: Annotated[str | None, typer.Option(help="The network; landmarks networks lists them.")] = None,
    weights: Annotated[str | None, typer.Option(help="none: plan a training from scratch.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square image, in pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of fine-tuning.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
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


# ── `landmarks train`: from a dataset and a recipe to a run ─────────────────────────────────────────────────────────


def train(
    data: Annotated[Path, typer.Argument(help="A dataset folder, divided by landmarks split.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder to write.", show_default=False)],
    recipe: Annotated[str, typer.Option(help="The recipe to begin with: default, instant or study.")] = "default",
    backbone: Annotated[str | None, typer.Option(help="The network; landmarks networks lists them.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Where it starts from: imagenet, a file, another run's folder, or none.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="What stands on the network: mlp, linear or arcface.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square image, in pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of fine-tuning; 0 stops after the head training.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step, all processes together.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the head; the backbone's keeps its ratio unless it is set.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every draw.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror every second image.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that read images.")] = None,
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
    """Train a network: head training on features computed once, then fine-tuning of everything.

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


# ── `landmarks tune`: a search for the head and its settings ────────────────────────────────────────────────────────


def tune(
    data: Annotated[Path, typer.Argument(help="A dataset folder, divided by landmarks split.", show_default=False)],
    *,
    recipe: Annotated[str, typer.Option(help="The recipe to begin with: default, instant or study.")] = "default",
    backbone: Annotated[str | None, typer.Option(help="The network; landmarks networks lists them.")] = None,
    weights: Annotated[str | None, typer.Option(help="Where it starts from: imagenet, a file, another run.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square image, in pixels.")] = None,
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
