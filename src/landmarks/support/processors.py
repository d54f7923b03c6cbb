"""How many processors there are for this process: every room that starts threads or processes asks here."""

from __future__ import annotations

import os
import sys


def usable_processors() -> int:
    """Return how many processors this process may use: those it is bound to, or all where a system cannot bind one."""
    if sys.platform != "win32" and hasattr(os, "sched_getaffinity"):  # Linux; macOS has no such call either
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
