"""Measure commands in processes of their own, and keep figures: one JSON a benchmark, with machine and date."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

FOLDER = Path(__file__).parent / "results"


def keep(name: str, rows: list[dict[str, Any]], **told: Any) -> None:
    """Print `rows` as a table and write them to `results/NAME.json`."""
    columns = list(rows[0])
    cells = [columns, *([_text(row[column]) for column in columns] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    whole = {"date": datetime.date.today().isoformat(), "machine": machine(), **told, "rows": rows}
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")


def measured(command: Sequence[str]) -> tuple[float, float, float]:
    """Run a command quietly; return its wall seconds, processor seconds and peak resident megabytes."""
    started = time.perf_counter()
    quiet = os.open(os.devnull, os.O_WRONLY)
    silent = [(os.POSIX_SPAWN_DUP2, quiet, 1), (os.POSIX_SPAWN_DUP2, quiet, 2)]
    process = os.posix_spawnp(command[0], list(command), os.environ, file_actions=silent)
    os.close(quiet)
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def landmarks(*arguments: object) -> list[str]:
    """Return the command of a verb, run by this interpreter's own `landmarks`."""
    return [str(Path(sys.executable).parent / "landmarks"), *map(str, arguments)]


def machine() -> dict[str, Any]:
    """Return processor, cores, memory and versions."""
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        match = re.search(r"model name\s*:\s*(.+)", info.read_text())
        processor = match[1].strip() if match else processor
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
    }


def _text(value: Any) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,}"
        if isinstance(value, int | float)
        else str(value)
    )
