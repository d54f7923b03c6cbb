"""Commands where only the base install is: `MODULES` names the modules that are there, and no others can be found."""

from __future__ import annotations

import json
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

THERE = {"landmarks", *os.environ["MODULES"].split(), *sys.stdlib_module_names}


class OnlyThese(PathFinder):
    """Finds what Python finds on its path, but for modules that are neither Python's own nor named in `MODULES`."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        top = name.partition(".")[0]
        known = top in THERE or top.startswith("_sysconfigdata")  # Python's own too, named after the machine
        return super().find_spec(name, path, target) if known else None


sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyThese

if __name__ == "__main__":
    from landmarks.cli.main import run

    sys.exit(next((code for code in map(run, json.loads(sys.argv[1])) if code), 0))
