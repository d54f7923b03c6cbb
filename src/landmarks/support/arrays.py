"""Arrays in `.npy` files: written row by row, and mapped into memory where the disk can."""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from landmarks.support.disk import LACKING

WriteRows = Callable[[NDArray[np.int64], NDArray[Any]], None]
"""`write(rows, values)` puts `values` (one for each of `rows`) where they belong; rows never written hold zeros."""

_CANNOT_MAP = (errno.ENODEV, *LACKING)
"""What disks answer whose files cannot be mapped, or not shared."""


@contextlib.contextmanager
def array_writer(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> Iterator[WriteRows]:
    """Begin a `.npy` file of `shape` and give what writes its rows, as a file is written.

    Nothing is mapped: a disk that fills up under a mapped file ends the process by a signal, without a word.
    """
    kind = np.dtype(dtype)
    row_bytes = kind.itemsize * math.prod(shape[1:])
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + row_bytes * shape[0])

        def write(rows: NDArray[np.int64], values: NDArray[Any]) -> None:
            values = np.ascontiguousarray(values, kind)
            if values.shape != (len(rows), *shape[1:]):
                raise ValueError(f"values of shape {values.shape} for {len(rows)} rows of {shape[1:]}")
            ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
            first = 0
            for end in ends if len(rows) else ():  # rows that follow one another are written at once
                file.seek(start + row_bytes * int(rows[first]))
                file.write(values[first:end].tobytes())
                first = end
            file.flush()

        yield write


def mapped(path: Path) -> NDArray[Any]:
    """Map a `.npy` file for reading; where the disk cannot, map a copy of its pages, or read it whole."""
    array: NDArray[Any]
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        if error.errno not in _CANNOT_MAP:
            raise
        try:
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except OSError:
            array = np.load(path, allow_pickle=False)
    array.flags.writeable = False
    return array
