"""Commands in an environment of its own: `python nowhere.py '[["train", …], …]'`; ends with the first bad exit code."""

from __future__ import annotations

import json
import sys

from landmarks.cli.main import run

if __name__ == "__main__":
    sys.exit(next((code for code in map(run, json.loads(sys.argv[1])) if code), 0))
