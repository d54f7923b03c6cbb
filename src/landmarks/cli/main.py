"""The program `landmarks`: its verbs, and its handling of errors as one line and an exit code (`EXIT_CODES`)."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from landmarks import __version__
from landmarks.cli.everywhere import EPILOG, EXIT_CODES, CommandLine, parse_shared_options
from landmarks.support.console import output_settings, safe_line, to_log
from landmarks.support.disk import as_disk_error
from landmarks.support.errors import LandmarksError, NothingThereError, did_you_mean, naming_the_extra
from landmarks.support.systems import accept_any_text, interrupt_when_asked_to_end, wait_without_spinning

app = typer.Typer(
    name="landmarks",
    help="Recognise landmarks in images: from the published archive to a trained recogniser and a report.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


VERBS = {
    "The archive": ("archive_verbs", ("select", "locate", "fetch")),
    "Data": ("data_verbs", ("import", "join", "split", "unpack", "credits", "audit")),
    "Training": ("training_verbs", ("networks", "recipe", "plan", "train", "tune")),
    "Results": ("result_verbs", ("evaluate", "score", "subsets", "explain", "compare", "report", "reproduce", "demo")),
    "Use": ("use_verbs", ("predict", "learn", "forget", "index", "search", "export", "serve")),
}
"""Panel of the help page → the module of its verbs, and these in the order of their use."""


RESUMABLE = ("locate", "fetch", "import", "unpack", "train", "tune", "evaluate", "reproduce", "demo")
"""Verbs that keep finished work when interrupted, and resume it when run again."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"landmarks {__version__}")
        raise typer.Exit


@app.callback()
def options(
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only results and errors.")] = False,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE", help="Append all notes and errors to this file, each with its time."),
    ] = None,
    partial_ok: Annotated[
        bool,
        typer.Option(
            "--partial-ok",
            help="Exit with 0 even if work was done in part (some images could not be read, for example) or a folder "
            "holds no images; what was left out is still named.",
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Document the options that all verbs share; `parse_shared_options` reads them before and after the verb."""


def _add_verbs() -> None:
    for panel, (module, verbs) in VERBS.items():
        functions = importlib.import_module(f"landmarks.cli.{module}")
        for verb in verbs:
            name = "import_" if verb == "import" else verb  # `import` is a keyword of Python
            function = getattr(functions, name)
            app.command(verb, help=_help_of(function), rich_help_panel=panel, epilog=EPILOG)(function)


def _help_of(function: Callable[..., None]) -> str:
    """Return a verb's docstring with every paragraph on one line: the terminal's width breaks it."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


_add_verbs()


def main() -> None:
    """Run the command line and exit; every error becomes one line on standard error and an exit code."""
    wait_without_spinning()
    accept_any_text()
    interrupt_when_asked_to_end()
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # A second interruption during the message about the first; an interrupted query of polars always raises two.
        code = 130
    if code == 130:  # exit without a traceback when interrupted again while threads are joined
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one verb and return its exit code."""
    try:
        _require_working_folder()
        line = parse_shared_options(arguments)
        if line.log is not None:
            _refuse_to_log_into(line.log)
        with output_settings(quiet=line.quiet, log=line.log):
            to_log(f"$ landmarks {shlex.join(line.words)}")
            started = time.monotonic()
            code = _run(line)
            to_log(f"exit code {code} ({EXIT_CODES[code]}) after {time.monotonic() - started:.0f} s")
            return code
    except LandmarksError as error:
        if "--debug" in arguments:
            raise
        _print_error(f"error: {error}")
        return error.exit_code


def _refuse_to_log_into(log: Path) -> None:
    """Raise `UsageError` if a log would be appended to a file of another kind, such as `run.json`."""
    from landmarks.support.files import refuse_other_kind

    refuse_other_kind(log, ".log", ".txt", begins=b"20")  # each line of a log begins with the year


def _require_working_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise LandmarksError(
            f"the folder in which this was started is not there any more ({error.strerror})",
            way_out="cd to another one",
        ) from error


def _run(line: CommandLine) -> int:
    verb = next((word for word in line.words if not word.startswith("-")), "")
    try:
        with naming_the_extra(f"landmarks {verb}"):
            words = list(line.words) or ["-h"]
            result = _program(words[0])(words, prog_name="landmarks", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        result = 130
    except typer.TyperException as error:
        message, hint = _usage_hint(verb, error.format_message())
        _print_error(f"error: {message} {hint}")
        return 2
    except Exception as error:
        if line.debug:
            raise
        return _report_error(error, line)
    if result == 130:  # typer, too, turns an interruption into this code
        kept = "what is finished is kept" if verb in RESUMABLE else "nothing is half-written"
        _print_error(f"interrupted; {kept}; run the same command again" + (" to go on" if verb in RESUMABLE else ""))
    if result == 1 and line.partial_ok:
        to_log("done in part, which --partial-ok lets pass")
        return 0
    return result if isinstance(result, int) else 0


@functools.cache
def _program(verb: str) -> Any:
    """Return the program with this one verb, as building all takes longer than most verbs; else with all."""
    program = copy.copy(app)
    commands = [command for command in app.registered_commands if command.name == verb]
    program.registered_commands = commands or app.registered_commands
    return typer.main.get_command(program)


def _report_error(error: Exception, line: CommandLine) -> int:
    """Print an error as one line and return the exit code."""
    if isinstance(error, NothingThereError) and line.partial_ok:
        _print_error(f"nothing to do: {error}")
        if "--json" in line.words:
            print("[]")
        return 0
    if isinstance(error, LandmarksError):
        _print_error(f"error: {error}")
        return error.exit_code
    if disk_error := as_disk_error(error):
        _print_error(f"error: {disk_error}")
    elif _is_out_of_memory(error):
        hint = "close other programs, or choose another --device if there is one"
        _print_error(f"error: memory ran out ({error}); {hint}")
    else:
        _print_error(f"error: {type(error).__name__}: {error} (unforeseen: --debug shows where)")
        for text in traceback.format_exception(error):
            to_log(text)
    return 1


def _usage_hint(verb: str, message: str) -> tuple[str, str]:
    """Return the message about a wrong command and a hint: the closest name, or where the help is.

    When the verb is wrong, the suggestion in typer's message is dropped, so that there is only one.
    """
    verbs = [verb for _, panel in VERBS.values() for verb in panel]
    if verb in verbs:
        return message, _option_hint(message) or f"(landmarks {verb} -h shows what it takes)"
    guess = did_you_mean(verb, verbs)
    return message.partition(" Did you mean")[0], guess or "(landmarks -h shows what there is)"


def _option_hint(message: str) -> str:
    """Return a hint at the name here of an option that other programs have, or an empty string."""
    from landmarks.training.recipe import SYNONYMS, setting_hint

    words = message.removeprefix("No such option: --").split()
    name = words[0].strip("-.,").replace("-", "_") if message.startswith("No such option") and words else ""
    return setting_hint(name) if any(name in synonyms.split() for synonyms in SYNONYMS.values()) else ""


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    from landmarks.training.machine import is_out_of_memory

    return is_out_of_memory(error)


def _print_error(text: str) -> None:
    print(" ".join(safe_line(text).split()), file=sys.stderr)
    to_log(text)
