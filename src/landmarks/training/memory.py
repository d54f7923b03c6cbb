"""Memory: how much was used, and going on after it ran out."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
from collections.abc import Callable

import psutil  # type: ignore[import-untyped]
import torch

from landmarks.support.console import note

_OUT_OF_MEMORY = (
    "can't allocate memory",  # the processor's, on Linux and macOS
    "not enough memory",  # on Windows
    "MPS backend out of memory",  # Apple's graphics processor
    "Invalid buffer size",  # the same, asked for more at once than it ever gives
)
"""What PyTorch says, in errors that have no kind of their own, when memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device's or the processor's memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def in_parts(
    compute: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, at_once: int
) -> tuple[torch.Tensor, int]:
    """Return `compute(images)` (N, …), made of at most `at_once` images at a time, and how many at a time fitted.

    When memory runs out, half as many are tried, down to one; what the failed pass held is let go first.
    """
    while True:
        try:
            return torch.cat([compute(part) for part in torch.split(images, at_once)]), at_once
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or min(at_once, len(images)) <= 1:
                raise
        release()
        at_once = math.ceil(min(at_once, len(images)) / 2)
        note(f"out of memory: going on with {at_once} photographs at a time")


def release() -> None:
    """Give back what nothing refers to any more; call it after the error itself has been let go."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def peak_memory_mb() -> float:
    """Return the most memory this process has held so far, in MB: on the graphics processor if there is one."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    held = psutil.Process().memory_info()
    return float(getattr(held, "peak_wset", held.rss)) / 1e6  # under this name Windows keeps the peak
