"""The program `landmarks`: its verbs, its exit codes, and how an error becomes one line.

Exit codes: 0 done; 1 done in part, or the input is at fault; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from landmarks import __version__
from landmarks.support.errors import LandmarksError

app = typer.Typer(
    name="landmarks",
    help="Recognise landmarks in photographs: from the published archive to a trained recogniser and a report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


def main() -> None:
    """Run the command line; every error ends as one line on standard error and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one verb and return its exit code."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        result = app(arguments, standalone_mode=False)
    except Exception as error:
        return _explain(error, debug)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0


def _explain(error: Exception, debug: bool) -> int:
    if debug:
        raise error
    if isinstance(error, LandmarksError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if hasattr(error, "format_message"):  # a ClickException: wrong usage, told by click itself
        print(f"error: {error.format_message()}", file=sys.stderr)
        return 2
    print(f"error: {type(error).__name__}: {error} (a bug; --debug shows where)".replace("\n", " "), file=sys.stderr)
    return 1
