"""The loader: images of a dataset, in a given order, as batches of images a network can take.

A worker reads an image's bytes, decodes them at the smallest scale that is enough, crops and resizes (`readers.py`);
what is left (colours, mirroring, normalisation) is one step for the whole batch on the device, see `augmentation`. On a
processor the workers are threads; beside a graphics processor they are threads that wait for processes. Nothing is
copied to a worker but the rows it reads, and the manifest stands in memory once. What a batch holds depends on the
order, the seed, the epoch and the images' ids, never on which worker was faster.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from landmarks.dataset.manifest import NO_LABEL, Dataset
from landmarks.models.preprocessing import Preprocessing
from landmarks.support.seeds import generator
from landmarks.support.systems import usable_processors
from landmarks.training.augmentation import EpochAugmentation, Look, augmented, draw, to_device
from landmarks.training.readers import COLUMNS, Piece, Reader, Readers

BATCHES_AHEAD = 3
"""Batches that are being read while one is used: enough to hide a slow image, few enough to stay small."""

COPIERS = 4
"""Threads that copy decoded images: more are slower."""

BLOCK = 1024
"""Images whose crops and colours are drawn at once."""

PIECE = 8
"""Images that another process is asked for at once: to ask costs something."""

PIECES = 4
"""Pieces of a batch per worker: few hand-overs, and no worker that waits long for the slowest."""


@dataclass(frozen=True)
class Batch:
    """Some images: `ids` (N,), `pixels` uint8 (N, 3, S, S) in channels-last memory, `labels` int64 (N,)."""

    ids: list[str]
    pixels: torch.Tensor
    labels: torch.Tensor
    look: Look | None = None  # what training does to the pixels on its device; None: nothing

    def part(self, start: int, end: int) -> Batch:
        """Return images `start` to `end` of it."""
        look = None if self.look is None else self.look.part(start, end)
        return Batch(self.ids[start:end], self.pixels[start:end], self.labels[start:end], look)

    def moved(self, device: torch.device) -> Batch:
        """Return it on a graphics processor, copied beside whatever that computes."""
        look = None if self.look is None else self.look.moved(device)
        return Batch(self.ids, to_device(self.pixels, device), to_device(self.labels, device), look)


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
    """Yield `images` (rows of `dataset.split(...)`) in their order, `batch_size` at a time, the last batch smaller.

    With `steps` a batch holds the rows that each of them names, perhaps none. `workers` are so many threads, or
    processes that were started before. Without `augment` an image is what evaluation sees (shorter side resized, centre
    cropped); with it, the draw of (seed, epoch, id). `decoded` (P, R, R, 3) holds
    `images` decoded already: its rows are the batch's pixels, and their crops are drawn in its look. `stretched` asks
    for whole images, made square. Raises `LandmarksError` that names an image which cannot be read.
    """
    reader, readers = Reader(dataset, preprocessing), workers if isinstance(workers, Readers) else None
    threads = workers.count if isinstance(workers, Readers) else workers or default_workers()
    threads = threads if decoded is None else min(threads, COPIERS)
    size, images = preprocessing.image_size, images.select(*COLUMNS, "label")
    order = None if steps is None else joined(steps)
    count = len(images) if order is None else len(order)
    bounds = list(_bounds(count, batch_size if steps is None else [len(step) for step in steps]))
    ahead = BATCHES_AHEAD
    if readers is not None and count:
        ahead = max(ahead, math.ceil(2 * PIECE * threads * len(bounds) / count))
    pending: deque[tuple[Batch, list[Future[None]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="images", initializer=_compute_alone) as pool:

        def begin(block: _Block, start: int, end: int) -> None:
            part = slice(start - block.start, end - block.start)
            pixels = _empty(end - start, size if decoded is None else decoded.shape[1])
            load: Callable[[int, int], None]
            if decoded is None:
                pieces = threads * PIECES if readers is None else math.ceil((end - start) / PIECE)
                load = block.reading(part, readers, reader, pixels.numpy())
            else:
                pieces, load = threads, _Mapped(decoded, block.places[part], pixels.numpy()).load
            look = None if block.look is None else block.look.part(part.start, part.stop)
            batch = Batch(block.ids[part], pixels.permute(0, 3, 1, 2), block.labels[part].clone(), look)
            edges = np.linspace(0, end - start, min(end - start, pieces) + 1).astype(int).tolist()
            pending.append((batch, [pool.submit(load, *bounds) for bounds in pairwise(edges)]))

        try:
            for some in _blocks(bounds):
                places = np.arange(some[0][0], some[-1][1])
                rows = images[some[0][0] : some[-1][1]] if order is None else images[order[places]]
                block = _Block.of(rows, places if order is None else order[places], some[0][0])
                if augment is not None:
                    block = block.drawn(augment, size, crops=decoded is not None)
                elif stretched:
                    block = replace(block, boxes=np.tile((0.0, 0.0, 1.0, 1.0), (len(rows), 1)))
                for start, end in some:
                    begin(block, start, end)
                    if len(pending) > ahead:
                        yield _finished(*pending.popleft())
            while pending:
                yield _finished(*pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _compute_alone() -> None:
    """Let the thread that calls this resize by itself.

    PyTorch would start a team of threads for each that reads. These are more than there are cores, and OpenMP then has
    the team that trains sleep at every turn, where it would spin.
    """
    torch.get_num_threads()  # sets their number when a thread first asks, and would undo what follows
    _thread_pools().limit(limits=1, user_api="openmp")


@functools.cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


@dataclass(frozen=True)
class _Block:
    """What is known of some batches' images before any is read, for all at once: for each alone it costs much more."""

    start: int  # of its first image, among all
    ids: list[str]
    rows: list[tuple[Any, ...]]  # of `COLUMNS`
    places: NDArray[np.int64]  # of its images among the decoded ones
    labels: torch.Tensor
    sides: tuple[NDArray[np.uint32], NDArray[np.uint32]]
    boxes: NDArray[np.float64] | None = None  # (N, 4), of the crops; None: the evaluation image
    look: Look | None = None

    @classmethod
    def of(cls, rows: pl.DataFrame, places: NDArray[np.int64], start: int) -> _Block:
        """Return the block of `rows`, which nothing is drawn for."""
        labels = torch.from_numpy(rows["label"].cast(pl.Int64).fill_null(NO_LABEL).to_numpy().copy())
        return cls(start, rows["image_id"].to_list(), rows.select(COLUMNS).rows(), places, labels, sides_of(rows))

    def drawn(self, augment: EpochAugmentation, size: int, *, crops: bool) -> _Block:
        """Return it with boxes and look as `augment` draws them; with `crops` the boxes are left to the device."""
        drawn = draw(augment, *self.sides, self.ids)
        boxes = torch.from_numpy(drawn.boxes.astype(np.float32)) if crops else None
        look = Look(torch.from_numpy(drawn.factors), torch.from_numpy(drawn.flips), boxes, size)
        return replace(self, boxes=drawn.boxes, look=look)

    def reading(
        self, part: slice, readers: Readers | None, reader: Reader, pixels: NDArray[np.uint8]
    ) -> Callable[[int, int], None]:
        """Return what reads images `start` to `end` of a `part` of it into `pixels` (N, S, S, 3), in any thread.

        It raises `LandmarksError` that names an image which cannot be read.
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
    """Yield the bounds of batches, those of about `BLOCK` images at a time."""
    some: list[tuple[int, int]] = []
    for start, end in bounds:
        some.append((start, end))
        if end - some[0][0] >= BLOCK:
            yield some
            some = []
    if some:
        yield some


def _empty(count: int, side: int) -> torch.Tensor:
    """Return room for uint8 images (N, S, S, 3), in memory that a graphics processor, where there is one, can fetch."""
    return torch.empty((count, side, side, 3), dtype=torch.uint8, pin_memory=torch.cuda.is_available())


def sides_of(images: pl.DataFrame) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return the widths (N,) and heights (N,) of images in pixels."""
    return images["width"].to_numpy(), images["height"].to_numpy()


@dataclass(frozen=True)
class _Mapped:
    """The images of one batch that are decoded already, and where they go."""

    decoded: NDArray[np.uint8]  # (P, R, R, 3)
    places: NDArray[np.int64]  # (N,), of them
    pixels: NDArray[np.uint8]  # (N, R, R, 3)

    def load(self, start: int, end: int) -> None:
        """Copy images `start` to `end`, which may read them from the disk."""
        np.take(self.decoded, self.places[start:end], axis=0, out=self.pixels[start:end], mode="clip")  # unbuffered


def _bounds(count: int, batch_size: int | Sequence[int]) -> Iterator[tuple[int, int]]:
    if isinstance(batch_size, int):
        yield from ((start, min(start + batch_size, count)) for start in range(0, count, batch_size))
    else:
        yield from pairwise(accumulate(batch_size, initial=0))


def _finished(batch: Batch, work: list[Future[None]]) -> Batch:
    for future in work:
        future.result()
    return batch


def default_workers() -> int:
    """One thread per core that this process may use, at most 16: decoding is quick beside training."""
    return min(16, usable_processors())


def normalised(
    pixels: torch.Tensor, preprocessing: Preprocessing, device: torch.device | str | None = None
) -> torch.Tensor:
    """Return uint8 images (N, 3, S, S) as a network takes them: on `device`, float32, by mean and deviation."""
    pixels = pixels.to(device, non_blocking=True)
    mean, std = (_levels(shares, pixels.device) for shares in (preprocessing.mean, preprocessing.std))
    return pixels.float().sub_(mean).div_(std)


def as_input(batch: Batch, preprocessing: Preprocessing, device: torch.device | str | None = None) -> torch.Tensor:
    """Return the images of `batch` as a network takes them: on `device`, with the look that was drawn for each."""
    pixels = batch.pixels.to(device, non_blocking=True)
    return normalised(pixels if batch.look is None else augmented(pixels, batch.look), preprocessing)


@functools.cache  # a copy to a graphics processor would wait for it
def _levels(shares: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    return torch.tensor(shares, device=device).view(1, 3, 1, 1) * 255


def order_of(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order in which an epoch sees `count` images: the same on every machine, for any workers."""
    return generator(seed, epoch, "order").permutation(count)


def shares(order: NDArray[np.int64], batch_size: int, rank: int = 0, processes: int = 1) -> list[NDArray[np.int64]]:
    """Return, per step, which images process `rank` of `processes` sees: each is seen once, by one process.

    An epoch has as few steps as `batch_size` allows, of equal size but for one image, so that no step is tiny; a
    step's images are divided in the same way, and a process may have none.
    """
    steps = max(1, math.ceil(len(order) / batch_size))
    return [np.array_split(step, processes)[rank] for step in np.array_split(order, steps)]


def joined(steps: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the images of all `steps` in one array: an empty one when no step is left."""
    return np.concatenate([np.empty(0, dtype=np.int64), *steps])
