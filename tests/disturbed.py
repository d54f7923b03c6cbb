"""Verbs disturbed at events of the file system: killed at the k-th, or on a disk that takes nothing from the k-th on.

A fresh process imports what is needed and forks a child for each attempt, so that an instant costs no start. The
child's audit hook (`sys.addaudithook`) sees every file that Python opens for writing, renames or removes and every
folder it makes, counts those inside the attempt's folder, and strikes at one of them. What polars and safetensors write
from Rust is seen by the renaming that follows; there the file is cut in half before the kill.

    echo JOB.json | python disturbed.py     # one line of JSON for each attempt, an empty one after each job

A job: {"base": FOLDER, "place": FOLDER, "arguments": [...], "keep": [...], "hows": ["kill", "ENOSPC", "EROFS", …],
"most": k}. Each attempt copies `base` to `place`, runs the command line's `arguments` there disturbed, and then again
undisturbed. The first one is not disturbed, and tells how many events there are; up to `most` of them are drawn from a
seed, for each of `hows`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SEEN = {"open": 0, "os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "shutil.rmtree": 0}
"""Audited event → which of its arguments is the path that is changed."""

TIMES = ("seconds", "peak_memory_mb", "machine", "versions", "started", "pid", "why")
"""Fields of records that tell of a time or a place, and may differ: the reason for a choice says what other programs
used of the processor at that moment."""


def hooked(place: Path, strike: Callable[[int, str, str], None]) -> list[int]:
    """Call `strike(number, event, path)` before every change of files below `place`; return the running count."""
    counted, lock = [0], threading.Lock()
    root = str(place) + os.sep

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        which = SEEN.get(event)
        if which is None or not isinstance(arguments[which], str | bytes | os.PathLike):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        path = os.path.abspath(os.fsdecode(arguments[which]))  # noqa: PTH100 (no new objects in a hook)
        if not path.startswith(root) or path.endswith(".lock"):
            return
        with lock:
            counted[0] += 1
            number = counted[0]
        strike(number, event, os.fsdecode(arguments[0]))  # as it was given: what an error of the system would name

    sys.addaudithook(hook)
    return counted


def kill_at(instant: int) -> Callable[[int, str, str], None]:
    def strike(number: int, event: str, path: str) -> None:
        if number == instant:
            if event == "os.rename" and number % 2 and os.path.isfile(path):  # noqa: PTH113
                os.truncate(path, os.path.getsize(path) // 2)  # noqa: PTH202 (as a kill in the midst of writing)
            os.kill(os.getpid(), signal.SIGKILL)

    return strike


def refuse_from(instant: int, number_of_error: int) -> Callable[[int, str, str], None]:
    """A full disk takes no new file and no folder; a read-only one changes nothing at all."""

    def strike(number: int, event: str, path: str) -> None:
        removing = event in ("os.remove", "os.rmdir", "shutil.rmtree", "os.rename")
        if number >= instant and not (removing and number_of_error == errno.ENOSPC):
            raise OSError(number_of_error, os.strerror(number_of_error), path)

    return strike


def forked(run: Callable[[], int], log: Path) -> int:
    """Run in a child of this process and return its exit code, -9 where it was killed, -1 where it hung."""
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        with open(log, "w", encoding="utf-8") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        code = 99
        try:
            code = run()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file below, records without what tells of a time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            data = path.read_bytes()
            if path.suffix == ".json":
                with contextlib.suppress(ValueError):
                    data = json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()
            elif path.suffix == ".parquet":
                data = _rows_of(data)
            elif path.suffix in (".html", ".svg"):
                data = b""
            found[path.relative_to(folder).as_posix()] = hashlib.blake2b(data, digest_size=8).hexdigest()
    return found


def _rows_of(data: bytes) -> bytes:
    import polars as pl

    try:
        return pl.read_parquet(io.BytesIO(data)).drop("seconds", strict=False).write_ndjson().encode()
    except pl.exceptions.PolarsError:
        return data


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(inner) for name, inner in value.items() if name not in TIMES and "seconds" not in name}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def leftovers(folder: Path, before: set[str]) -> list[str]:
    """Return what is below `folder` that looks like a half-finished file or folder and was not there before."""
    marks = (".part", ".import", ".chunks", ".parts")
    found = [path.relative_to(folder).as_posix() for path in folder.rglob(".*") if path.name.endswith(marks)]
    return sorted(name for name in found if name not in before)


def attempt(job: dict[str, Any], how: str, instant: int) -> dict[str, Any]:
    """Make one attempt of a job and return what came of it."""
    base, place = Path(job["base"]), Path(job["place"])
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place, symlinks=True)
    log = place.with_suffix(".log")
    result: dict[str, Any] = {"how": how, "instant": instant}

    def verb() -> int:
        import landmarks.cli.main

        os.chdir(place)
        return landmarks.cli.main.run(list(job["arguments"]))

    def disturbed() -> int:
        if how == "count":
            counted = hooked(place, lambda *_: None)
            code = verb()
            place.with_suffix(".count").write_text(json.dumps([counted[0], *sys.modules]))
            return code
        hooked(place, kill_at(instant) if how == "kill" else refuse_from(instant, getattr(errno, how)))
        return verb()

    def digested() -> int:
        place.with_suffix(".digests").write_text(json.dumps(digests(place)))
        return 0

    result["code"] = forked(disturbed, log)
    result["last_lines"] = log.read_text(encoding="utf-8").strip().splitlines()[-3:]
    if how == "count":
        result["events"], *result["modules"] = json.loads(place.with_suffix(".count").read_text())
        result["text"] = log.read_text(encoding="utf-8")
    if how != "count":
        result["again"] = forked(verb, log)
        result["last_lines_again"] = log.read_text(encoding="utf-8").strip().splitlines()[-3:]
    forked(digested, log)
    result["digests"] = json.loads(place.with_suffix(".digests").read_text())
    result["leftovers"] = leftovers(place, set(job.get("keep", [])))
    return result


def do(job: dict[str, Any]) -> None:
    """Make the attempts of a job and print a line for each."""
    sys.path[:0] = job.get("path", [])
    for module in job.get("modules", []):
        __import__(module)
    undisturbed = attempt(job, "count", 0)
    for module in undisturbed.pop("modules"):  # what the verb imports as it goes, so that no attempt has to
        if module.startswith("landmarks."):
            __import__(module)
    print(json.dumps(undisturbed), flush=True)
    events = range(1, undisturbed["events"] + 1)
    instants = sorted(random.Random(0).sample(events, min(job["most"], len(events))))
    for how in job["hows"]:
        for instant in instants:
            print(json.dumps(attempt(job, how, instant)), flush=True)


def main() -> None:
    """Do the jobs whose files are named on standard input; an empty line follows each."""
    for line in sys.stdin:
        do(json.loads(Path(line.rstrip("\n")).read_text(encoding="utf-8")))
        print(flush=True)


if __name__ == "__main__":
    main()
