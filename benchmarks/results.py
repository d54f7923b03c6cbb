"""Run commands in their own processes, and save results: one JSON per benchmark, with machine and date."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

FOLDER = Path(__file__).parent / "results"


def save(name: str, rows: list[dict[str, Any]], **about: Any) -> None:
    """Print `rows` as a table and write them to `results/NAME.json`, after what the numbers are `about`."""
    columns = list(rows[0])
    cells = [columns, *([_text(row[column]) for column in columns] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    record = {"date": datetime.date.today().isoformat(), "machine": machine(), **about, "rows": rows}
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def measured(command: Sequence[str]) -> tuple[float, float, float]:
    """Run a command quietly; return its wall seconds, processor seconds and peak resident megabytes.

    A small process in between starts it, because a child process inherits its parent's peak memory.
    """
    ran = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURE, *command], stdout=subprocess.PIPE, text=True, check=False
    )
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    seconds, processor, kilobytes = map(float, ran.stdout.split())
    return seconds, processor, kilobytes / 1e3


def run_json(*command: object) -> dict[str, Any]:
    """Run a command and return the JSON on the last line that it prints."""
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(map(str, command))[:200]} failed:\n{ended.stderr[-2000:]}")
    return dict(json.loads(ended.stdout.splitlines()[-1]))


_MEASURE = """
import os, sys, time
quiet = os.open(os.devnull, os.O_WRONLY)
silent = [(os.POSIX_SPAWN_DUP2, quiet, 1), (os.POSIX_SPAWN_DUP2, quiet, 2)]
started = time.perf_counter()
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
_, status, used = os.wait4(process, 0)
print(time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(status != 0)
"""


def landmarks(*arguments: object) -> list[str]:
    """Return the command line of a verb, for the `landmarks` installed beside this interpreter."""
    return [str(Path(sys.executable).parent / "landmarks"), *map(str, arguments)]


def share_shards(data: Path, copy: Path) -> None:
    """Give the dataset folder `copy` the shards of `data`, as hard links where both are on one disk."""

    def link_or_copy(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)

    shutil.copytree(data / "shards", copy / "shards", copy_function=link_or_copy)


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
        "load_of_the_last_minutes": [round(load, 1) for load in os.getloadavg()],  # far above the cores: machine busy
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
