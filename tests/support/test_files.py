from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.support.disk import can_write, make_folder, require_free_disk
from landmarks.support.errors import BusyError, LandmarksError, UsageError
from landmarks.support.files import (
    FORMAT,
    cache_folder,
    digest_of,
    file_digest,
    held,
    read_record,
    refuse_foreign,
    refuse_other_kind,
    write_record,
    written_whole,
)
from landmarks.support.tables import write_table


def refusing(number: int) -> Callable[..., None]:
    """Give what stands for a call that this system's disk does not know."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.linux
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
def test_every_file_has_the_mode_that_the_umask_gives_whatever_wrote_it(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with written_whole(tmp_path / "private") as aside:
            aside.touch(mode=0o600)
        with written_whole(tmp_path / "weights.safetensors") as aside:
            pytest.importorskip("safetensors.numpy").save_file({"a": np.zeros(3)}, aside)
        write_record(tmp_path / "record.json", {}, verb="test")
        write_table(tmp_path / "table.parquet", pl.DataFrame({"a": [1]}))
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("private", "weights.safetensors", "record.json", "table.parquet"), oct(mode))


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


@pytest.mark.linux
def test_a_device_and_a_pipe_are_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        message = f"{name} could not be written .it is no plain file"
        with pytest.raises(LandmarksError, match=message), written_whole(tmp_path / name) as aside:
            aside.write_text("x")
        assert not (tmp_path / name).is_file()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["null", "pipe"]


def test_a_file_of_another_kind_is_not_taken_for_the_one_to_write(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("an image")
    with pytest.raises(UsageError, match=r"a\.jpg is there already and is not \.csv by its name.*another name"):
        refuse_other_kind(tmp_path / "a.jpg", ".csv", ".txt")
    for name in ("a.CSV", "a.txt", "a"):
        (tmp_path / name).write_text("")
        refuse_other_kind(tmp_path / name, ".csv", ".txt")
    refuse_other_kind(tmp_path / "new.json", ".csv")
    (tmp_path / "mine.dat").write_text("")
    refuse_other_kind(tmp_path / "mine.dat", ".csv")  # what we wrote the day before
    with pytest.raises(LandmarksError, match=r"could not be written \(it is a folder"):
        refuse_other_kind(tmp_path, ".csv")
    (tmp_path / "mine.csv").write_bytes(b"PAR1...")
    refuse_other_kind(tmp_path / "mine.csv", ".parquet", begins=b"PAR1")
    with pytest.raises(UsageError, match=r"not \.parquet by its name"):
        refuse_other_kind(tmp_path / "a.jpg", ".parquet", begins=b"PAR1")


def test_no_folder_is_made_that_is_called_as_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LandmarksError, match=r"called ~; Path\(\"~/runs\"\)\.expanduser\(\) is at home"):
        make_folder(Path("~/runs"))
    assert not list(tmp_path.iterdir())


def test_an_error_that_is_not_the_disks_passes_through_a_block_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("old")
    others = [
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        PermissionError(13, "Permission denied", "somewhere/else.jpg"),
        OSError(28, "No space left on device", "somewhere/else"),
        FileNotFoundError(2, "No such file or directory", "image.jpg"),
    ]
    for error in others:
        with pytest.raises(type(error)) as caught, written_whole(path) as aside:
            aside.write_text("half")
            raise error
        assert caught.value is error
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["table"]


SMALL_DISK = (  # no file may grow beyond 10 kB, as on a disk that is full
    "import resource, signal, sys\n"
    "import numpy as np, polars as pl\n"
    "from pathlib import Path\n"
    "from safetensors.numpy import save_file\n"
    "from PIL import Image\n"
    "from landmarks.support.files import written_whole\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
    "noise = np.random.default_rng(0).random(100_000)\n"
    "table = pl.DataFrame({'noise': noise})\n"
    "writers = {\n"
    "    'text': lambda aside: aside.write_text('x' * 100_000),\n"
    "    'parquet': lambda aside: table.write_parquet(aside),\n"
    "    'csv': lambda aside: table.write_csv(aside),\n"
    "    'weights': lambda aside: save_file({'noise': noise}, aside),\n"
    "    'image': lambda aside: "
    "Image.fromarray((256 * noise.reshape(250, 400)).astype('uint8')).save(aside, 'PNG'),\n"
    "}\n"
    "try:\n"
    "    with written_whole(Path(sys.argv[1]) / 'file') as aside:\n"
    "        writers[sys.argv[2]](aside)\n"
    "except Exception as error:\n"
    "    print(f'{type(error).__name__}: {error}')\n"
)


@pytest.mark.parametrize("writer", ["text", "parquet", "csv", "weights", "image"])
def test_a_disk_that_fills_up_is_told_whatever_writes(tmp_path: Path, writer: str) -> None:
    line = [sys.executable, "-c", SMALL_DISK, str(tmp_path), writer]
    output = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert output.startswith(f"LandmarksError: {tmp_path / 'file'} could not be written (File too large)")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    path, message = tmp_path / "file" / "table", r"table could not be written \(.*file is no folder\)"
    with pytest.raises(LandmarksError, match=message), written_whole(path):
        pass


def test_bytes_are_on_disk_before_the_rename_and_the_rename_before_the_block_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def spied_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        happened.append(("folder" if stat.S_ISDIR(status.st_mode) else "file", status.st_ino))
        fsync(descriptor)

    def spied_replace(source: Path, target: Path) -> None:
        happened.append(("rename", source.stat().st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(os, "replace", spied_replace)
    with written_whole(tmp_path / "table") as aside:
        aside.write_text("new")
    written = (tmp_path / "table").stat().st_ino
    assert happened == [("file", written), ("rename", written), ("folder", tmp_path.stat().st_ino)]


@pytest.mark.linux
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_that_knows_no_flushing_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number))
    with written_whole(tmp_path / "table") as aside:
        aside.write_text("new")
    assert (tmp_path / "table").read_text() == "new"
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(LandmarksError, match=r"could not be written \(Input/output error\)"):
        write_record(tmp_path / "record", {}, verb="test")
    assert not (tmp_path / "record").exists()


@pytest.mark.linux
def test_a_disk_whose_files_are_anothers_keeps_the_modes_that_it_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "chmod", refusing(errno.EPERM))
    with written_whole(tmp_path / "weights") as aside:
        aside.touch(mode=0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.linux
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_on_a_disk_that_knows_no_locks_work_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    import fcntl

    monkeypatch.setattr(fcntl, "flock", refusing(number))
    with held(tmp_path / "data") as folder:
        write_record(folder / "record", {}, verb="test")
    assert (tmp_path / "data/record").is_file()
    assert "knows no locks" in " ".join(capsys.readouterr().err.split())


def test_a_platform_that_cannot_open_folders_writes_files_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def no_folders(path: Path | str, *options: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))  # as Windows has it
        return opened(path, *options)

    monkeypatch.setattr(os, "open", no_folders)
    with written_whole(tmp_path / "table") as aside:
        aside.write_text("new")
    assert (tmp_path / "table").read_text() == "new"


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
        "import sys; from landmarks.support.files import held\n"
        "with held(sys.argv[1]):\n    print('held', flush=True); sys.stdin.read()\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match="another process"), held(tmp_path):
        pass
    first.kill()
    first.communicate()
    with held(tmp_path):  # the system freed the dead process's lock before it told of the death
        pass


def test_a_record_says_what_wrote_it(tmp_path: Path) -> None:
    write_record(tmp_path / "run.json", {"name": "Fußgänger"}, verb="train", inputs="abc")
    assert read_record(tmp_path / "run.json")["name"] == "Fußgänger"
    raw = json.loads((tmp_path / "run.json").read_text())
    assert (raw["format"], raw["verb"], raw["inputs"]) == (FORMAT, "train", "abc")


def test_what_a_record_lacks_is_named(tmp_path: Path) -> None:
    write_record(tmp_path / "run.json", {"name": "a"}, verb="train")
    record = read_record(tmp_path / "run.json", way_out="train again")
    assert record.get("recipe") is None
    with pytest.raises(LandmarksError, match=r'run\.json lacks "recipe"; train again'):
        record["recipe"]


def test_a_newer_record_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": FORMAT + 1}))
    message = rf"run\.json was written by a newer version; received format {FORMAT + 1}"
    with pytest.raises(LandmarksError, match=message):
        read_record(tmp_path / "run.json")


def test_a_record_of_an_earlier_layout_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": FORMAT - 1}))
    with pytest.raises(LandmarksError, match=r"run\.json was written by an earlier version; .* make it anew with"):
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
def test_a_digest_changes_with_any_part(splits: list[object], other: int) -> None:
    assert digest_of(*splits) == digest_of(*splits)
    assert digest_of(*splits, other) != digest_of(*splits)


def test_a_file_digest_is_blake2b_as_the_system_computes_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    printed = subprocess.run(["b2sum", "--length=128", tmp_path / "file"], capture_output=True, text=True, check=True)
    assert file_digest(tmp_path / "file") == printed.stdout.split()[0]


def test_a_record_of_a_path_of_any_bytes_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = os.fsdecode(b"/data/caf\xe9")
    write_record(tmp_path / "run.json", {"folder": path}, verb="train")
    assert read_record(tmp_path / "run.json")["folder"] == path


def test_an_attempt_to_write_that_was_killed_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "touch", lambda path, **_: (path.write_bytes(b""), killed()))
        can_write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert can_write(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.linux
def test_a_disk_that_may_only_be_read_is_told_in_one_line(tmp_path: Path, read_only: Callable[[Path], None]) -> None:
    (tmp_path / "table").write_text("old")
    read_only(tmp_path)
    for folder in (tmp_path, tmp_path / "new"):
        refused = pytest.raises(LandmarksError, match=r"cannot be (written|made a folder) \(Read-only file system\)")
        with refused, held(folder):
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


@pytest.mark.linux
def test_a_folder_that_another_process_has_just_begun_is_that_ones(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()  # no mark yet
    code = (
        "import sys, time; from landmarks.support.files import held\n"
        "with held(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError):
            refuse_foreign(tmp_path, ("mark.json",), "dataset")
    finally:
        other.kill()
        other.communicate()
    with pytest.raises(UsageError, match="holds no dataset"):
        refuse_foreign(tmp_path, ("mark.json",), "dataset")


def test_what_a_kill_in_the_first_second_leaves_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".unpack.json.0123abcd.part").touch()
    refuse_foreign(tmp_path, ("unpack.json",), "unpacked dataset")


@pytest.mark.linux
def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    stale = tmp_path / ".answers.csv.0123abcd.part"
    stale.touch()
    others = tmp_path / ".answers.csv.old.0123abcd.part"
    others.touch()
    with written_whole(tmp_path / "answers.csv", tidy=True) as first:
        assert not stale.exists()
        first.write_text("first")
        with written_whole(tmp_path / "answers.csv", tidy=True) as second:
            second.write_text("second")
            assert first.exists()
    assert (tmp_path / "answers.csv").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [others.name, "answers.csv"]
