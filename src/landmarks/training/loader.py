"""The loader: images of a dataset, in a given order, as batches on the device that computes.

A worker reads an image's bytes, decodes them at the smallest sufficient scale, crops and resizes (`readers.py`).
Colours, flips and normalisation are applied to the whole batch on the device (`augmentation.py`). On a CPU the workers
are threads; with a GPU they are threads that wait for processes. Workers get only the rows they read: the manifest is
in memory once. A batch depends on the order, the seed, the epoch and the images' ids, never on which worker was faster.
"""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from landmarks.dataset.manifest import NO_LABEL, Dataset
from landmarks.models.preprocessing import Preprocessing
from landmarks.support.seeds import generator
from landmarks.support.systems import usable_processors
from landmarks.training.augmentation import (
    DeviceAugmentation,
    EpochAugmentation,
    augmented,
    copy_to_gpu,
    draw_augmentation,
)
from landmarks.training.readers import COLUMNS, Piece, Reader, Readers

BATCHES_AHEAD = 3
"""Batches read in advance: enough to hide a slow image, few enough to save memory."""

COPIERS = 4
"""Threads that copy already decoded images; more are slower."""

BLOCK = 1024
"""Images whose augmentation is drawn at once."""

PIECE = 8
"""Images per request to a reader process, since each request has a cost."""

PIECES = 4
"""Pieces of a batch per worker thread: few enough to hand over, small enough that no thread waits long."""


@dataclass(frozen=True)
class Batch:
    """N images: `ids`, `pixels` uint8 (N, 3, S, S) in channels-last memory, `labels` int64 (N,)."""

    ids: list[str]
    pixels: torch.Tensor
    labels: torch.Tensor
    augmentation: DeviceAugmentation | None = None  # still to be applied, on the device

    def part(self, start: int, end: int) -> Batch:
        """Return images `start` to `end` of this batch."""
        augmentation = None if self.augmentation is None else self.augmentation.part(start, end)
        return Batch(self.ids[start:end], self.pixels[start:end], self.labels[start:end], augmentation)

    def to_gpu(self, device: torch.device) -> Batch:
        """Return an asynchronous copy on a GPU."""
        augmentation = None if self.augmentation is None else self.augmentation.to_gpu(device)
        return Batch(self.ids, copy_to_gpu(self.pixels, device), copy_to_gpu(self.labels, device), augmentation)


def batches(
    dataset: Dataset,
    images: pl.DataFrame,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 32,
    steps: Sequence[NDArray[np.int64]] | None = None,
    workers: int | Readers | None = None,
    augment: EpochAugmentation | None = None,
    decoded: NDArray[np.uint8] | None = None,
    stretched: bool = False,
) -> Iterator[Batch]:
    """Yield `images` (rows of `dataset.split(...)`) in their order, `batch_size` at a time; the last batch is smaller.

    With `steps`, each batch holds the rows that one of them lists, possibly none. `workers` is a number of threads, or
    running reader processes. Without `augment`, images are as in evaluation: shorter side resized, centre cropped.
    `decoded` (P, R, R, 3) holds `images` already decoded: its rows are the batch's pixels, to be cropped on the device.
    `stretched` yields whole images, resized to a square. Raises `LandmarksError` that names an image that cannot be
    read.
    """
    reader, readers = Reader(dataset, preprocessing), workers if isinstance(workers, Readers) else None
    threads = workers.count if isinstance(workers, Readers) else workers or default_workers()
    threads = threads if decoded is None else min(threads, COPIERS)
    size, images = preprocessing.image_size, images.select(*COLUMNS, "label")
    order = None if steps is None else step_rows(steps)
    count = len(images) if order is None else len(order)
    bounds = list(_bounds(count, batch_size if steps is None else [len(step) for step in steps]))
    ahead = BATCHES_AHEAD
    if readers is not None and count:
        ahead = max(ahead, math.ceil(2 * PIECE * threads * len(bounds) / count))
    pending: deque[tuple[Batch, list[Future[None]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="images", initializer=_use_one_thread) as pool:

        def submit(block: _Block, start: int, end: int) -> None:
            part = slice(start - block.start, end - block.start)
            pixels = _empty(end - start, size if decoded is None else decoded.shape[1])
            load: Callable[[int, int], None]
            if decoded is None:
                pieces = threads * PIECES if readers is None else math.ceil((end - start) / PIECE)
                load = block.load_function(part, readers, reader, pixels.numpy())
            else:
                pieces, load = threads, _Mapped(decoded, block.positions[part], pixels.numpy()).load
            augmentation = None if block.augmentation is None else block.augmentation.part(part.start, part.stop)
            batch = Batch(block.ids[part], pixels.permute(0, 3, 1, 2), block.labels[part].clone(), augmentation)
            edges = np.linspace(0, end - start, min(end - start, pieces) + 1).astype(int).tolist()
            pending.append((batch, [pool.submit(load, *bounds) for bounds in pairwise(edges)]))

        try:
            for block_bounds in _blocks(bounds):
                first, last = block_bounds[0][0], block_bounds[-1][1]
                positions = np.arange(first, last) if order is None else order[first:last]
                rows = images[first:last] if order is None else images[positions]
                block = _Block.of(rows, positions, first)
                if augment is not None:
                    block = block.augmented(augment, size, crops=decoded is not None)
                elif stretched:
                    block = replace(block, boxes=np.tile((0.0, 0.0, 1.0, 1.0), (len(rows), 1)))
                for start, end in block_bounds:
                    submit(block, start, end)
                    if len(pending) > ahead:
                        yield _loaded(*pending.popleft())
            while pending:
                yield _loaded(*pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _use_one_thread() -> None:
    """Let the calling thread resize without further threads.

    PyTorch would start an OpenMP team for each reading thread. With more threads than cores, the team that trains would
    then sleep between its tasks instead of spinning.
    """
    torch.get_num_threads()  # its first call in a thread sets the number of threads, and would undo the limit below
    _thread_pools().limit(limits=1, user_api="openmp")


@functools.cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


@dataclass(frozen=True)
class _Block:
    """The rows, labels and augmentation of several batches, prepared at once because that is much cheaper."""

    start: int  # position of its first image in the order
    ids: list[str]
    rows: list[tuple[Any, ...]]  # columns `COLUMNS`
    positions: NDArray[np.int64]  # positions of its images in `images` and `decoded`
    labels: torch.Tensor
    sides: tuple[NDArray[np.uint32], NDArray[np.uint32]]
    boxes: NDArray[np.float64] | None = None  # (N, 4), the crops; None: the evaluation image
    augmentation: DeviceAugmentation | None = None

    @classmethod
    def of(cls, rows: pl.DataFrame, positions: NDArray[np.int64], start: int) -> _Block:
        """Return the block of `rows`, without augmentation."""
        labels = torch.from_numpy(rows["label"].cast(pl.Int64).fill_null(NO_LABEL).to_numpy().copy())
        return cls(start, rows["image_id"].to_list(), rows.select(COLUMNS).rows(), positions, labels, sides_of(rows))

    def augmented(self, augment: EpochAugmentation, size: int, *, crops: bool) -> _Block:
        """Return this block with the augmentation drawn; with `crops` the device crops too."""
        drawn = draw_augmentation(augment, *self.sides, self.ids)
        boxes = torch.from_numpy(drawn.boxes.astype(np.float32)) if crops else None
        augmentation = DeviceAugmentation(torch.from_numpy(drawn.factors), torch.from_numpy(drawn.flips), boxes, size)
        return replace(self, boxes=drawn.boxes, augmentation=augmentation)

    def load_function(
        self, part: slice, readers: Readers | None, reader: Reader, pixels: NDArray[np.uint8]
    ) -> Callable[[int, int], None]:
        """Return a function that reads images `start` to `end` of a `part` of this block into `pixels` (N, S, S, 3).

        It may be called from any thread, and raises `LandmarksError` that names an image that cannot be read.
        """
        rows, boxes = self.rows[part], None if self.boxes is None else self.boxes[part]

        def load(start: int, end: int) -> None:
            piece = Piece(rows[start:end], None if boxes is None else boxes[start:end])
            if readers is None:
                reader.load(piece, pixels[start:end])
            else:
                readers.load(reader, piece, pixels[start:end])

        return load


def _blocks(bounds: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield `bounds` in lists of about `BLOCK` images each."""
    block: list[tuple[int, int]] = []
    for start, end in bounds:
        block.append((start, end))
        if end - block[0][0] >= BLOCK:
            yield block
            block = []
    if block:
        yield block


def _empty(count: int, side: int) -> torch.Tensor:
    """Return uninitialised uint8 images (N, S, S, 3), in pinned memory if there is a GPU."""
    return torch.empty((count, side, side, 3), dtype=torch.uint8, pin_memory=torch.cuda.is_available())


def sides_of(images: pl.DataFrame) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return the widths (N,) and heights (N,) of images in pixels."""
    return images["width"].to_numpy(), images["height"].to_numpy()


@dataclass(frozen=True)
class _Mapped:
    """The already decoded images of one batch, and the array they are copied to."""

    decoded: NDArray[np.uint8]  # (P, R, R, 3)
    positions: NDArray[np.int64]  # (N,), rows of `decoded`
    pixels: NDArray[np.uint8]  # (N, R, R, 3)

    def load(self, start: int, end: int) -> None:
        """Copy images `start` to `end`; pages that are not in memory are read from disk."""
        np.take(self.decoded, self.positions[start:end], axis=0, out=self.pixels[start:end], mode="clip")  # unbuffered


def _bounds(count: int, batch_size: int | Sequence[int]) -> Iterator[tuple[int, int]]:
    if isinstance(batch_size, int):
        yield from ((start, min(start + batch_size, count)) for start in range(0, count, batch_size))
    else:
        yield from pairwise(accumulate(batch_size, initial=0))


def _loaded(batch: Batch, work: list[Future[None]]) -> Batch:
    for future in work:
        future.result()
    return batch


def default_workers() -> int:
    """Return the default number of threads: one per usable core, at most 16, since decoding is faster than training."""
    return min(16, usable_processors())


def normalised(
    pixels: torch.Tensor, preprocessing: Preprocessing, device: torch.device | str | None = None
) -> torch.Tensor:
    """Return uint8 images (N, 3, S, S) on `device` as float32, normalised by mean and standard deviation."""
    pixels = pixels.to(device, non_blocking=True)
    mean, std = (_levels(fractions, pixels.device) for fractions in (preprocessing.mean, preprocessing.std))
    return pixels.float().sub_(mean).div_(std)


def as_input(batch: Batch, preprocessing: Preprocessing, device: torch.device | str | None = None) -> torch.Tensor:
    """Return the images of `batch` as a network takes them: on `device`, augmented and normalised."""
    pixels = batch.pixels.to(device, non_blocking=True)
    return normalised(pixels if batch.augmentation is None else augmented(pixels, batch.augmentation), preprocessing)


@functools.cache  # copying to a GPU each time would make the processor wait for it
def _levels(fractions: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    return torch.tensor(fractions, device=device).view(1, 3, 1, 1) * 255


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order (count,) of an epoch's images; it depends on `seed` and `epoch` alone."""
    return generator(seed, epoch, "order").permutation(count)


def epoch_steps(
    order: NDArray[np.int64], batch_size: int, rank: int = 0, processes: int = 1
) -> list[NDArray[np.int64]]:
    """Return the images of each step of an epoch that process `rank` of `processes` sees.

    Together the processes see each image once. An epoch has as few steps as `batch_size` allows, all of equal size up
    to one image, so that no step is tiny. The images of a step are divided among the processes in the same way; a
    process may get none.
    """
    steps = max(1, math.ceil(len(order) / batch_size))
    return [np.array_split(step, processes)[rank] for step in np.array_split(order, steps)]


def share_sizes(count: int, processes: int) -> list[int]:
    """Return how many of `count` images or landmarks each process gets: equally many up to one, the first ones more."""
    return [count // processes + (rank < count % processes) for rank in range(processes)]


def step_rows(steps: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the images of all `steps` in one array, which is empty if there are none."""
    return np.concatenate([np.empty(0, dtype=np.int64), *steps])


# ── Prefetching: a thread loads batches and copies them to the GPU while the GPU computes ───────────────────────────


T = TypeVar("T")

COPIED_AHEAD = 2
"""Batches that wait on the GPU while another is used."""

POLL_SECONDS = 0.1
"""How often the prefetching thread checks whether the iteration has ended."""


def on_device(loaded: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches of `loaded` on `device`; on CUDA a thread loads and copies the next ones meanwhile."""
    if device.type != "cuda":
        for batch in loaded:
            yield replace(batch, pixels=batch.pixels.to(device), labels=batch.labels.to(device))
        return
    copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(copy_stream):
            return batch.to_gpu(device), copy_stream.record_event()

    for batch, copied in prefetched(loaded, copy):
        stream = torch.cuda.current_stream(device)
        stream.wait_event(copied)
        drawn = batch.augmentation
        for tensor in (
            batch.pixels,
            batch.labels,
            *(() if drawn is None else (drawn.factors, drawn.flips, drawn.boxes)),
        ):
            if tensor is not None:
                tensor.record_stream(stream)  # keeps its memory until the work of this stream is done
        yield batch


def prefetched(loaded: Iterator[Batch], transform: Callable[[Batch], T]) -> Iterator[T]:
    """Yield `transform(batch)` of each batch, loaded and transformed by a thread, `COPIED_AHEAD` in advance.

    An exception of the thread is raised here. When the iteration ends early, so do the thread and `loaded`.
    """
    results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(COPIED_AHEAD)
    ended = threading.Event()

    def put(result: T | None, error: BaseException | None = None) -> None:
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                results.put((result, error), timeout=POLL_SECONDS)
                return

    def work() -> None:
        error = None
        try:
            with contextlib.closing(loaded):  # type: ignore[type-var]
                for batch in loaded:
                    put(transform(batch))
                    if ended.is_set():
                        break
        except BaseException as raised:
            error = raised
        put(None, error)

    thread = threading.Thread(target=work, name="prefetch")
    thread.start()
    try:
        while True:
            result, error = results.get()
            if error is not None:
                raise error
            if result is None:
                return
            yield result
    finally:
        ended.set()
        thread.join()
