"""Feeding: what a thread makes ahead comes in order, with its errors, and ends with what uses it."""

from __future__ import annotations

import threading

import pytest

from landmarks.dataset.manifest import Dataset
from landmarks.models.preprocessing import Preprocessing
from landmarks.support.errors import LandmarksError
from landmarks.training.feeding import prefetched
from landmarks.training.loader import Batch, batches

SMALL = Preprocessing(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop=0.875)


def test_what_is_prefetched_comes_in_order_and_its_thread_ends(stripes: Dataset) -> None:
    before = set(threading.enumerate())
    names: list[str] = []

    def make(batch: Batch) -> list[str]:
        names.append(threading.current_thread().name)
        return batch.ids

    images = stripes.split("train")
    made = list(prefetched(batches(stripes, images, SMALL, batch_size=5), make))
    assert [identity for ids in made for identity in ids] == images["image_id"].to_list()
    assert set(names) == {"prefetch"}
    assert not set(threading.enumerate()) - before


def test_an_error_ahead_is_raised_where_the_batches_are_used_after_those_before_it(stripes: Dataset) -> None:
    def make(batch: Batch) -> int:
        if batch.ids[0] == images["image_id"][20]:
            raise LandmarksError("this one")
        return len(batch.ids)

    images, before = stripes.split("train"), set(threading.enumerate())
    made = prefetched(batches(stripes, images, SMALL, batch_size=10), make)
    assert [next(made), next(made)] == [10, 10]
    with pytest.raises(LandmarksError, match="this one"):
        next(made)
    assert not set(threading.enumerate()) - before


def test_leaving_early_ends_what_works_ahead(stripes: Dataset) -> None:
    before = set(threading.enumerate())
    made = prefetched(batches(stripes, stripes.split("train"), SMALL, batch_size=2), lambda batch: batch)
    next(made)
    made.close()  # type: ignore[attr-defined]
    assert not set(threading.enumerate()) - before
