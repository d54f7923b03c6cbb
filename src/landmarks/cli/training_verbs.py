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
from landmarks.support.console import command_options, print_table, show, show_lines
from landmarks.training.limits import OneOf, allowed
from landmarks.training.recipe import settings as settings_of_a_recipe


def networks(
    name: Annotated[
        str | None, typer.Argument(help="A network, any of timm's too; or a pattern with a star: 'mobilenet*'.")
    ] = None,
    classes: Annotated[int, typer.Option(help="Number of landmarks that the head distinguishes.")] = 20,
    head: Annotated[str, typer.Option(help="mlp, linear or arcface.")] = "mlp",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the square image in pixels, instead of the network's own.")
    ] = None,
    json: Json = False,
) -> None:
    """Print the parameters, input size, cost and licence of networks.

    Example: landmarks networks resnet50 --classes 100
    """
    from landmarks.models.catalogue import networks as list_networks

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


# ── The options for settings of the recipe, made from the recipe's fields ───────────────────────────────────────────

SETTINGS = ("backbone", "weights", "head", "image_size", "epochs", "batch_size", "learning_rate", "seed", "flip")
MACHINE = ("workers", "threads", "time_limit", "precision", "deterministic", "cache", "device", "tracking")
"""Settings with an option of their own; `--set` works for all."""


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a verb with an option for each of the recipe's settings `names`, passed to it as `**options`."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(verb, eval_str=True).parameters.values()
        parameters = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        parameters += [_option(name, settings_of_a_recipe()[name]) for name in names]
        parameters.sort(key=lambda parameter: parameter.kind)

        @functools.wraps(verb)
        def wrapped(**options: Any) -> None:
            verb(**options)

        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del wrapped.__wrapped__  # otherwise typer would read its signature
        return wrapped

    return decorate


def _option(name: str, annotation: Any) -> inspect.Parameter:
    setting = allowed(annotation)
    word = name.replace("_", "-")
    flag = f"--{word}/--no-{word}" if setting.kind is bool else f"--{word}"
    meaning = setting.meaning[0].upper() + setting.meaning[1:]
    choices = f" ({setting})" if isinstance(setting.limit, OneOf) else ""
    option: Any = Annotated[setting.kind | None, typer.Option(flag, help=f"{meaning}{choices}.")]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)


RecipeOption = Annotated[str, typer.Option(help="The recipe: default, instant, study, a TOML file, or a run's folder.")]
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
    """List every setting of a training: its value, the allowed values, and its meaning.

    Example: landmarks recipe default --toml > mine.toml
    """
    from landmarks.training.recipe import command_line_settings, recipe_named
    from landmarks.training.recipes import COLUMNS, rows_of, toml_of

    chosen = recipe_named(name, **command_line_settings({}, settings))
    if toml:
        show_lines(toml_of(chosen))
    elif json:
        print_json(chosen.record())
    else:
        print_table(COLUMNS, rows_of(chosen), f"recipe {chosen.name}; change one with --set NAME=VALUE")


# ── `landmarks plan`: the resources that a training will need ───────────────────────────────────────────────────────


@with_settings("backbone", "weights", "image_size", "epochs", "batch_size", "precision", "device")
def plan(
    data: Annotated[Path, typer.Argument(help="A dataset folder, divided by landmarks split.", show_default=False)],
    *,
    recipe: RecipeOption = "default",
    settings: SetOption = None,
    json: Json = False,
    **options: Any,
) -> None:
    """Take a few real steps and report what a training will need: memory, disk, hours, and whether it fits.

    Example: landmarks plan data --backbone nasnet_large
    """
    from dataclasses import asdict

    from landmarks.training.plan import plan as plan_training
    from landmarks.training.plan import print_plan
    from landmarks.training.recipe import command_line_settings

    training_plan = plan_training(data, recipe=recipe, **command_line_settings(options, settings))
    if json:
        print_json(asdict(training_plan) | {"memory_mb": training_plan.memory_mb, "verdict": training_plan.verdict})
    else:
        print_plan(training_plan)


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
    """Train a network: head training on features computed once, then fine-tuning of all layers.

    A training that was killed and is run again continues, with the same result. For several processes:
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
    trials: Annotated[int, typer.Option(help="Number of heads to train; each takes seconds.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    json: Json = False,
    **options: Any,
) -> None:
    """Search for the best head, learning rate, decay, batch size and smoothing, on features computed once.

    Example: landmarks tune data --backbone mobilenetv2_100 --image-size 160 --trials 50
    """
    from landmarks.training.recipe import command_line_settings
    from landmarks.training.tune import print_trials
    from landmarks.training.tune import tune as search

    settings = command_line_settings(options)
    table = search(data, recipe=recipe, trials=trials, seed=seed, **settings)
    if json:
        print_json(table)
        return
    train_options = command_options(({} if recipe == "default" else {"recipe": recipe}) | settings)
    print_trials(table, ["train", str(data), "-o", "RUN", *train_options])
