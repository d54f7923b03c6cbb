"""Batches on the device before they are needed: loaded and copied beside what it computes, by a thread of its own."""

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

MADE_AHEAD = 2
"""Batches that lie on a graphics processor while another is used."""

SECONDS_BETWEEN_LOOKS = 0.1
"""How soon a thread that works ahead sees that nobody wants more."""


def on_device(loaded: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches that lie on `device`; on CUDA a thread of its own loads and copies the next ones meanwhile."""
    if device.type != "cuda":
        for batch in loaded:
            yield replace(batch, pixels=batch.pixels.to(device), labels=batch.labels.to(device))
        return
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def moved(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(beside):
            return batch.moved(device), beside.record_event()

    for batch, copied in made_ahead(loaded, moved):
        now = torch.cuda.current_stream(device)
        now.wait_event(copied)
        look = () if batch.look is None else (batch.look.factors, batch.look.flips, batch.look.boxes)
        for tensor in (batch.pixels, batch.labels, *look):
            if tensor is not None:
                tensor.record_stream(now)  # its memory is kept until what is computed with it is done
        yield batch


def made_ahead(loaded: Iterator[Batch], make: Callable[[Batch], T]) -> Iterator[T]:
    """Yield `make(batch)` of each batch, loaded and made by a thread of its own, `MADE_AHEAD` of them beforehand.

    What it raises is raised here. When the iteration ends early, so do the thread and `loaded`.
    """
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(MADE_AHEAD)
    over = threading.Event()

    def put(result: T | None, error: BaseException | None = None) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                made.put((result, error), timeout=SECONDS_BETWEEN_LOOKS)
                return

    def work() -> None:
        error = None
        try:
            with contextlib.closing(loaded):  # type: ignore[type-var]
                for batch in loaded:
                    put(make(batch))
                    if over.is_set():
                        break
        except BaseException as raised:
            error = raised
        put(None, error)

    thread = threading.Thread(target=work, name="ahead")
    thread.start()
    try:
        while True:
            result, error = made.get()
            if error is not None:
                raise error
            if result is None:
                return
            yield result
    finally:
        over.set()
        thread.join()
