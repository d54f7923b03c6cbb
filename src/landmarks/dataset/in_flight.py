"""Limits on the bytes and pixels in memory: threads wait for their turn, so that more cores do not take more memory."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from landmarks.dataset.images import size_of

MAX_BYTES_READ = 1 << 29
"""Bytes of files that all threads together may have read but not yet decoded."""

MAX_PIXELS_DECODED = 96_000_000
"""Pixels that all threads together may be decoding: about a gigabyte with the copies that resizing needs."""


class Budget:
    """An amount that threads share, in the order of their requests; a request above the limit gets all of it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        """Wait until `amount` is free, and hold it while the block runs."""
        amount, turn = min(amount, self.limit), object()
        with self._changed:
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._used + amount <= self.limit)
                self._used += amount
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


BYTES = Budget(MAX_BYTES_READ)
PIXELS = Budget(MAX_PIXELS_DECODED)


def pixels_decoded(data: bytes, max_side: int | None) -> int:
    """Return the number of pixels in memory while an image is decoded to be shrunk to `max_side`.

    A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 that is no smaller than `max_side`, anything
    else at full size. Raises `ImageError` if its headers show that it is no image, or too large.
    """
    width, height = size_of(data)
    scale = 1
    if max_side is not None and data[:3] == b"\xff\xd8\xff":
        while scale < 8 and max(width, height) >= 2 * scale * max_side:
            scale *= 2
    return -(-width // scale) * -(-height // scale)
