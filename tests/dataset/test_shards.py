from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landmarks.dataset import shards
from landmarks.dataset.shards import ImageReader, ShardWriter
from landmarks.support.errors import LandmarksError

IDS = st.text(st.characters(exclude_categories=["C"], exclude_characters="/\\"), min_size=1, max_size=120)
IMAGES = st.dictionaries(IDS, st.binary(max_size=2000), max_size=8)


class Folder:
    """A dataset as far as a reader needs one."""

    images_in = address = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, shard: str) -> Path:
        return self.folder / shard


def reader_of(folder: Path) -> Any:
    return ImageReader(Folder(folder))  # type: ignore[arg-type]


@given(IMAGES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_what_is_added_is_read_back_by_position_and_by_tarfile(tmp_path: Path, images: dict[str, bytes]) -> None:
    path = tmp_path / "a.tar"
    with ShardWriter(path) as shard:
        places = {id: shard.add(id, data) for id, data in images.items()}
    reader = reader_of(tmp_path)
    assert all(reader.read("a.tar", *places[id]) == data for id, data in images.items())
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert [member.offset_data for member in tar] == [offset for offset, _ in places.values()]
    assert members == {f"{id}.jpg": data for id, data in images.items()}


def test_the_program_tar_lists_a_shard_without_complaint(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar") as shard:
        shard.add("3f8a000000000000", b"x" * 1000)
        shard.add("Łódź " * 30, b"y")
    listed = subprocess.run(["tar", "-tf", tmp_path / "a.tar"], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    assert len(listed.stdout.splitlines()) == 2


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        with ShardWriter(tmp_path / name) as shard:
            shard.add("one", b"1" * 513)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_shard_that_fails_half_way_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "a.tar") as shard:
        shard.add("one", b"1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("id", ["", "../up", "a/b", "a\\b", "a\0b", "a\nb"])
def test_an_id_that_would_be_a_path_is_refused(tmp_path: Path, id: str) -> None:
    with pytest.raises(LandmarksError, match="cannot be a member's name"), ShardWriter(tmp_path / "a.tar") as shard:
        shard.add(id, b"")


def test_a_file_shorter_than_the_manifest_says_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "short.tar").write_bytes(b"12345")
    with pytest.raises(LandmarksError, match="shorter than the manifest says"):
        reader_of(tmp_path).read("short.tar", 0, 6)
    with pytest.raises(LandmarksError, match="cannot be read"):
        reader_of(tmp_path).read("gone.jpg", 0, 6)


def test_many_threads_read_more_files_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_OPEN_FILES", 3)
    for number in range(20):
        (tmp_path / f"{number}").write_bytes(f"{number:04d}".encode())
    reader = reader_of(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        numbers = [number % 20 for number in range(2000)]
        read = list(pool.map(lambda number: reader.read(f"{number}", 0, 4), numbers))
    assert read == [f"{number:04d}".encode() for number in numbers]
    open_files = {file.path for file in psutil.Process().open_files()}
    assert len({path for path in open_files if Path(path).parent == tmp_path}) == 3


SMALL_DISK = (  # no file may grow beyond 400 bytes, as on a disk that is full; buffers reach it sooner or later
    "import resource, signal, sys\n"
    "from pathlib import Path\n"
    "from landmarks.dataset.shards import ShardWriter\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))\n"
    "for length in range(0, 20_000, 500):\n"
    "    try:\n"
    "        with ShardWriter(Path(sys.argv[1]) / 'shard.tar') as shard:\n"
    "            shard.add('one', bytes(length))\n"
    "    except Exception as error:\n"
    "        print(f'{type(error).__name__}: {error}')\n"
)


def test_a_disk_that_is_full_is_told_whenever_the_buffer_reaches_it(tmp_path: Path) -> None:
    line = [sys.executable, "-c", SMALL_DISK, str(tmp_path)]
    lines = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 40
    assert set(lines) == {
        f"LandmarksError: {tmp_path / 'shard.tar'} could not be written (File too large); nothing was replaced"
    }
    assert not list(tmp_path.iterdir())


def test_many_threads_read_one_file_where_no_system_call_reads_by_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pread", raising=False)
    data = os.urandom(1 << 20)
    (tmp_path / "a.tar").write_bytes(data)
    reader = reader_of(tmp_path)
    places = [(start * 7919 % len(data), start % 5000) for start in range(5000)]
    places = [(start, min(length, len(data) - start)) for start, length in places]
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(lambda place: reader.read("a.tar", *place), places))
    assert read == [data[start : start + length] for start, length in places]
