"""Freed memory stays with the process until it is asked to return it, unless the user has chosen otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from landmarks.support.systems import MALLOC_OPTIONS, keep_freed_memory

STEPS = """
import json, resource
from pathlib import Path
import numpy as np
from landmarks.support.systems import keep_freed_memory, return_freed_memory

def step():
    for size in (2**26, 2**25, 2**26):
        np.ones(size, dtype=np.uint8)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

step()
found = {"given back": faults(), "keeps": keep_freed_memory()}
step()
found |= {"kept": faults(), "resident": resident()}
return_freed_memory()
print(json.dumps(found | {"resident at the end": resident()}))
"""


def run(**environment: str) -> dict[str, int]:
    inherited = {name: value for name, value in os.environ.items() if name not in (*MALLOC_OPTIONS, "GLIBC_TUNABLES")}
    ended = subprocess.run([sys.executable, "-c", STEPS], env=inherited | environment, capture_output=True, check=True)
    return dict(json.loads(ended.stdout))


@pytest.mark.linux
def test_pages_are_cleared_once_and_not_in_every_step() -> None:
    found = run()
    if not found["keeps"]:
        pytest.skip("the C library is not glibc")
    assert found["kept"] < found["given back"] / 4
    assert found["resident at the end"] < found["resident"] - 2**25


@pytest.mark.linux
@pytest.mark.parametrize("name", [*MALLOC_OPTIONS, "GLIBC_TUNABLES"])
def test_the_users_choice_stands(name: str) -> None:
    value = "glibc.malloc.top_pad=0" if name == "GLIBC_TUNABLES" else "131072"
    assert not run(**{name: value})["keeps"]


def test_other_systems_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
