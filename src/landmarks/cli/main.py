"""The program `landmarks`: its verbs, its exit codes, and how an error becomes one line.

Exit codes: 0 done; 1 done in part, or the input is at fault; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

from landmarks import __version__
from landmarks.support.disk import of_the_disk
from landmarks.support.errors import LandmarksError, did_you_mean, naming_the_extra
from landmarks.support.systems import accept_any_text, interrupt_when_asked_to_end
from landmarks.support.terminal import shown
from landmarks.support.threads import wait_without_spinning

app = typer.Typer(
    name="landmarks",
    help="Recognise landmarks in images: from the published archive to a trained recogniser and a report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


VERBS = {
    "Data": ("data_verbs", ("select", "locate", "fetch", "import", "split", "unpack", "credits", "audit")),
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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Options that stand before the verb."""


def _add_verbs() -> None:
    for panel, (module, verbs) in VERBS.items():
        functions = importlib.import_module(f"landmarks.cli.{module}")
        for verb in verbs:
            word = f"{verb}_" if verb == "import" else verb  # `import` is a keyword of Python
            app.command(verb, rich_help_panel=panel)(getattr(functions, word))


_add_verbs()


def main() -> None:
    """Run the command line; every error ends as one line on standard error and an exit code."""
    wait_without_spinning()
    accept_any_text()
    interrupt_when_asked_to_end()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one verb and return its exit code."""
    debug = "--debug" in arguments
    verb = next((word for word in arguments if not word.startswith("-")), "")
    try:
        with naming_the_extra(f"landmarks {verb}"):
            result = app([word for word in arguments if word != "--debug"] or ["-h"], standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        result = 130
    except typer.TyperException as error:
        verbs = [verb for _, panel in VERBS.values() for verb in panel]
        hint = _called_here(error.format_message()) if verb in verbs else did_you_mean(verb, verbs)
        _say(f"error: {error.format_message()} {hint or 'landmarks -h shows what there is'}")
        return 2
    except Exception as error:
        if debug:
            raise
        if isinstance(error, LandmarksError):
            _say(f"error: {error}")
            return error.exit_code
        if refused := of_the_disk(error):
            _say(f"error: {refused}")
            return 1
        if _out_of_memory(error):
            _say(f"error: memory ran out ({error}); close other programs, or choose another --device if there is one")
            return 1
        _say(f"error: {type(error).__name__}: {error} (unforeseen: --debug shows where)")
        return 1
    if result == 130:  # typer, too, turns an interruption into this code
        kept = "what is finished is kept" if verb in GOES_ON else "nothing is half-written"
        _say(f"interrupted; {kept}; run the same command again" + (" to go on" if verb in GOES_ON else ""))
    return result if isinstance(result, int) else 0


def _called_here(message: str) -> str:
    """Return what an option that another program has is called here, or an empty string."""
    from landmarks.training.recipe import ELSEWHERE, called_here

    words = message.removeprefix("No such option: --").split()
    name = words[0].strip("-.,").replace("-", "_") if message.startswith("No such option") and words else ""
    return called_here(name) if any(name in theirs.split() for theirs in ELSEWHERE.values()) else ""


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    from landmarks.training.machine import is_out_of_memory

    return is_out_of_memory(error)


def _say(line: str) -> None:
    print(" ".join(shown(line).split()), file=sys.stderr)
