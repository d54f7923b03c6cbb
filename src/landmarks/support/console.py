"""What a person sees while work goes on: notes, tables, and one line of progress."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape as html_escape
from typing import ParamSpec, Protocol, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from landmarks.support.terminal import shown

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

SECONDS_BETWEEN_LINES = 30.0
"""How often a log, which has no place for a bar, gets a line about the progress."""

out = Console(highlight=False, soft_wrap=True)
"""Results: what a verb was asked for."""

err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Everything else: choices and their reasons, warnings, progress."""


def note(text: str) -> None:
    """Print one line about a choice, a fallback or a count to standard error."""
    err.print(escape(shown(text)))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print a table to standard output; columns whose cells are all numbers are aligned to the right."""
    table = Table(title=escape(shown(title)) or None, title_justify="left", header_style="bold")
    for position, name in enumerate(columns):
        numeric = all(isinstance(row[position], int | float) for row in rows)
        table.add_column(escape(shown(name)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(shown(str(cell))) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a file or a pipe has no right edge
    console.print(table)


def html_table(columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    """Return a table for a notebook, every cell escaped."""
    head = "".join(f'<th style="text-align:left">{html_escape(name)}</th>' for name in columns)
    cells = ["".join(f'<td style="text-align:left">{html_escape(str(cell))}</td>' for cell in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    caption = f'<caption style="text-align:left">{html_escape(caption)}</caption>' if caption else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Advance(Protocol):
    """Moves the line of progress."""

    def __call__(self, steps: float = 1, text: str | None = None) -> None:
        """Move by `steps`; `text` replaces what stands behind the bar (a rate, a loss)."""


@contextlib.contextmanager
def progress(what: str, total: float) -> Iterator[Advance]:
    """Show one bar with the time left on a terminal, or a line every half minute elsewhere, while the block runs."""
    if err.is_terminal:
        with _bar() as bar:
            task = bar.add_task(escape(shown(what)), total=total, text="")
            yield _advance_bar(bar, task)
    else:
        yield _advance_log(what, total)


def _bar() -> Progress:
    return Progress(
        SpinnerColumn("dots" if err.encoding.startswith("utf") else "line"),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[text]}"),
        console=err,
    )


def _advance_bar(bar: Progress, task: TaskID) -> Advance:
    def advance(steps: float = 1, text: str | None = None) -> None:
        bar.advance(task, steps)
        if text is not None:
            bar.update(task, text=escape(shown(text)))

    return advance


def _advance_log(what: str, total: float) -> Advance:
    started = last = time.monotonic()
    done, behind = 0.0, ""

    def advance(steps: float = 1, text: str | None = None) -> None:
        nonlocal done, behind, last
        done, behind = done + steps, behind if text is None else text
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done > 0:
            last = now
            left = max(0.0, (now - started) * (total - done) / done)
            note(f"{what}: {100 * done / max(total, 1):.0f} %, {_duration(left)} left {behind}".rstrip())

    return advance


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# ── Steps of a walk, each printed as the command that does the same ─────────────────────────────────────────────────


def step(
    words: Sequence[object],
    function: Callable[Parameters, Result],
    *arguments: Parameters.args,
    **named: Parameters.kwargs,
) -> Result:
    """Print the command of a step, do it, and return what it returns."""
    say("$ " + shlex.join(["landmarks", *map(str, words)]))
    return function(*arguments, **named)


def options(settings: Mapping[str, object]) -> list[str]:
    """Return settings as the options of a command: `{"image_size": 96}` as `--image-size 96`."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def say(line: str) -> None:
    """Print one line with an empty one before it."""
    err.print()
    note(line)
