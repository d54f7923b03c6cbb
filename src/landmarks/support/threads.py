"""The threads that compute, and how they wait for each other.

OpenMP's threads spin while they wait. On an idle machine that costs nothing; beside another program a thread that
spins takes the core from one that has work, and a small training becomes many times slower. With the policy PASSIVE
they sleep instead: as fast on an idle machine, see `benchmarks/busy.py`. OpenMP reads the policy when it is loaded, so
it has to be set before torch is.
"""

from __future__ import annotations

import os
import sys

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
