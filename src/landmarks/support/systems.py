"""What differs between systems: processors and their threads, signals, encodings, and names that are no text."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from types import FrameType

from landmarks.support.errors import LandmarksError


def usable_processors() -> int:
    """Return how many processors this process may use: those it is bound to, or all where a system cannot bind one."""
    if sys.platform != "win32" and hasattr(os, "sched_getaffinity"):  # Linux; macOS has no such call either
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def interrupt_when_asked_to_end() -> None:
    """Let SIGTERM, and SIGHUP unless it is ignored (`nohup`), end the work as Ctrl-C does."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def interruption_waits() -> Iterator[Callable[[], bool]]:
    """Let a first Ctrl-C wait until the work inside asks for it, by the function given; a second one ends it at once.

    The work can so keep what it has and raise `KeyboardInterrupt` itself. Signals that somebody else handles, and
    threads beside the main one, which no signal reaches, are left as they are.
    """
    interrupted = False

    def first(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            signal.default_int_handler(number, frame)
        interrupted = True

    mine: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        mine = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.default_int_handler]
    for number in mine:
        signal.signal(number, first)
    try:
        yield lambda: interrupted
    finally:
        for number in mine:
            signal.signal(number, signal.default_int_handler)


# The threads that compute, and how they wait for each other.
#
# OpenMP's threads spin while they wait. Beside another program a thread that spins takes the core from one that has
# work; with the policy PASSIVE they sleep instead (`benchmarks/busy.py`). What that costs on an idle machine, and how
# to have it otherwise, stands in docs/engine.md. OpenMP reads the policy when it is loaded, so before torch is.


POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which somebody may have decided how threads wait."""


def wait_without_spinning() -> None:
    """Have the threads that compute sleep while they wait, unless the user decided, or torch is loaded already."""
    if "torch" not in sys.modules and not any(name in os.environ for name in POLICIES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def waiting_policy() -> str:
    """Return in words how the threads that compute wait, and who decided it."""
    found = [name for name in POLICIES if name in os.environ]
    if not found:
        return "they spin while they wait, as torch was loaded before landmarks"
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
        return "they sleep while they wait: OMP_WAIT_POLICY=PASSIVE"
    return f"as {found[0]}={os.environ[found[0]]} has it"


# Text on its way out: letters that a stream's encoding lacks, and file names whose bytes are no text at all.
#
# Nothing heavy is imported here, because every command begins with it.


_ESCAPED = "landmarks.escaped"


def accept_any_text() -> None:
    """Let standard output and error take any text: a letter that their encoding lacks is written as JSON escapes it.

    So what is printed as JSON stays JSON wherever it is printed, and a file name of strange bytes ends no work.
    """
    codecs.register_error(_ESCAPED, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def is_text(path: PurePath | str) -> bool:
    """Return whether a path can be written as UTF-8: on Linux a file's name may be any bytes, and many once were."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def readable(path: PurePath | str) -> str:
    r"""Return a path as text that can be stored anywhere: `caf\xe9.jpg` where a byte of it is no UTF-8."""
    return str(path) if is_text(path) else os.fsencode(path).decode(errors="backslashreplace")


def require_text(path: Path | str) -> None:
    """Raise `LandmarksError` unless `path` can be written as UTF-8: no table can be read or written elsewhere."""
    if not is_text(path):
        raise LandmarksError(f"the name {readable(path)} is not valid UTF-8", way_out="rename the file or the folder")


def printable(text: str) -> str:
    """Return `text` on one line, without control characters: names come from strangers."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""What a text begins with → its encoding; the longer marks first."""


def decoded(data: bytes) -> str:
    """Return the text in bytes: UTF-8 unless a mark at their beginning says another encoding; raise `ValueError`."""
    return data.decode(next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "utf-8-sig"))
