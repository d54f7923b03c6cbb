"""Differences between systems: processors, threads, memory, signals, encodings, file names that are no valid text."""

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
from typing import Any

from landmarks.support.errors import LandmarksError


def usable_processors() -> int:
    """Return the number of processors that this process may use: those it is bound to, or all if that is unknown."""
    if sys.platform != "win32" and hasattr(os, "sched_getaffinity"):  # macOS has no such call either
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def interrupt_when_asked_to_end() -> None:
    """Handle SIGTERM, and SIGHUP unless it is ignored (`nohup`), as Ctrl-C."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def delayed_interruption() -> Iterator[Callable[[], bool]]:
    """Delay a first Ctrl-C in the block, and yield a function that returns whether there was one.

    The work in the block can then save its state and raise `KeyboardInterrupt` itself. A second Ctrl-C is not delayed.
    Nothing is changed for signals with another handler, and outside the main thread, which alone receives signals.
    """
    interrupted = False

    def first(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            signal.default_int_handler(number, frame)
        interrupted = True

    handled: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        handled = [sig for sig in signal.valid_signals() if signal.getsignal(sig) is signal.default_int_handler]
    for number in handled:
        signal.signal(number, first)
    try:
        yield lambda: interrupted
    finally:
        for number in handled:
            signal.signal(number, signal.default_int_handler)


# How OpenMP's threads wait for each other.
#
# By default they spin while they wait. If another program runs, a spinning thread takes the core from one that has
# work; with the policy PASSIVE they sleep instead (`benchmarks/busy.py`). docs/engine.md says what that costs on an
# idle machine, and how to change it. OpenMP reads the policy when torch is loaded.


POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables with which the user may have chosen how threads wait."""


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user has chosen otherwise or torch is already loaded."""
    if "torch" not in sys.modules and not any(name in os.environ for name in POLICIES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def waiting_policy() -> str:
    """Return in words how OpenMP's threads wait, and why."""
    found = [name for name in POLICIES if name in os.environ]
    if not found:
        return "they spin while they wait, as torch was loaded before landmarks"
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
        return "they sleep while they wait: OMP_WAIT_POLICY=PASSIVE"
    return f"as {found[0]}={os.environ[found[0]]} has it"


# Memory that is freed: kept by the process for the next step, or given back to the system.
#
# glibc maps each large block anew and unmaps it when it is freed, and the system clears every page of it. The tensors
# of a step are such blocks: with some networks that takes more than a third of the time (`benchmarks/freed_memory.py`).


MALLOC_OPTIONS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_")
"""Environment variables with which the user may have chosen what happens to freed memory; `GLIBC_TUNABLES` another."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's `mallopt` (its malloc.h)."""

TOP_PAD = 2**26
"""Bytes by which the heap grows beyond what is asked for; pages that are not used take no memory."""


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process, if it has glibc's malloc and the user has not chosen otherwise.

    Returns whether it does. `return_freed_memory` gives it back.
    """
    library = _glibc()
    if library is None or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if any(name in os.environ for name in MALLOC_OPTIONS):
        return False
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD))
    return all(library.mallopt(option, value) == 1 for option, value in options)


def return_freed_memory() -> None:
    """Give the memory that this process has freed back to the system, where `keep_freed_memory` keeps it."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    """Return the C library if it is glibc, else None."""
    if sys.platform != "linux":
        return None
    import ctypes

    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


# Output of letters that a stream's encoding lacks, and of file names that are not valid UTF-8.
#
# Nothing heavy is imported here, because every command imports this module.


_ESCAPED = "landmarks.escaped"


def accept_any_text() -> None:
    """Let standard output and error accept any text: a letter that their encoding lacks is escaped as in JSON.

    Printed JSON thus stays valid in any encoding, and a file name that is not valid UTF-8 causes no error.
    """
    codecs.register_error(_ESCAPED, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def is_utf8(path: PurePath | str) -> bool:
    """Return whether a path can be encoded as UTF-8; on Linux a file name may be any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def readable(path: PurePath | str) -> str:
    r"""Return a path as valid text, with bytes that are not UTF-8 escaped, as in `caf\xe9.jpg`."""
    return str(path) if is_utf8(path) else os.fsencode(path).decode(errors="backslashreplace")


def require_text(path: Path | str) -> None:
    """Raise `LandmarksError` unless `path` can be encoded as UTF-8, as polars requires of the paths of tables."""
    if not is_utf8(path):
        raise LandmarksError(f"the name {readable(path)} is not valid UTF-8", way_out="rename the file or the folder")


def printable(text: str) -> str:
    """Return `text` on one line without control characters, which names from strangers may hold."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


_BYTE_ORDER_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Byte order mark → encoding; the longer marks first."""


def decode_text(data: bytes) -> str:
    """Return the text in bytes, which is UTF-8 unless a byte order mark says otherwise; raise `UnicodeDecodeError`."""
    return data.decode(
        next((encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8-sig")
    )
