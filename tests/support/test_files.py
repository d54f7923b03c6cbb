from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.support.errors import BusyError, LandmarksError
from landmarks.support.files import (
    FORMAT,
    cache_folder,
    can_write,
    digest_of,
    file_digest,
    held,
    read_record,
    require_free_disk,
    write_record,
    written_whole,
)


def test_a_file_appears_only_when_its_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), written_whole(path) as aside:
        aside.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    with written_whole(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["table"]


def test_a_full_disk_is_told_in_one_line_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("old")
    with pytest.raises(LandmarksError, match="No space left on device"), written_whole(path):
        Path("/dev/full").write_text("x")
    assert path.read_text() == "old"


def test_a_killed_writer_leaves_nothing_behind_once_the_folder_is_held_again(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from landmarks.support.files import written_whole\n"
        "with written_whole(Path(sys.argv[1]) / 'table') as aside:\n"
        "    aside.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".table.*"))) == 1
    with held(tmp_path):
        assert not list(tmp_path.glob(".table.*"))
    assert not (tmp_path / "table").exists()


def test_a_second_process_is_told_that_the_folder_is_taken(tmp_path: Path) -> None:
    code = (
        "import sys, time; from landmarks.support.files import held\n"
        "with held(sys.argv[1]):\n    print('held', flush=True); time.sleep(60)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match="another process"), held(tmp_path):
        pass
    first.kill()
    first.communicate()
    for _ in range(100):  # the system frees a dead process's lock in its own time
        try:
            with held(tmp_path):
                return
        except BusyError:
            time.sleep(0.05)
    pytest.fail("the lock outlived its process")


def test_a_record_says_what_wrote_it(tmp_path: Path) -> None:
    write_record(tmp_path / "run.json", {"name": "Fußgänger"}, verb="train", inputs="abc")
    assert read_record(tmp_path / "run.json")["name"] == "Fußgänger"
    raw = json.loads((tmp_path / "run.json").read_text())
    assert (raw["format"], raw["verb"], raw["inputs"]) == (FORMAT, "train", "abc")


def test_a_newer_record_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(LandmarksError, match=r"run\.json was written by a newer version; received format 2"):
        read_record(tmp_path / "run.json")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"format": "1"}'])
def test_a_damaged_record_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(LandmarksError, match=r"run\.json"):
        read_record(tmp_path / "run.json")


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    require_free_disk(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(LandmarksError, match=r"expected 1000000000\.00 GB"):
        require_free_disk(tmp_path, 10**18)


@given(st.lists(st.one_of(st.integers(), st.text(), st.booleans(), st.none())), st.integers())
def test_a_digest_changes_with_any_part(parts: list[object], other: int) -> None:
    assert digest_of(*parts) == digest_of(*parts)
    assert digest_of(*parts, other) != digest_of(*parts)


def test_a_file_digest_is_blake2b_as_the_system_computes_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    printed = subprocess.run(["b2sum", "--length=128", tmp_path / "file"], capture_output=True, text=True, check=True)
    assert file_digest(tmp_path / "file") == printed.stdout.split()[0]


def test_a_record_of_a_path_of_any_bytes_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = os.fsdecode(b"/data/caf\xe9")
    write_record(tmp_path / "run.json", {"folder": path}, verb="train")
    assert read_record(tmp_path / "run.json")["folder"] == path


@pytest.mark.linux
def test_a_disk_that_may_only_be_read_is_told_in_one_line(tmp_path: Path, read_only: Callable[[Path], None]) -> None:
    (tmp_path / "table").write_text("old")
    read_only(tmp_path)
    for folder in (tmp_path, tmp_path / "new"):
        told = pytest.raises(LandmarksError, match=r"cannot be (written|made a folder) \(Read-only file system\)")
        with told, held(folder):
            pass
        with pytest.raises(LandmarksError, match=r"could not be written \(Read-only file system\)"):
            write_record(folder / "table", {}, verb="train")
    assert not can_write(tmp_path)
    assert (tmp_path / "table").read_text() == "old"


def test_a_home_that_cannot_be_written_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file is no folder, not even for the system's owner")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "file")
    with pytest.raises(LandmarksError, match=r"cannot be written, where copies are kept; .*XDG_CACHE_HOME=FOLDER"):
        cache_folder()

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(LandmarksError, match="no home folder to keep copies in"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "landmarks"
    assert list(cache_folder().iterdir()) == []
