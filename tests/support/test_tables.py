"""Tables and arrays: whole, checked when they are read, and without formulas."""

from __future__ import annotations

import csv
import errno
import io
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.tables import (
    array_writer,
    csv_text,
    open_array,
    read_metadata,
    read_table,
    refuse_other_csv,
    unescaped,
    write_table,
)


def test_a_table_comes_back_with_its_metadata(tmp_path: Path) -> None:
    table = pl.DataFrame({"image_id": ["a", "b"], "landmark_id": [1, None]})
    write_table(tmp_path / "t.parquet", table, rule="all", seed=0)
    assert read_table(tmp_path / "t.parquet").equals(table)
    metadata = read_metadata(tmp_path / "t.parquet")
    assert (metadata["rule"], metadata["seed"]) == ("all", "0")


def test_columns_are_cast_to_the_schema_and_others_are_kept(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", pl.DataFrame({"label": [1], "more": ["x"]}))
    table = read_table(tmp_path / "t.parquet", {"label": pl.UInt32})
    assert table.schema == {"label": pl.UInt32, "more": pl.String}


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", pl.DataFrame({"image_id": ["a"]}))
    with pytest.raises(LandmarksError, match="lacks the column split; received image_id"):
        read_table(tmp_path / "t.parquet", {"image_id": pl.String, "split": pl.String})


def test_a_damaged_table_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(LandmarksError, match="cannot be read as parquet") as caught:
        read_table(tmp_path / "t.parquet")
    assert "\n" not in str(caught.value)
    with pytest.raises(LandmarksError, match="there is no table"):
        read_table(tmp_path / "none.parquet")


CELLS = st.text(st.sampled_from(list("=+-@\t\r'\"a1,\n;")) | st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(CELLS, min_size=1, max_size=5))
def test_no_cell_of_a_csv_is_a_formula_and_what_was_written_comes_back(cells: list[str]) -> None:
    text = csv_text(pl.DataFrame({"name": cells, "number": [-1.5] * len(cells)}))
    read = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert not any(row[0].startswith(("=", "+", "-", "@", "\t", "\r")) for row in read)
    assert all(row[1] == "-1.5" for row in read)
    table = pl.DataFrame({"name": [row[0] for row in read]}, schema={"name": pl.String})
    assert unescaped(table)["name"].to_list() == cells


def test_a_written_address_holds_no_password(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", pl.DataFrame({"id": ["a"]}), mirror="http://me:s3c/ret@host/x")
    assert b"s3c" not in (tmp_path / "t.parquet").read_bytes()


@pytest.mark.parametrize("kind", ["list", "text"])
def test_values_of_a_wrong_kind_are_one_line(kind: str, tmp_path: Path) -> None:
    value = [[1]] if kind == "list" else ["many"]
    write_table(tmp_path / "t.parquet", pl.DataFrame({"label": value}))
    with pytest.raises(LandmarksError, match=r"t\.parquet"):
        read_table(tmp_path / "t.parquet", {"label": pl.UInt32})


def test_a_table_cut_at_any_place_is_one_line(tmp_path: Path) -> None:
    write_table(tmp_path / "whole.parquet", pl.DataFrame({"id": [f"{n:016x}" for n in range(200)]}))
    whole = (tmp_path / "whole.parquet").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.parquet").write_bytes(whole[:length])
        with pytest.raises(LandmarksError):
            read_table(tmp_path / "cut.parquet", {"id": pl.String})


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="is a folder, and no table"):
        read_table(tmp_path)


def test_a_csv_of_other_columns_is_not_taken_for_the_one_to_write(tmp_path: Path) -> None:
    columns = ("image_id", "name")
    refuse_other_csv(tmp_path / "new.csv", columns)
    for name, content in {
        "a.csv": "image_id,name\n1,x\n",
        "b.txt": '\ufeff"image_id";"name"\n',
        "empty.csv": "",
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        refuse_other_csv(tmp_path / name, columns)
    (tmp_path / "train.csv").write_text("id,url,landmark_id\n")
    message = (
        "train.csv is there already and is another table; received columns id, url, landmark_id; expected image_id, "
    )
    with pytest.raises(UsageError, match=message):
        refuse_other_csv(tmp_path / "train.csv", columns)
    (tmp_path / "notes.txt").write_bytes(b"\xffmine\n")
    with pytest.raises(UsageError, match="another table"):
        refuse_other_csv(tmp_path / "notes.txt", columns)


# ── Arrays ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.permutations(range(9)), st.integers(1, 9))
def test_rows_lie_where_they_belong_in_whatever_order_they_come(order: list[int], each: int) -> None:
    import tempfile

    wanted = np.arange(9 * 6, dtype=np.float16).reshape(9, 2, 3)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "a.npy"
        with array_writer(path, np.float16, (9, 2, 3)) as write:
            for first in range(0, 9, each):
                rows = np.array(order[first : first + each], np.int64)
                write(rows, wanted[rows])
        ours = path.read_bytes()
        np.save(path, wanted)
        assert ours == path.read_bytes()
        assert np.array_equal(np.load(path), wanted)


def test_rows_that_never_came_hold_zeros_and_values_of_another_shape_are_refused(tmp_path: Path) -> None:
    with array_writer(tmp_path / "a.npy", np.uint8, (4, 2)) as write:
        write(np.array([2]), np.array([[7, 8]]))
        write(np.array([], np.int64), np.zeros((0, 2)))
        with pytest.raises(ValueError, match="rows"):
            write(np.array([1]), np.array([[1, 2, 3]]))
    assert open_array(tmp_path / "a.npy").tolist() == [[0, 0], [0, 0], [7, 8], [0, 0]]


class _NoMap(mmap.mmap):
    """A disk that maps nothing, as FUSE answers (numpy#9894)."""

    refused: tuple[int, ...] = ()

    def __new__(cls, *given: Any, **more: Any) -> Any:
        if more.get("access") in cls.refused:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return super().__new__(cls, *given, **more)


def test_an_empty_file_is_no_array(tmp_path: Path) -> None:
    (tmp_path / "a.npy").touch()
    with pytest.raises(ValueError, match="it is empty"):
        open_array(tmp_path / "a.npy")


@pytest.mark.parametrize("refused", [(), (mmap.ACCESS_READ,), (mmap.ACCESS_READ, mmap.ACCESS_COPY)])
def test_what_a_disk_cannot_map_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: tuple[int, ...]
) -> None:
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    _NoMap.refused = refused
    monkeypatch.setattr(mmap, "mmap", _NoMap)
    array = open_array(tmp_path / "a.npy")
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert isinstance(array, np.memmap) == (mmap.ACCESS_COPY not in refused)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


@pytest.mark.linux
def test_a_disk_that_fills_up_under_an_array_is_an_error_and_no_signal(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from landmarks.support.tables import array_writer\n"
        "from landmarks.support.errors import LandmarksError\n"
        "from landmarks.support.files import written_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "path = Path(sys.argv[1])\n"
        "try:\n"
        "    with written_whole(path) as aside, array_writer(aside, np.uint8, (1000, 1000)) as write:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "        write(np.arange(1000), np.ones((1000, 1000), np.uint8))\n"
        "except LandmarksError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.npy")], capture_output=True, text=True, check=False
    )
    assert done.returncode != -signal.SIGBUS
    assert "a.npy could not be written (File too large)" in done.stdout
    assert list(tmp_path.iterdir()) == []
