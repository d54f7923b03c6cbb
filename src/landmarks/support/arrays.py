"""Arrays in `.npy` files, written row by row and mapped into memory if possible."""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from landmarks.support.disk import UNSUPPORTED

WriteRows = Callable[[NDArray[np.int64], NDArray[Any]], None]
"""`write(rows, values)` writes one of `values` to each of `rows`; rows that are never written hold zeros."""

_CANNOT_MAP = (errno.ENODEV, *UNSUPPORTED)
"""Errors of disks whose files cannot be mapped, or not shared between processes."""


@contextlib.contextmanager
def array_writer(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> Iterator[WriteRows]:
    """Create a `.npy` file of `shape` and yield a function that writes its rows.

    The file is not mapped: if the disk becomes full under a mapped file, a signal ends the process without a message.
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
            for end in ends if len(rows) else ():  # consecutive rows are written at once
                file.seek(start + row_bytes * int(rows[first]))
                file.write(values[first:end].tobytes())
                first = end
            file.flush()

        yield write


def open_array(path: Path) -> NDArray[Any]:
    """Map a `.npy` file for reading; if the disk cannot, map it copy-on-write, or else read all of it."""
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
