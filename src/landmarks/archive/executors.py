"""Who does the work: threads of this process, or a Dask cluster, behind the interface of `concurrent.futures`.

Threads and not processes, because decoding, encoding, hashing and waiting for the mirror all release the interpreter.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from landmarks.support.errors import UsageError, naming_the_extra
from landmarks.support.files import written_whole
from landmarks.support.systems import usable_processors

_SECONDS_BETWEEN_BEATS = 5.0
_SECONDS_UNTIL_ABANDONED = 60.0


class EndedError(Exception):
    """The work was called off; whoever does it stops where it is."""


@contextlib.contextmanager
def workforce(workers: int | None, cluster: str | None) -> Iterator[Executor]:
    """Yield an executor: `workers` threads here, or the workers of the Dask scheduler at `cluster` (`tcp://host:8786`).

    Raises:
        UsageError: the cluster cannot be reached, or its package is not installed.
    """
    if cluster is None:
        with ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="tar") as pool:
            yield pool
        return
    with naming_the_extra("fetching on a cluster"):
        import distributed
    try:
        client = distributed.Client(cluster, timeout="20s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask cluster answers at {cluster} ({error})") from error
    with client, client.get_executor(pure=False, retries=3) as pool:
        yield pool


def default_workers() -> int:
    """Return how many TARs are worked on at once: twice the processors, because half the time is spent waiting."""
    return min(16, max(4, 2 * usable_processors()))


class Lease:
    """Lets workers on other machines write to `folder` only while the process that sent them lives.

    That process touches a file every few seconds; a worker that finds it old, or another's, stops.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "lease"
        self.token = uuid.uuid4().hex

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the lease while the block runs."""
        with written_whole(self.file) as aside:
            aside.write_text(self.token)
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(_SECONDS_BETWEEN_BEATS):
                with contextlib.suppress(OSError):  # taken away: the lease is over, and its workers see it
                    os.utime(self.file)

        keeper = threading.Thread(target=beat, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            with contextlib.suppress(OSError):  # a disk that no longer can be written
                self.file.unlink(missing_ok=True)

    def __call__(self, bytes: int, images: int) -> None:
        """Raise `EndedError` when the lease has run out; the signature of `transfer.Report`."""
        try:
            alive = time.time() - self.file.stat().st_mtime < _SECONDS_UNTIL_ABANDONED
            mine = self.file.read_text() == self.token
        except OSError:
            alive = mine = False
        if not (alive and mine):
            raise EndedError(f"the process that asked for {self.file.parent.parent} is gone")


Counter = Callable[[int, int], None]


def stoppable(count: Counter, stopped: threading.Event) -> Counter:
    """Return `count` so that it raises `EndedError` once `stopped` is set."""

    def report(bytes: int, images: int) -> None:
        if stopped.is_set():
            raise EndedError("stopped")
        count(bytes, images)

    return report
