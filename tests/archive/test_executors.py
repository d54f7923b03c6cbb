"""Who works: threads by default, a cluster by its address, and nobody once the work was called off."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path

import pytest

from landmarks.archive.executors import EndedError, Lease, stoppable, workforce
from landmarks.support.errors import UsageError


def test_threads_do_the_work_by_default() -> None:
    with workforce(3, None) as pool:
        names = set(pool.map(lambda _: (time.sleep(0.05), threading.current_thread().name)[1], range(6)))
    assert len(names) == 3


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(UsageError, match="no Dask cluster answers at nonsense"), workforce(None, "nonsense://x"):
        pass


def test_a_lease_ends_with_the_process_that_keeps_it(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    with lease.kept():
        elsewhere = pickle.loads(pickle.dumps(lease))
        elsewhere(10, 1)
        hour_ago = time.time() - 3600
        os.utime(lease.file, (hour_ago, hour_ago))
        with pytest.raises(EndedError):
            elsewhere(10, 1)
    with pytest.raises(EndedError):
        elsewhere(10, 1)


def test_a_lease_ends_when_another_process_takes_over(tmp_path: Path) -> None:
    first, second = Lease(tmp_path), Lease(tmp_path)
    with first.kept(), second.kept():
        second(0, 0)
        with pytest.raises(EndedError):
            first(0, 0)


def test_work_that_was_called_off_stops_at_its_next_report() -> None:
    stopped, told = threading.Event(), []
    report = stoppable(lambda moved, photographs: told.append((moved, photographs)), stopped)
    report(5, 1)
    stopped.set()
    with pytest.raises(EndedError):
        report(5, 1)
    assert told == [(5, 1)]
