"""What holds for every verb: options that stand anywhere in a command, exit codes, and answers as JSON."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landmarks.support.errors import UsageError
from landmarks.support.terminal import show_json

if TYPE_CHECKING:
    from landmarks.dataset.manifest import Dataset

EXIT_CODES = {
    0: "done",
    1: "done in part, or the input is at fault",
    2: "wrong usage",
    130: "interrupted; the same command goes on",
}

EPILOG = (
    "Exit codes: "
    + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    + ". Every verb but serve takes --json, and all take --quiet, --log FILE, --partial-ok and --debug, before the "
    "verb or after it: landmarks -h."
)
"""The last lines of every help page."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs; everything else goes to standard error.")]
"""The option of every verb."""


def counts_of(dataset: Dataset) -> dict[str, Any]:
    """Return what there is in a dataset and what was left out, for programs."""
    counts = {"images": len(dataset.images), "landmarks": len(dataset.labels)}
    about = ("rejected", "failed", "set")
    record = {name: dataset.record[name] for name in about if name in dataset.record}
    return {"folder": dataset.folder, "digest": dataset.digest, **counts, **record}


def print_json(answer: Any) -> None:
    """Print what a verb returned as one JSON value on standard output; a number that is none becomes null."""
    show_json(_plain(answer))


def _plain(value: Any) -> Any:
    """Return `value` as JSON knows it: tables as lists of rows, records as objects, paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if hasattr(value, "to_dicts"):
        value = value.to_dicts()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


# ── Options that stand before a verb or after it ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Everywhere:
    """What a command line says beside its verb and the verb's own options, and the words that are left."""

    words: tuple[str, ...]
    debug: bool = False
    quiet: bool = False
    partial_ok: bool = False
    log: Path | None = None


def _at_home(word: str) -> str:
    """Return a word with its `~` expanded where the shell leaves it: behind `=`, and in quotes if no file is called so.

    `--out=~/data` would otherwise make a folder that is called `~`.
    """
    option, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    if (value == "~" or value.startswith("~/")) and not os.path.lexists(value):
        return f"{option}{equals}{os.path.expanduser(value)}"  # noqa: PTH111
    return word


def taken_out(arguments: Sequence[str]) -> Everywhere:
    """Return the options that hold for every verb, wherever they stand before a `--`, and the other words.

    Raises `UsageError` when `--log` names no file.
    """
    words: list[str] = []
    flags = dict.fromkeys(("debug", "quiet", "partial_ok"), False)
    log: Path | None = None
    rest = iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--":
            words += [word, *rest]
        elif word.removeprefix("--").replace("-", "_") in flags and word.startswith("--"):
            flags[word.removeprefix("--").replace("-", "_")] = True
        elif name == "--log":
            value = value if equals else next(rest, "")
            if not value or value.startswith("-"):
                raise UsageError("--log needs the name of a file", way_out="landmarks train … --log train.log")
            log = Path(value)
        else:
            words.append(_at_home(word))
    empty = next((word for word in words if not word or (word.startswith("--") and word.endswith("="))), None)
    if empty is not None:
        raise UsageError(
            f"{empty.removesuffix('=') or 'an argument'} is empty", way_out="a variable of the shell may not be set"
        )
    return Everywhere(tuple(words), log=log, **flags)
