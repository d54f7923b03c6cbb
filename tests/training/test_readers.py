"""Reading in processes beside this one: the same pixels and errors, and nothing is left behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from striped import make_dataset

from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.models.preprocessing import Preprocessing
from landmarks.support.errors import LandmarksError
from landmarks.training.augmentation import EpochAugmentation
from landmarks.training.loader import Batch, batches, epoch_order
from landmarks.training.readers import Readers
from landmarks.training.recipe import Augmentation

SMALL = Preprocessing(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop=0.875)


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    started = Readers(2)
    yield started
    started.close()


def load(dataset: Dataset, workers: int | Readers, **settings: object) -> list[Batch]:
    images = dataset.split("train")
    return list(batches(dataset, images, SMALL, batch_size=20, workers=workers, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"augment": EpochAugmentation(Augmentation(), 3, 2)}, {"stretched": True}])
def test_processes_read_what_threads_read(stripes: Dataset, readers: Readers, settings: dict[str, object]) -> None:
    order = epoch_order(len(stripes.split("train")), 0, 1)
    one, other = (load(stripes, workers, steps=np.array_split(order, 3), **settings) for workers in (1, readers))
    assert [batch.ids for batch in one] == [batch.ids for batch in other]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))


def test_an_image_that_a_process_cannot_read_is_named_and_the_process_goes_on(
    tmp_path: Path, stripes: Dataset, readers: Readers
) -> None:
    dataset = make_dataset(tmp_path, landmarks=2, train=2, val=1, test=0)
    (tmp_path / "shards" / "b.tar").write_bytes(bytes(100_000))
    with pytest.raises(LandmarksError, match="0000000000000001"):
        load(open_dataset(dataset.folder), readers)
    assert load(stripes, readers)


def test_a_process_that_was_killed_is_told_of_in_one_line(stripes: Dataset) -> None:
    of_other_tests = {child.pid for child in children_that_read(os.getpid())}
    readers = Readers(1)
    try:
        assert load(stripes, readers)
        (child,) = (child for child in children_that_read(os.getpid()) if child.pid not in of_other_tests)
        child.kill()
        with pytest.raises(LandmarksError, match=r"a process that reads images has ended.*run the same command again"):
            load(stripes, readers)
    finally:
        readers.close()


def children_that_read(pid: int) -> list[psutil.Process]:
    found = psutil.Process(pid).children()
    return [child for child in found if any("training.readers" in word for word in child.cmdline())]


MAIN = """
import os, sys, time
from landmarks.dataset.manifest import open_dataset
from landmarks.models.preprocessing import Preprocessing
from landmarks.training.loader import batches
from landmarks.training.readers import Readers
if child := os.fork():  # once what is imported is imported
    os.waitpid(child, 0)
dataset, readers = open_dataset(sys.argv[1]), Readers(2)
small = Preprocessing(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
for _ in batches(dataset, dataset.split("train"), small, batch_size=8, workers=readers):
    print(os.getpid(), flush=True)
    time.sleep(600)  # the others are read ahead; a query of polars would be interrupted twice, by itself and by Python
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_nothing_is_left_when_the_main_process_is_ended(stripes: Dataset) -> None:
    # No `if __name__ == "__main__"` stands in MAIN: nothing of it is run again in the processes.
    words = [sys.executable, "-c", MAIN, str(stripes.folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None and main.stderr is not None
        for ended_by in (signal.SIGKILL, signal.SIGINT):  # the first process that MAIN is, and then the other
            pid = int(main.stdout.readline())
            children = children_that_read(pid)
            assert len(children) == 2
            os.kill(pid, ended_by)
            while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
                time.sleep(0.05)
        assert pid == main.pid
        errors = main.stderr.read()  # ends when no process holds it any more
    assert errors.count("Traceback") == 1  # of the one that was interrupted
