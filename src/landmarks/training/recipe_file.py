"""Recipes as TOML files, in a run's record, and as a table of settings."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from landmarks.support.errors import UsageError
from landmarks.support.files import read_record
from landmarks.support.systems import decode_text
from landmarks.training.limits import allowed
from landmarks.training.recipe import HEAD_SETTINGS, Recipe, settings

COLUMNS = ("setting", "value", "may be", "means")
"""Columns of the rows of `rows_of`."""


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file or in the record of a run; `name` is "default" if it is missing.

    A file has one line per setting; those of the head are in `[head_settings]`. Raises `UsageError` for a file that is
    not a recipe.
    """
    if path.is_dir():
        if not (path / "run.json").is_file():
            what = "is a dataset, and no recipe" if (path / "dataset.json").is_file() else "holds no recipe"
            raise UsageError(f"{path} {what}", expected="a run's folder, or a TOML file")
        recorded = read_record(path / "run.json").get("recipe")
        if not isinstance(recorded, dict):
            raise UsageError(f"{path} holds no recipe", expected="a run's folder, or a TOML file")
        augmentation = recorded.pop("augmentation", {})
        return {"name": "default", **recorded, **(augmentation if isinstance(augmentation, dict) else {})}
    try:
        table = tomllib.loads(decode_text(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise UsageError(f"{path} is no recipe ({error})", way_out="landmarks recipe --toml writes one") from error
    return {"name": "default", **table}


def rows_of(recipe: Recipe) -> list[tuple[str, str, str, str]]:
    """Return every setting as (name, value, allowed values, meaning), those of the heads last."""
    values = {name: json.dumps(value) for name, value in recipe.values().items()}
    values |= {f"head.{name}": json.dumps(value) for name, value in recipe.head_settings.items()}
    annotations = settings() | {f"head.{name}": annotation for name, annotation in HEAD_SETTINGS.items()}
    rules = {name: allowed(annotation) for name, annotation in annotations.items()}
    return [(name, values.get(name, ""), str(rule), rule.meaning) for name, rule in rules.items()]


def toml_of(recipe: Recipe) -> str:
    """Return a recipe as the text of a TOML file for `--recipe`; settings that are None are left out."""
    lines, tables = [f"name = {json.dumps(recipe.name)}"], []
    for name, value in recipe.values().items():
        if isinstance(value, dict):
            tables.append((name, value))
        elif value is not None:
            lines.append(f"{name} = {_toml(value)}  # {allowed(settings()[name]).meaning}")
    for name, table in tables:
        lines += [
            "",
            f"[{name}]",
            *(f"{setting} = {_toml(value)}" for setting, value in table.items()),
        ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Return a value in TOML, which writes numbers, strings and lists as JSON does."""
    return json.dumps(value, ensure_ascii=False)
