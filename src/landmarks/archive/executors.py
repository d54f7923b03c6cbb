"""Executors for the work on TARs: threads of this process, or a Dask cluster, with the `concurrent.futures` interface.

Threads are used rather than processes because decoding, encoding, hashing and network requests all release the GIL.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from landmarks.archive.transfer import Report
from landmarks.support.errors import UsageError, naming_the_extra
from landmarks.support.files import written_whole
from landmarks.support.systems import usable_processors

_SECONDS_BETWEEN_RENEWALS = 5.0
_SECONDS_UNTIL_ABANDONED = 60.0


class EndedError(Exception):
    """The work was called off, and ends where it is."""


@contextlib.contextmanager
def workforce(workers: int | None, cluster: str | None) -> Iterator[Executor]:
    """Yield an executor: `workers` threads here, or the workers of the Dask scheduler at `cluster` (`tcp://host:8786`).

    Raises:
        UsageError: the cluster cannot be reached, or its package is not installed.
    """
    if cluster is None:
        with ThreadPoolExecutor(workers or default_tar_workers(), thread_name_prefix="tar") as pool:
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


def default_tar_workers() -> int:
    """Return how many TARs to work on at once: 4 to 16, twice the processors, as half the time is spent waiting."""
    return min(16, max(4, 2 * usable_processors()))


class Lease:
    """Permission for workers on other machines to write to `folder` while the process that started them lives.

    That process touches a file every few seconds. A worker stops when the file is old or belongs to another process.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "lease"
        self.token = uuid.uuid4().hex

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew the lease while the block runs, and end it then."""
        with written_whole(self.file) as temporary:
            temporary.write_text(self.token)
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(_SECONDS_BETWEEN_RENEWALS):
                with contextlib.suppress(OSError):  # the file is gone: the lease is over, and its workers will notice
                    os.utime(self.file)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(OSError):  # a disk that can no longer be written
                self.file.unlink(missing_ok=True)

    def __call__(self, bytes: int, images: int) -> None:
        """Raise `EndedError` when the lease has run out. The signature is that of `transfer.Report`."""
        try:
            alive = time.time() - self.file.stat().st_mtime < _SECONDS_UNTIL_ABANDONED
            mine = self.file.read_text() == self.token
        except OSError:
            alive = mine = False
        if not (alive and mine):
            raise EndedError(f"the process that asked for {self.file.parent.parent} is gone")


def stoppable(report: Report, stopped: threading.Event) -> Report:
    """Return a function that calls `report`, or raises `EndedError` once `stopped` is set."""

    def report_or_stop(bytes: int, images: int) -> None:
        if stopped.is_set():
            raise EndedError("stopped")
        report(bytes, images)

    return report_or_stop
