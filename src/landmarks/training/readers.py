"""Reading images for the loader: a piece of a batch at a time, in this process or in processes beside it.

A piece is read, decoded, cropped and resized; `Reader.load` does it in the thread that calls it. Beside a graphics
processor `Readers` hand the pieces to processes of their own instead, because a thread that decodes keeps taking
Python's lock from the one that feeds the card. They are started by their command line, not forked: nothing of the
main process is imported again, whatever its script looks like; and they are asked and answer through pipes, so they end
when the main process does, however it ends, and need no shared memory, which containers are short of.
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
"""What reading an image needs of the manifest."""

PIPE_BYTES = 1 << 20
"""What a pipe is asked to hold: an image or more, so that neither side waits for the other at every 64 KiB."""

_HEADER = struct.Struct("<?Q")
"""Before an answer: whether it is pixels (else an error in words), and its bytes."""


@dataclass(frozen=True)
class Piece:
    """Some images of a batch: where each is, and which box of it is seen."""

    rows: list[tuple[Any, ...]]  # of `COLUMNS`
    boxes: NDArray[np.float64] | None  # (N, 4), of the crops; None: the evaluation image


@dataclass(frozen=True)
class Reader:
    """Reads pieces of one dataset, in any number of threads."""

    dataset: Dataset
    preprocessing: Preprocessing

    @cached_property
    def _images(self) -> ImageReader:
        return ImageReader(self.dataset)

    @cached_property
    def told(self) -> bytes:
        """What another process needs to read the same: neither images nor labels, however many there are."""
        folder, none, of = self.dataset.folder.absolute(), self.dataset.images[:0], self.dataset.labels[:0]
        dataset = replace(self.dataset, folder=folder, images=none, labels=of, splits=None, corrections=none)
        return pickle.dumps(Reader(dataset, self.preprocessing), protocol=pickle.HIGHEST_PROTOCOL)

    def load(self, piece: Piece, pixels: NDArray[np.uint8]) -> None:
        """Write the images of `piece` to `pixels` (N, S, S, 3); raise `LandmarksError` that names one which cannot be
        read."""
        everything = self._images.read_all([row[1:4] for row in piece.rows])
        for place, (identity, shard, _, _, width, height) in enumerate(piece.rows):
            try:
                data = next(everything)
                if piece.boxes is None:
                    pixels[place] = evaluation_image(data, self.preprocessing)
                else:
                    box = piece.boxes[place].tolist()
                    pixels[place] = training_image(data, width, height, self.preprocessing, box)
            except (ImageError, OSError) as error:
                raise LandmarksError(
                    f"image {identity} in {self.dataset.place_of(shard)} cannot be read ({error})",
                    way_out="fetch or import the dataset again",
                ) from error


def training_image(
    data: bytes, width: int, height: int, preprocessing: Preprocessing, box: Sequence[float]
) -> NDArray[np.uint8]:
    """Return the crop (S, S, 3) of an image's bytes that training sees.

    `box` is left, top, right, bottom in shares of `width` and `height`. A JPEG is decoded at the smallest scale at
    which the crop's shorter side still has the pixels the network needs, and the crop's edges are then rounded to
    whole ones.
    """
    left, top, right, bottom = box
    size = preprocessing.image_size
    crop = min((right - left) * width, (bottom - top) * height)
    decoded = decode(data, min_side=math.ceil(size * min(width, height) / crop))
    height, width = decoded.shape[:2]
    left, top = min(round(left * width), width - 1), min(round(top * height), height - 1)
    right, bottom = max(round(right * width), left + 1), max(round(bottom * height), top + 1)
    return resized_crop(decoded[top:bottom, left:right], size, preprocessing.interpolation)


def resized_crop(pixels_of_one: NDArray[np.uint8], size: int, interpolation: str) -> NDArray[np.uint8]:
    """Resize (H, W, 3) to (S, S, 3), antialiased, as Pillow does within two grey levels, in a third of its time.

    PyTorch's kernels for whole numbers know bilinear and bicubic; anything else is Pillow's.
    """
    if interpolation not in ("bilinear", "bicubic"):
        return resize(pixels_of_one, size, size, interpolation=interpolation)
    image = torch.from_numpy(pixels_of_one).permute(2, 0, 1)[None]
    resized = F.interpolate(image, size=(size, size), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


# ── Processes beside this one ───────────────────────────────────────────────────────────────────────────────────────


class Readers:
    """Processes that read pieces, each one at a time; any thread may ask for one."""

    def __init__(self, count: int) -> None:
        """Start `count` of them; they are ready some seconds later, and asked before that they are waited for."""
        self.count = count
        self._all = [_start() for _ in range(count)]
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for process in self._all:
            self._free.put(process)

    def load(self, reader: Reader, piece: Piece, pixels: NDArray[np.uint8]) -> None:
        """Do what `Reader.load` does, in one of the processes; raise `LandmarksError` also when that has ended."""
        process = self._free.get()
        try:
            _ask(process, (reader.told, piece, pixels.shape))
            _answer(process, pixels)
        except (OSError, EOFError) as error:
            raise LandmarksError(
                f"a process that reads images has ended (exit code {process.wait()})",
                way_out="run the same command again to go on; --workers with a smaller number needs less memory",
            ) from error
        finally:
            self._free.put(process)

    def close(self) -> None:
        """End them, and wait until they have."""
        for process in self._all:
            with contextlib.suppress(OSError):
                _pipe(process.stdin).close()
        for process in self._all:
            process.wait()
            _pipe(process.stdout).close()


def _start() -> subprocess.Popen[bytes]:
    code = f"import sys; sys.path[:] = {sys.path!r}; from landmarks.training import readers; readers.serve_pieces()"
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **one_thread, "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,  # Ctrl-C is for the main process, whose end is this one's
        bufsize=0,
    )
    _widen(_pipe(process.stdout))
    return process


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # both were asked for
    return pipe


def _widen(pipe: IO[bytes]) -> None:
    """Let a pipe hold `PIPE_BYTES`, where the system can and allows it."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _ask(process: subprocess.Popen[bytes], request: tuple[bytes, Piece, tuple[int, ...]]) -> None:
    pipe = _pipe(process.stdin)
    unsent = memoryview(pickle.dumps(request, protocol=pickle.HIGHEST_PROTOCOL))
    while unsent:
        unsent = unsent[pipe.write(unsent) :]


def _answer(process: subprocess.Popen[bytes], pixels: NDArray[np.uint8]) -> None:
    pipe = _pipe(process.stdout)
    fine, size = _HEADER.unpack(_exactly(pipe, memoryview(bytearray(_HEADER.size))))
    if not fine:
        raise LandmarksError(bytes(_exactly(pipe, memoryview(bytearray(size)))).decode())
    _exactly(pipe, pixels.data.cast("B"))


def _exactly(pipe: IO[bytes], buffer: memoryview) -> memoryview:
    """Fill `buffer` from `pipe` and return it; raise EOFError when that ends before."""
    done = 0
    while done < len(buffer):
        read: int = pipe.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not read:
            raise EOFError
        done += read
    return buffer


def serve_pieces() -> None:
    """Read the pieces that are asked for on standard input, until it ends: what a process of `Readers` does."""
    torch.set_num_threads(1)
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing that is printed mixes with the answers
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            told, piece, shape = pickle.load(asked)
            _tell(answers, *_read(_reader_of(told), piece, shape))


@functools.lru_cache(maxsize=2)  # training's and validation's; each keeps its files open
def _reader_of(told: bytes) -> Reader:
    reader: Reader = pickle.loads(told)
    return reader


def _read(reader: Reader, piece: Piece, shape: tuple[int, ...]) -> tuple[bool, bytes | memoryview]:
    pixels = np.empty(shape, dtype=np.uint8)
    try:
        reader.load(piece, pixels)
    except LandmarksError as error:
        return False, str(error).encode()
    return True, pixels.data.cast("B")


def _tell(answers: IO[bytes], fine: bool, content: bytes | memoryview) -> None:
    answers.write(_HEADER.pack(fine, len(content)))
    answers.write(content)
    answers.flush()
