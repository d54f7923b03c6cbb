"""Reading images for the loader: a piece of a batch at a time, in this process or in reader processes.

A piece is read, decoded, cropped and resized. `Reader.load` does it in the calling thread. With a GPU, `Readers` hand
the pieces to processes instead, because decoding threads keep taking Python's lock from the thread that feeds the GPU.
The processes are started with a command line, not forked, so the main script is never imported again. Requests and
answers go through pipes: the processes end with the main process, however it ends, and need no shared memory, which
containers are short of.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pickle
import queue
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from landmarks.dataset.images import ImageError, decode, resize
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.shards import ImageReader
from landmarks.models.preprocessing import Preprocessing, evaluation_image
from landmarks.support.errors import LandmarksError

COLUMNS = ("image_id", "shard", "offset", "length", "width", "height")
"""Columns of the manifest that reading an image needs."""

PIPE_BYTES = 1 << 20
"""Requested capacity of a pipe: at least one image, so that the sides do not wait for each other every 64 KiB."""

_HEADER = struct.Struct("<?Q")
"""Header of an answer: whether it is pixels (otherwise an error message), and its length in bytes."""


@dataclass(frozen=True)
class Piece:
    """Some images of a batch: where each is stored, and how it is cropped."""

    rows: list[tuple[Any, ...]]  # columns `COLUMNS`
    boxes: NDArray[np.float64] | None  # (N, 4), the crops; None: the evaluation image


@dataclass(frozen=True)
class Reader:
    """Reads pieces of one dataset, from any number of threads."""

    dataset: Dataset
    preprocessing: Preprocessing

    @cached_property
    def _images(self) -> ImageReader:
        return ImageReader(self.dataset)

    @cached_property
    def pickled(self) -> bytes:
        """This reader for another process, without the tables of images and labels, which may be large."""
        folder, images, labels = self.dataset.folder.absolute(), self.dataset.images[:0], self.dataset.labels[:0]
        dataset = replace(self.dataset, folder=folder, images=images, labels=labels, splits=None, corrections=images)
        return pickle.dumps(Reader(dataset, self.preprocessing), protocol=pickle.HIGHEST_PROTOCOL)

    def load(self, piece: Piece, pixels: NDArray[np.uint8]) -> None:
        """Write the images of `piece` to `pixels` (N, S, S, 3).

        Raises `LandmarksError` that names an image that cannot be read.
        """
        contents = self._images.read_all([row[1:4] for row in piece.rows])
        for number, (image_id, shard, _, _, width, height) in enumerate(piece.rows):
            try:
                data = next(contents)
                if piece.boxes is None:
                    pixels[number] = evaluation_image(data, self.preprocessing)
                else:
                    box = piece.boxes[number].tolist()
                    pixels[number] = training_image(data, width, height, self.preprocessing, box)
            except (ImageError, OSError) as error:
                raise LandmarksError(
                    f"image {image_id} in {self.dataset.place_of(shard)} cannot be read ({error})",
                    way_out="fetch or import the dataset again",
                ) from error


def training_image(
    data: bytes, width: int, height: int, preprocessing: Preprocessing, box: Sequence[float]
) -> NDArray[np.uint8]:
    """Return the crop (S, S, 3) that training sees, from an encoded image of `width` × `height` pixels.

    `box` is (left, top, right, bottom), as fractions of width and height. A JPEG is decoded at the smallest scale at
    which the crop's shorter side still has as many pixels as the network needs; the edges of the crop are then rounded
    to whole pixels.
    """
    left, top, right, bottom = box
    size = preprocessing.image_size
    crop = min((right - left) * width, (bottom - top) * height)
    decoded = decode(data, min_side=math.ceil(size * min(width, height) / crop))
    height, width = decoded.shape[:2]
    left, top = min(round(left * width), width - 1), min(round(top * height), height - 1)
    right, bottom = max(round(right * width), left + 1), max(round(bottom * height), top + 1)
    return resized_crop(decoded[top:bottom, left:right], size, preprocessing.interpolation)


def resized_crop(crop: NDArray[np.uint8], size: int, interpolation: str) -> NDArray[np.uint8]:
    """Resize a crop (H, W, 3) to (S, S, 3) with antialiasing.

    PyTorch's integer kernels for bilinear and bicubic agree with Pillow within two grey levels and take a third of its
    time; other interpolations are Pillow's.
    """
    if interpolation not in ("bilinear", "bicubic"):
        return resize(crop, size, size, interpolation=interpolation)
    image = torch.from_numpy(crop).permute(2, 0, 1)[None]
    resized = F.interpolate(image, size=(size, size), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


# ── Reader processes ────────────────────────────────────────────────────────────────────────────────────────────────


class Readers:
    """Processes that read pieces, one at a time each; any thread may call `load`."""

    def __init__(self, count: int) -> None:
        """Start `count` processes, which are ready some seconds later; `load` waits for that."""
        self.count = count
        self._all = [_start() for _ in range(count)]
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for process in self._all:
            self._free.put(process)

    def load(self, reader: Reader, piece: Piece, pixels: NDArray[np.uint8]) -> None:
        """Do what `Reader.load` does in a process; raise `LandmarksError` also when that process has ended."""
        process = self._free.get()
        try:
            _send_request(process, (reader.pickled, piece, pixels.shape))
            _receive_answer(process, pixels)
        except (OSError, EOFError) as error:
            raise LandmarksError(
                f"a process that reads images has ended (exit code {process.wait()})",
                way_out="run the same command again to go on; --workers with a smaller number needs less memory",
            ) from error
        finally:
            self._free.put(process)

    def close(self) -> None:
        """End the processes and wait for them."""
        for process in self._all:
            with contextlib.suppress(OSError):
                _pipe(process.stdin).close()
        for process in self._all:
            process.wait()
            _pipe(process.stdout).close()


def _start() -> subprocess.Popen[bytes]:
    serve = "from landmarks.training.readers import serve_pieces; serve_pieces()"
    code = f"import sys; sys.path[:] = {sys.path!r}; {serve}"
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **one_thread, "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,  # so that Ctrl-C reaches the main process only
        bufsize=0,
    )
    _widen(_pipe(process.stdout))
    return process


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # `_start` opens both
    return pipe


def _widen(pipe: IO[bytes]) -> None:
    """Set the capacity of a pipe to `PIPE_BYTES`, if the system allows it."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _send_request(process: subprocess.Popen[bytes], request: tuple[bytes, Piece, tuple[int, ...]]) -> None:
    pipe = _pipe(process.stdin)
    unsent = memoryview(pickle.dumps(request, protocol=pickle.HIGHEST_PROTOCOL))
    while unsent:
        unsent = unsent[pipe.write(unsent) :]


def _receive_answer(process: subprocess.Popen[bytes], pixels: NDArray[np.uint8]) -> None:
    pipe = _pipe(process.stdout)
    succeeded, size = _HEADER.unpack(_fill(memoryview(bytearray(_HEADER.size)), pipe))
    if not succeeded:
        raise LandmarksError(bytes(_fill(memoryview(bytearray(size)), pipe)).decode())
    _fill(pixels.data.cast("B"), pipe)


def _fill(buffer: memoryview, pipe: IO[bytes]) -> memoryview:
    """Fill `buffer` from `pipe` and return it; raise `EOFError` when the pipe ends first."""
    done = 0
    while done < len(buffer):
        read: int = pipe.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not read:
            raise EOFError
        done += read
    return buffer


def serve_pieces() -> None:
    """Answer requests from standard input until it ends; the main loop of a process of `Readers`."""
    torch.set_num_threads(1)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # so that nothing printed mixes with the answers
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pickled, piece, shape = pickle.load(requests)
            succeeded, content = _read(_unpickled(pickled), piece, shape)
            answers.write(_HEADER.pack(succeeded, len(content)))
            answers.write(content)
            answers.flush()


@functools.lru_cache(maxsize=2)  # the readers of training and validation, which keep their files open
def _unpickled(pickled: bytes) -> Reader:
    reader: Reader = pickle.loads(pickled)
    return reader


def _read(reader: Reader, piece: Piece, shape: tuple[int, ...]) -> tuple[bool, bytes | memoryview]:
    pixels = np.empty(shape, dtype=np.uint8)
    try:
        reader.load(piece, pixels)
    except LandmarksError as error:
        return False, str(error).encode()
    return True, pixels.data.cast("B")
