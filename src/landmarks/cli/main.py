"""The program `landmarks`: its verbs, its exit codes, and how an error becomes one line.

Exit codes stand in `everywhere.EXIT_CODES`.
"""

from __future__ import annotations

import copy
import functools
import importlib
import os
import shlex
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from landmarks import __version__
from landmarks.cli.everywhere import EPILOG, EXIT_CODES, Everywhere, taken_out
from landmarks.support.console import heard_by, to_log
from landmarks.support.disk import of_the_disk
from landmarks.support.errors import LandmarksError, NothingThereError, did_you_mean, naming_the_extra
from landmarks.support.systems import accept_any_text, interrupt_when_asked_to_end, wait_without_spinning
from landmarks.support.terminal import shown

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
"""Panel of the help page → the module of its verbs, and the verbs in the order in which a person needs them."""


GOES_ON = ("locate", "fetch", "import", "unpack", "train", "tune", "evaluate", "reproduce", "demo")
"""Verbs that keep what they have finished when they are interrupted, and go on there the next time."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"landmarks {__version__}")
        raise typer.Exit


@app.callback()
def options(
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing beside results and errors.")] = False,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE", help="Append all that is said to this file, each line with its time."),
    ] = None,
    partial_ok: Annotated[
        bool,
        typer.Option(
            "--partial-ok",
            help="Exit code 0 also for work done in part (images that cannot be read, say), and for folders without "
            "images; what was left out is still named.",
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Options that hold for every verb; they may stand before it or after it. `taken_out` reads them."""


def _add_verbs() -> None:
    for panel, (module, verbs) in VERBS.items():
        functions = importlib.import_module(f"landmarks.cli.{module}")
        for verb in verbs:
            word = f"{verb}_" if verb == "import" else verb  # `import` is a keyword of Python
            app.command(verb, rich_help_panel=panel, epilog=EPILOG)(getattr(functions, word))


_add_verbs()


def main() -> None:
    """Run the command line; every error ends as one line on standard error and an exit code."""
    wait_without_spinning()
    accept_any_text()
    interrupt_when_asked_to_end()
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # A second one while the first is told of; where a query of polars is interrupted there always are two.
        code = 130
    if code == 130:  # threads may be waited for now, and who asks again does not want to see where
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one verb and return its exit code."""
    try:
        _require_a_place()
        given = taken_out(arguments)
        with heard_by(quiet=given.quiet, log=given.log):
            to_log(f"$ landmarks {shlex.join(given.words)}")
            started = time.monotonic()
            code = _run(given)
            to_log(f"exit code {code} ({EXIT_CODES[code]}) after {time.monotonic() - started:.0f} s")
            return code
    except LandmarksError as error:
        if "--debug" in arguments:
            raise
        _say(f"error: {error}")
        return error.exit_code


def _require_a_place() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise LandmarksError(
            f"the folder in which this was started is not there any more ({error.strerror})",
            way_out="cd to another one",
        ) from error


def _run(given: Everywhere) -> int:
    verb = next((word for word in given.words if not word.startswith("-")), "")
    try:
        with naming_the_extra(f"landmarks {verb}"):
            words = list(given.words) or ["-h"]
            result = _program(words[0])(words, prog_name="landmarks", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        result = 130
    except typer.TyperException as error:
        message, hint = _help_on(verb, error.format_message())
        _say(f"error: {message} {hint}")
        return 2
    except Exception as error:
        if given.debug:
            raise
        return _told(error, given)
    if result == 130:  # typer, too, turns an interruption into this code
        kept = "what is finished is kept" if verb in GOES_ON else "nothing is half-written"
        _say(f"interrupted; {kept}; run the same command again" + (" to go on" if verb in GOES_ON else ""))
    if result == 1 and given.partial_ok:
        to_log("done in part, which --partial-ok lets pass")
        return 0
    return result if isinstance(result, int) else 0


@functools.cache
def _program(verb: str) -> Any:
    """Return the program with the one verb that is asked for, as building all takes longer than most; else with all."""
    asked = copy.copy(app)
    asked.registered_commands = [one for one in app.registered_commands if one.name == verb] or app.registered_commands
    return typer.main.get_command(asked)


def _told(error: Exception, given: Everywhere) -> int:
    """Say what went wrong in one line and return the exit code."""
    if isinstance(error, NothingThereError) and given.partial_ok:
        _say(f"nothing to do: {error}")
        if "--json" in given.words:
            print("[]")
        return 0
    if isinstance(error, LandmarksError):
        _say(f"error: {error}")
        return error.exit_code
    if refused := of_the_disk(error):
        _say(f"error: {refused}")
    elif _out_of_memory(error):
        _say(f"error: memory ran out ({error}); close other programs, or choose another --device if there is one")
    else:
        _say(f"error: {type(error).__name__}: {error} (unforeseen: --debug shows where)")
        for line in traceback.format_exception(error):
            to_log(line)
    return 1


def _help_on(verb: str, message: str) -> tuple[str, str]:
    """Return what is wrong with a command, and where what it could be is explained: one guess, not two."""
    verbs = [verb for _, panel in VERBS.values() for verb in panel]
    if verb in verbs:
        return message, _called_here(message) or f"(landmarks {verb} -h shows what it takes)"
    guess = did_you_mean(verb, verbs)
    return message.partition(" Did you mean")[0], guess or "(landmarks -h shows what there is)"


def _called_here(message: str) -> str:
    """Return what an option that another program has is called here, or an empty string."""
    from landmarks.training.recipe import SYNONYMS, setting_hint

    words = message.removeprefix("No such option: --").split()
    name = words[0].strip("-.,").replace("-", "_") if message.startswith("No such option") and words else ""
    return setting_hint(name) if any(name in theirs.split() for theirs in SYNONYMS.values()) else ""


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    from landmarks.training.machine import is_out_of_memory

    return is_out_of_memory(error)


def _say(line: str) -> None:
    print(" ".join(shown(line).split()), file=sys.stderr)
    to_log(line)
