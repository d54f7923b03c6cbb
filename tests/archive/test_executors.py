"""Who works: threads by default, a cluster by its address, and nobody once the work was called off."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path

import pytest

from landmarks.archive import executors
from landmarks.archive.executors import EndedError, Lease, stoppable, workforce
from landmarks.support.errors import UsageError


def test_threads_do_the_work_by_default() -> None:
    enough, before = threading.Event(), set(threading.enumerate())
    with workforce(3, None) as pool:
        work = [pool.submit(enough.wait) for _ in range(6)]  # none ends, so that no thread can take two
        workers = set(threading.enumerate()) - before
        enough.set()
        assert all(one.result() for one in work)
    assert len(workers) == 3


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(UsageError, match="no Dask cluster answers at nonsense"), workforce(None, "nonsense://x"):
        pass


def test_a_lease_ends_with_the_process_that_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_SECONDS_BETWEEN_RENEWALS", 3600.0)  # it is not renewed while it is looked at
    lease = Lease(tmp_path)
    with lease.renewed():
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
    with first.renewed(), second.renewed():
        second(0, 0)
        with pytest.raises(EndedError):
            first(0, 0)


def test_a_lease_whose_file_was_taken_away_ends_without_a_complaint_of_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, missed, renew = Lease(tmp_path), threading.Event(), os.utime

    def touch(path: Path) -> None:
        try:
            renew(path)
        except FileNotFoundError:
            missed.set()
            raise

    monkeypatch.setattr(executors, "_SECONDS_BETWEEN_RENEWALS", 0.001)
    monkeypatch.setattr("os.utime", touch)
    with lease.renewed():
        lease.file.unlink()
        missed.wait()  # an error in a thread fails the test
        with pytest.raises(EndedError):
            lease(0, 0)


def test_work_that_was_called_off_stops_at_its_next_report() -> None:
    stopped, reports = threading.Event(), []
    report = stoppable(lambda moved, images: reports.append((moved, images)), stopped)
    report(5, 1)
    stopped.set()
    with pytest.raises(EndedError):
        report(5, 1)
    assert reports == [(5, 1)]
