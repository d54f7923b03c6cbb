"""Recipes as files and as a list: TOML that `--recipe` takes, a run's record, and every setting with its meaning."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from landmarks.support.errors import UsageError
from landmarks.support.files import read_record
from landmarks.support.systems import decoded
from landmarks.training.limits import allowed
from landmarks.training.recipe import HEAD_SETTINGS, Recipe, settings

COLUMNS = ("setting", "value", "may be", "means")
"""Of `rows_of`."""


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the settings that a TOML file holds, or a run's record, `name` among them (default where none is told).

    A file has one line a setting, those of the head in `[head_settings]`. Raises `UsageError` for a file that is none.
    """
    if path.is_dir():
        recorded = read_record(path / "run.json").get("recipe")
        if not isinstance(recorded, dict):
            raise UsageError(f"{path} holds no recipe", expected="a run's folder, or a TOML file")
        augmentation = recorded.pop("augmentation", {})
        return {"name": "default", **recorded, **(augmentation if isinstance(augmentation, dict) else {})}
    try:
        told = tomllib.loads(decoded(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise UsageError(f"{path} is no recipe ({error})", way_out="landmarks recipe --toml writes one") from error
    return {"name": "default", **told}


def values_of(recipe: Recipe) -> dict[str, Any]:
    """Return every setting that can be changed with its value, those of the augmentation among them."""
    record = recipe.record()
    return {setting: {**record, **record["augmentation"]}[setting] for setting in settings()}


def rows_of(recipe: Recipe) -> list[tuple[str, str, str, str]]:
    """Return every setting as (name, value, what it may be, what it means), those of the heads at the end."""
    known = {setting: allowed(annotation) for setting, annotation in settings().items()}
    rows = [
        (name, json.dumps(value), str(known[name]), known[name].meaning) for name, value in values_of(recipe).items()
    ]
    heads = {f"head.{name}": allowed(annotation) for name, annotation in HEAD_SETTINGS.items()}
    told = {f"head.{name}": json.dumps(value) for name, value in recipe.head_settings.items()}
    return rows + [(name, told.get(name, ""), str(one), one.meaning) for name, one in heads.items()]


def toml_of(recipe: Recipe) -> str:
    """Return a recipe as a TOML file that `--recipe` takes; what is null is left out."""
    lines, tables = [f"name = {json.dumps(recipe.name)}"], []
    for name, value in values_of(recipe).items():
        if isinstance(value, dict):
            tables.append((name, value))
        elif value is not None:
            lines.append(f"{name} = {_written(value)}  # {allowed(settings()[name]).meaning}")
    for name, table in tables:
        lines += [
            "",
            f"[{name}]",
            *(f"{setting} = {json.dumps(value, ensure_ascii=False)}" for setting, value in table.items()),
        ]
    return "\n".join(lines) + "\n"


def _written(value: Any) -> str:
    """Return a value as TOML has it, which JSON's numbers, words and lists are too."""
    return json.dumps(value, ensure_ascii=False)
