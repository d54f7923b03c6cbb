from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.support.arrays import array_writer, open_array


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
        "from landmarks.support.arrays import array_writer\n"
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
