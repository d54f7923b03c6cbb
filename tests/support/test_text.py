"""Output of any encoding, and names that are no text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.support.errors import LandmarksError
from landmarks.support.systems import is_utf8, readable, require_text

PROGRAM = """
import json, sys
from landmarks.support.console import note, print_table, progress
from landmarks.support.systems import accept_any_text
accept_any_text()
names = json.loads(sys.argv[1])
print(json.dumps(names, ensure_ascii=False))
print_table(["name", "images"], [[name, 3] for name in names], "Łódź and others…")
for name in names:
    note(name)
with progress("Český Krumlov", total=1) as advance:
    advance(1, "…")
"""
NAMES = ["Český Krumlov, zámek", "Łódź", "嵐山", "plain", "\N{SHIP}\N{CAMERA}", "caf\udce9"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "shift_jis", "utf-8"])
def test_everything_can_be_printed_in_every_encoding_and_json_stays_json(encoding: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(NAMES)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode(encoding)
    first = ended.stdout.decode(encoding).splitlines()[0]
    assert json.loads(first) == NAMES
    assert "plain" in ended.stderr.decode(encoding)


@pytest.mark.parametrize("words", [["-h"], ["train", "-h"], ["predict", "Łódź", "x.jpg"]])
def test_help_and_errors_are_told_in_ascii(words: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "landmarks", *words],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict", "TERM": "dumb"},
        check=False,
    )
    assert ended.returncode == (0 if "-h" in words else 1)
    assert b"unforeseen" not in ended.stderr
    if "-h" not in words:
        assert rb"there is no run \u0141\u00f3d\u017a" in ended.stderr


def test_a_name_of_any_bytes_is_readable() -> None:
    assert readable("Łódź") == "Łódź"
    assert readable(Path("a") / os.fsdecode(b"caf\xe9.jpg")) == str(Path("a") / r"caf\xe9.jpg")
    require_text("Łódź")
    with pytest.raises(LandmarksError, match=r"the name caf\\xe9 is not valid UTF-8"):
        require_text(os.fsdecode(b"caf\xe9"))


@given(st.binary(min_size=1, max_size=40))
def test_what_is_readable_can_always_be_stored(name: bytes) -> None:
    path = os.fsdecode(name)
    readable(path).encode()
    try:
        name.decode()
    except UnicodeDecodeError:
        assert not is_utf8(path)
    else:
        assert readable(path) == path == name.decode()
