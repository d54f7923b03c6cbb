"""Prefetching: a thread loads batches and copies them to the GPU while the GPU computes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch

from landmarks.training.loader import Batch

T = TypeVar("T")

BATCHES_AHEAD = 2
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
    """Yield `transform(batch)` of each batch, loaded and transformed by a thread, `BATCHES_AHEAD` in advance.

    An exception of the thread is raised here. When the iteration ends early, so do the thread and `loaded`.
    """
    results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(BATCHES_AHEAD)
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
