"""What all verbs share: options that may be anywhere in a command, exit codes, and output as JSON."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landmarks.support.console import show_json
from landmarks.support.errors import UsageError

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
"""The option `--json`, of every verb but `serve`."""


def counts_of(dataset: Dataset) -> dict[str, Any]:
    """Return how much a dataset holds and what was left out, for `--json`."""
    counts: dict[str, Any] = {
        "folder": dataset.folder,
        "digest": dataset.digest,
        "images": len(dataset.images),
        "landmarks": len(dataset.labels),
    }
    for name in ("rejected", "failed", "set"):
        if name in dataset.record:
            counts[name] = dataset.record[name]
    return counts


def print_json(value: Any) -> None:
    """Print `value` as JSON on standard output; numbers that are not finite become null."""
    show_json(_to_json_types(value))


def _to_json_types(value: Any) -> Any:
    """Return `value` with JSON's types only: tables become lists of rows, dataclasses objects, paths strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_json_types(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _to_json_types(item) for name, item in value.items()}
    if hasattr(value, "to_dicts"):
        value = value.to_dicts()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_json_types(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


# ── Options before or after a verb ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class CommandLine:
    """A command line's options that all verbs share, and its other words."""

    words: tuple[str, ...]
    debug: bool = False
    quiet: bool = False
    partial_ok: bool = False
    log: Path | None = None


def _expand_home(word: str) -> str:
    """Return a word with a `~` expanded that the shell has left: after `=`, or in quotes, unless there is such a file.

    Otherwise `--out=~/data` would make a folder named `~`.
    """
    option, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    if (value == "~" or value.startswith("~/")) and not os.path.lexists(value):
        return f"{option}{equals}{os.path.expanduser(value)}"  # noqa: PTH111
    return word


def parse_shared_options(arguments: Sequence[str]) -> CommandLine:
    """Separate the options that all verbs share, anywhere before a `--`, from the other words.

    Raises `UsageError` when `--log` has no file name, or an argument is empty.
    """
    words: list[str] = []
    flags = dict.fromkeys(("debug", "quiet", "partial_ok"), False)
    log: Path | None = None
    remaining = iter(arguments)
    for word in remaining:
        name, equals, value = word.partition("=")
        if word == "--":
            words += [word, *remaining]
        elif word.removeprefix("--").replace("-", "_") in flags and word.startswith("--"):
            flags[word.removeprefix("--").replace("-", "_")] = True
        elif name == "--log":
            value = value if equals else next(remaining, "")
            if not value or value.startswith("-"):
                raise UsageError("--log needs the name of a file", way_out="landmarks train … --log train.log")
            log = Path(value)
        else:
            words.append(_expand_home(word))
    empty = next((word for word in words if not word or (word.startswith("--") and word.endswith("="))), None)
    if empty is not None:
        raise UsageError(
            f"{empty.removesuffix('=') or 'an argument'} is empty", way_out="a variable of the shell may not be set"
        )
    return CommandLine(tuple(words), log=log, **flags)
