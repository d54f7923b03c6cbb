"""The verbs that plan, train and tune."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from landmarks.cli.everywhere import Json, print_json
from landmarks.support.terminal import show, show_lines
from landmarks.training.limits import OneOf, allowed
from landmarks.training.recipe import settings as settings_of_a_recipe


def networks(
    name: Annotated[
        str | None, typer.Argument(help="One network, also any of timm's; with a star, all called so: 'mobilenet*'.")
    ] = None,
    classes: Annotated[int, typer.Option(help="Number of landmarks the head answers.")] = 20,
    head: Annotated[str, typer.Option(help="mlp, linear or arcface.")] = "mlp",
    image_size: Annotated[int | None, typer.Option(help="Side in pixels, instead of the network's own.")] = None,
    json: Json = False,
) -> None:
    """Print parameters, input size, cost and licence of the networks.

    Example: landmarks networks resnet50 --classes 100
    """
    from landmarks.models.catalogue import networks as list_networks
    from landmarks.support.console import print_table

    table = list_networks(name, classes=classes, head=head, image_size=image_size)
    if json:
        print_json(table)
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
        show("Any other network of timm works too: landmarks networks NAME, or 'mobilenet*' for all called so")


# ── The options that are settings of the recipe, made from it ───────────────────────────────────────────────────────

SETTINGS = ("backbone", "weights", "head", "image_size", "epochs", "batch_size", "learning_rate", "seed", "flip")
MACHINE = ("workers", "threads", "time_limit", "precision", "deterministic", "cache", "device", "tracking")
"""Settings with an option of their own; `--set` reaches all."""


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb an option for each of the recipe's settings `names`, which it takes as `**settings`."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(verb, eval_str=True).parameters.values())
        made = [_option(name, settings_of_a_recipe()[name]) for name in names]

        @functools.wraps(verb)
        def wrapped(**given: Any) -> None:
            verb(**given)

        parameters = [one for one in own if one.kind is not inspect.Parameter.VAR_KEYWORD] + made
        parameters.sort(key=lambda one: one.kind)
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
        del wrapped.__wrapped__  # whose signature would be read instead
        return wrapped

    return decorate


def _option(name: str, annotation: Any) -> inspect.Parameter:
    may_be = allowed(annotation)
    word = name.replace("_", "-")
    switch = (f"--{word}/--no-{word}",) if may_be.kind is bool else (f"--{word}",)
    meaning = may_be.meaning[0].upper() + may_be.meaning[1:]
    choices = f" ({may_be})" if isinstance(may_be.limit, OneOf) else ""
    kind: Any = Annotated[may_be.kind | None, typer.Option(*switch, help=f"{meaning}{choices}.")]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


RecipeOption = Annotated[str, typer.Option(help="What to begin with: default, instant, study, a TOML file, a run.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting that landmarks recipe lists, NAME=VALUE; may be repeated."),
]


# ── `landmarks recipe`: every setting of a training ─────────────────────────────────────────────────────────────────


def recipe(
    name: Annotated[str, typer.Argument(help="default, instant, study, a TOML file, or a run's folder.")] = "default",
    *,
    settings: SetOption = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print a file that --recipe takes.")] = False,
    json: Json = False,
) -> None:
    """List every setting of a training: its value, what it may be, and what it means.

    Example: landmarks recipe default --toml > mine.toml
    """
    from landmarks.support.console import print_table
    from landmarks.training.recipe import command_line_settings, recipe_named
    from landmarks.training.recipe_file import COLUMNS, rows_of, toml_of

    chosen = recipe_named(name, **command_line_settings({}, settings))
    if toml:
        show_lines(toml_of(chosen))
    elif json:
        print_json(chosen.record())
    else:
        print_table(COLUMNS, rows_of(chosen), f"recipe {chosen.name}; change one with --set NAME=VALUE")


# ── `landmarks plan`: what a training will need ─────────────────────────────────────────────────────────────────────


@with_settings("backbone", "weights", "image_size", "epochs", "batch_size", "precision", "device")
def plan(
    data: Annotated[Path, typer.Argument(help="A dataset folder, divided by landmarks split.", show_default=False)],
    *,
    recipe: RecipeOption = "default",
    settings: SetOption = None,
    json: Json = False,
    **options: Any,
) -> None:
    """Take a few real steps and say what a training will need: memory, disk, hours, and what fits.

    Example: landmarks plan data --backbone nasnet_large
    """
    from dataclasses import asdict

    from landmarks.training.plan import plan as plan_training
    from landmarks.training.plan import print_plan
    from landmarks.training.recipe import command_line_settings

    found = plan_training(data, recipe=recipe, **command_line_settings(options, settings))
    if json:
        print_json(asdict(found) | {"memory_mb": found.memory_mb, "verdict": found.verdict})
    else:
        print_plan(found)


# ── `landmarks train`: from a dataset and a recipe to a run ─────────────────────────────────────────────────────────


@with_settings(*SETTINGS, *MACHINE)
def train(
    data: Annotated[Path, typer.Argument(help="A dataset folder, divided by landmarks split.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder to write.", show_default=False)],
    recipe: RecipeOption = "default",
    settings: SetOption = None,
    json: Json = False,
    **options: Any,
) -> None:
    """Train a network: head training on features computed once, then fine-tuning of everything.

    Killed and run again, it goes on to the same weights. Several processes:
    torchrun --standalone --nproc_per_node 2 -m landmarks train …

    Example: landmarks train data -o run --backbone mobilenetv2_100 --image-size 160
    """
    from landmarks.training.recipe import command_line_settings
    from landmarks.training.train import train

    run = train(data, out, recipe=recipe, **command_line_settings(options, settings))
    if json and os.environ.get("RANK", "0") == "0":  # of several processes one prints
        print_json({"folder": run.folder, **run.record})


# ── `landmarks tune`: a search for the head and its settings ────────────────────────────────────────────────────────


@with_settings("backbone", "weights", "image_size")
def tune(
    data: Annotated[Path, typer.Argument(help="A dataset folder, divided by landmarks split.", show_default=False)],
    *,
    recipe: RecipeOption = "default",
    trials: Annotated[int, typer.Option(help="Heads to train; each takes seconds.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    json: Json = False,
    **options: Any,
) -> None:
    """Search head, learning rate, decay, batch size and smoothing on features computed once.

    Example: landmarks tune data --backbone mobilenetv2_100 --image-size 160 --trials 50
    """
    from landmarks.support.console import options as as_options
    from landmarks.training.recipe import command_line_settings
    from landmarks.training.tune import print_trials
    from landmarks.training.tune import tune as search

    named = command_line_settings(options)
    table = search(data, recipe=recipe, trials=trials, seed=seed, **named)
    if json:
        print_json(table)
        return
    begun = as_options(({} if recipe == "default" else {"recipe": recipe}) | named)
    print_trials(table, ["train", str(data), "-o", "RUN", *begun])
