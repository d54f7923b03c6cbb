"""Output to the console and the log: lines that steer no terminal, notes, tables and progress."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape as html_escape
from pathlib import Path
from typing import ParamSpec, Protocol, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from landmarks.support.disk import make_folder
from landmarks.support.errors import LandmarksError
from landmarks.support.places import in_shell, without_secrets

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# In a notebook without ipywidgets, tqdm shows the downloads of the Hub as text; its warning about that is of no use.
warnings.filterwarnings("ignore", message="IProgress not found")

SECONDS_BETWEEN_LINES = 30.0
"""How often a log, which cannot show a bar, gets a line about the progress."""

out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
"""Standard output, for results."""

err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
"""Standard error, for everything else: choices and their reasons, warnings, progress."""


# ── Lines of text from strangers: names may hold characters that control a terminal ─────────────────────────────────


_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters (C0 and C1), line separators of Unicode, and marks that change the direction of text."""


def show(text: object) -> None:
    """Print one line of results to standard output, without markup and control characters."""
    print(safe_line(str(text)))


def show_lines(text: str) -> None:
    """Print several lines of results to standard output."""
    for line in text.splitlines():
        show(line)


def show_json(value: object, indent: int | None = 2) -> None:
    """Print `value` as JSON to standard output, with control characters escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    print(_CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], text))


def safe_line(text: str) -> str:
    """Return `text` on one line, without the secrets of addresses and with control characters escaped.

    Names of files, landmarks and authors come from strangers; an escape sequence in one of them is shown as `\\x1b`.
    """
    return _CONTROL.sub(_escape, without_secrets(text).replace("\n", " "))


def _escape(found: re.Match[str]) -> str:
    letter = found[0]
    return " " if letter in "\t\r" else letter.encode("unicode_escape").decode()


# ── Notes, on the screen and in the log ─────────────────────────────────────────────────────────────────────────────


@dataclass
class _Outputs:
    """Where notes go."""

    screen: bool = True
    log: TextIO | None = None


_outputs = _Outputs()


@contextlib.contextmanager
def output_settings(*, quiet: bool = False, log: Path | str | None = None) -> Iterator[None]:
    """While the block runs, append all notes and errors with their time to the file `log`; with `quiet`, show no notes.

    Errors are shown in any case. Several processes may share a log, since each line is a single write. Raises
    `LandmarksError` if the log cannot be written.
    """
    before = _outputs.screen, _outputs.log
    with contextlib.ExitStack() as stack:
        file: TextIO | None = None
        if log is not None:
            try:
                make_folder(Path(log).parent)
                file = open(log, "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
                stack.callback(_close, file)
            except OSError as error:
                raise LandmarksError(f"the log {log} cannot be written ({error.strerror or error})") from error
        _outputs.screen, _outputs.log = not quiet, file
        try:
            yield
        finally:
            _outputs.screen, _outputs.log = before


def _close(file: TextIO) -> None:
    with contextlib.suppress(OSError):  # a full disk, which `to_log` has reported
        file.close()


def note(text: str) -> None:
    """Print one line about a choice, a fallback or a count to standard error and to the log."""
    if _outputs.screen:
        err.print(safe_line(text))
    to_log(text)


def to_log(text: str) -> None:
    """Append `text` to the log, if there is one, on one line after the local time with its UTC offset."""
    log, line = _outputs.log, " ".join(safe_line(text).split())
    if log is None or not line:
        return
    try:
        log.write(f"{datetime.datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n")
    except OSError as error:  # a full disk must not end a training
        _outputs.log = None
        err.print(f"the log {log.name} is not written any more ({error.strerror or error})")


# ── Tables and progress ─────────────────────────────────────────────────────────────────────────────────────────────


_SINGULAR = {"are": "is", "have": "has", "hold": "holds", "lie": "lies", "were": "was"}


def plural(amount: int, one: str, verb: str = "") -> str:
    """Return `1 image` or `1,200 images`; with the `verb` are, `1 image is` or `1,200 images are`."""
    things = f"{amount:,} {one}" if amount == 1 else f"{amount:,} {one}s"
    return f"{things} {_SINGULAR[verb] if amount == 1 else verb}" if verb else things


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "", *, aside: bool = False
) -> None:
    """Print a table to standard output, or with `aside` where notes go; columns of numbers are right-aligned."""
    if aside and not _outputs.screen:
        return
    table = Table(header_style="bold")
    for position, name in enumerate(columns):
        numeric = all(isinstance(row[position], int | float) for row in rows)
        table.add_column(safe_line(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(safe_line(str(cell)) for cell in row))
    console = Console(highlight=False, stderr=aside, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 1000  # a file or a pipe has no right edge
    if title:  # as a line of its own: rich wraps a table's title at the width of the table
        console.print(safe_line(title), soft_wrap=True)
    console.print(table)


def html_table(columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    """Return an HTML table for a notebook, with all cells escaped."""
    head = "".join(f'<th style="text-align:left">{html_escape(name)}</th>' for name in columns)
    cells = ["".join(f'<td style="text-align:left">{html_escape(str(cell))}</td>' for cell in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    caption = f'<caption style="text-align:left">{html_escape(caption)}</caption>' if caption else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Advance(Protocol):
    """Advances the progress."""

    def __call__(self, steps: float = 1, text: str | None = None) -> None:
        """Advance by `steps`; `text` replaces the text after the bar (a rate, a loss)."""


@contextlib.contextmanager
def progress(what: str, total: float) -> Iterator[Advance]:
    """While the block runs, show a bar with the time left on a terminal, or a line every half minute elsewhere."""
    if err.is_terminal and _outputs.screen:
        with _bar() as bar:
            task = bar.add_task(safe_line(what), total=total, text="")
            drawn, logged = _advance_bar(bar, task), _advance_log(what, total, to_log)

            def advance(steps: float = 1, text: str | None = None) -> None:
                drawn(steps, text)
                logged(steps, text)

            yield advance
    else:
        yield _advance_log(what, total, note)


_BAR_COLUMNS = 32
"""Columns of a narrow terminal that spinner, bar, percentage and time left take."""


def _bar() -> Progress:
    return Progress(
        SpinnerColumn("dots" if err.encoding.startswith("utf") else "line"),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=40 if err.width >= 120 else 12),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
        TextColumn("{task.fields[text]}", markup=False),
        console=err,
    )


def _advance_bar(bar: Progress, task: TaskID) -> Advance:
    def advance(steps: float = 1, text: str | None = None) -> None:
        bar.advance(task, steps)
        if text is not None:
            line = safe_line(text)
            room = max(0, err.width - _BAR_COLUMNS - len(bar.tasks[0].description))
            bar.update(task, text=line if len(line) <= room else line[: max(0, room - 1)] + "…")

    return advance


def _advance_log(what: str, total: float, write: Callable[[str], None]) -> Advance:
    started = last = time.monotonic()
    done, suffix = 0.0, ""

    def advance(steps: float = 1, text: str | None = None) -> None:
        nonlocal done, suffix, last
        done, suffix = done + steps, suffix if text is None else text
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done > 0:
            last = now
            left = max(0.0, (now - started) * (total - done) / done)
            line = f"{what}: {100 * done / max(total, 1):.0f} %, {_duration(left)} left"
            write(f"{line}, {suffix}" if suffix else line)

    return advance


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# ── Steps of a longer procedure, each printed as the command that does the same ─────────────────────────────────────


def run_step(
    words: Sequence[object],
    function: Callable[Parameters, Result],
    *arguments: Parameters.args,
    **named: Parameters.kwargs,
) -> Result:
    """Print the command `landmarks WORDS`, call `function` and return its result."""
    note_after_gap("$ " + in_shell("landmarks", *map(str, words)))
    return function(*arguments, **named)


def command_options(settings: Mapping[str, object]) -> list[str]:
    """Return settings as the options of a command: `--image-size 96` for `{"image_size": 96}`."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def note_after_gap(line: str) -> None:
    """Print a note with an empty line before it."""
    if _outputs.screen:
        err.print()
    note(line)
