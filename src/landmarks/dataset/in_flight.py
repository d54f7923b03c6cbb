"""How much may be in memory at once: threads wait for their turn, so that more cores do not mean more memory."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from landmarks.dataset.images import size_of

MAX_BYTES_READ = 1 << 29
"""Bytes of files that are read and not yet decoded, of all threads together."""

MAX_PIXELS_DECODED = 96_000_000
"""Pixels that are being decoded, of all threads together: about a gigabyte with the copies that resizing needs."""


class Budget:
    """An amount that threads share; who asks first is served first, and one that asks for more than all gets all."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        """Wait until `amount` is free, and take it while the block runs."""
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
    """Return how many pixels are in memory while an image is decoded for copies of `max_side`.

    A JPEG is decoded at the reduced scale (1/2, 1/4, 1/8) that still holds `max_side`; everything else is decoded
    whole. Raises `ImageError` when its headers say that it is no image, or too large.
    """
    width, height = size_of(data)
    scale = 1
    if max_side is not None and data[:3] == b"\xff\xd8\xff":
        while scale < 8 and max(width, height) >= 2 * scale * max_side:
            scale *= 2
    return -(-width // scale) * -(-height // scale)
