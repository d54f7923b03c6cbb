"""Where figures are kept: one JSON a benchmark, with the machine and the date they were measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
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
