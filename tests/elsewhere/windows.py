"""Commands on a system without POSIX, as far as Linux can play one: `python windows.py '[["import", …], …]'`.

Our modules do not get what Windows lacks (what others import is their own affair), and files are as stubborn as there:
one that this process holds open, or has mapped into memory, is neither replaced nor deleted, and a folder cannot be
opened.
"""

from __future__ import annotations

import builtins
import json
import os
import shutil
import signal
import sys
import types
from pathlib import Path
from typing import Any

WITHOUT = {
    "os": (
        "chown", "chroot", "ctermid", "eventfd", "fchdir", "fchmod", "fchown", "fork", "forkpty", "fpathconf",
        "getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority", "getresgid",
        "getresuid", "getsid", "getuid", "killpg", "lchown", "lockf", "major", "makedev", "memfd_create", "minor",
        "mkfifo", "mknod", "nice", "openpty", "pathconf", "pidfd_open", "posix_fadvise", "posix_fallocate",
        "posix_spawn", "pread", "preadv", "pwrite", "pwritev", "readv", "register_at_fork", "sched_get_priority_max",
        "sched_getaffinity", "sched_setaffinity", "sched_yield", "sendfile", "setpgid", "setpriority", "setsid",
        "setuid", "splice", "statvfs", "sync", "sysconf", "tcgetpgrp", "uname", "wait", "wait3", "wait4", "waitid",
        "writev", "O_CLOEXEC", "O_DIRECTORY", "O_DSYNC", "O_NOATIME", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK",
        "O_PATH", "O_SYNC", "O_TMPFILE",
    ),
    "signal": (
        "SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGSTOP", "SIGTSTP", "SIGUSR1", "SIGUSR2", "alarm",
        "pause", "setitimer",
    ),
}  # fmt: skip
MODULES = ("crypt", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")


class Without(types.ModuleType):
    """A module that lacks some names."""

    def __init__(self, module: types.ModuleType, absent: tuple[str, ...]) -> None:
        super().__init__(module.__name__)
        self.__dict__.update({name: value for name, value in vars(module).items() if name not in absent})


def take_away() -> None:
    """Let our modules import what Windows has, and no more."""
    real_import = builtins.__import__
    lacking = {module.__name__: Without(module, WITHOUT[module.__name__]) for module in (os, signal)}

    def import_as_there(name: str, into: Any = None, *rest: Any, **named: Any) -> Any:
        if str((into or {}).get("__name__", "")).startswith("landmarks"):
            if name in MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in lacking:
                return lacking[name]
        return real_import(name, into, *rest, **named)

    builtins.__import__ = import_as_there


def make_files_stubborn() -> None:
    """Let `os.replace` and all that deletes fail as on Windows when this process still holds the file."""
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    for name in ("replace", "rename", "unlink", "remove"):
        setattr(os, name, _stubborn(getattr(os, name)))
    real_open = os.open

    def open_file(path: Any, *rest: Any, **named: Any) -> int:
        if Path(os.fsdecode(path)).is_dir():
            raise PermissionError(13, "Permission denied", path)
        return real_open(path, *rest, **named)

    os.open = open_file


def _stubborn(real: Any) -> Any:
    def call(*paths: Any, **named: Any) -> Any:
        for path in paths[:2]:
            held = str(Path(os.fsdecode(path)).resolve())
            if held in _held():
                raise PermissionError(13, "The process cannot access the file because it is being used", held)
        return real(*paths, **named)

    return call


def _held() -> set[str]:
    """Return the files that this process has open or mapped."""
    held = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            held.add(str(descriptor.readlink()))
        except OSError:  # the one that lists this folder
            continue
    mapped = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    return held | {words[5] for words in mapped if len(words) == 6 and words[5].startswith("/")}


if __name__ == "__main__":
    make_files_stubborn()
    take_away()
    from landmarks.cli.main import run

    sys.exit(next((code for code in map(run, json.loads(sys.argv[1])) if code), 0))
