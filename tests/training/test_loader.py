"""The loader: order, labels, images and errors, whatever the threads do, and threads that end with their user."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from striped import make_dataset, painted

from landmarks.dataset.images import encode
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.models.backbones import pretrained_record
from landmarks.models.preprocessing import Preprocessing, evaluation_image, from_pretrained
from landmarks.support.errors import LandmarksError
from landmarks.training.augmentation import EpochAugmentation
from landmarks.training.loader import Batch, as_input, batches, epoch_order, epoch_steps, normalised, prefetched
from landmarks.training.readers import Piece, Reader, resized_crop, training_image
from landmarks.training.recipe import Augmentation

SMALL = Preprocessing(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop=0.875)


def load(dataset: Dataset, images: pl.DataFrame, **settings: object) -> list[Batch]:
    return list(batches(dataset, images, SMALL, **{"batch_size": 8, **settings}))  # type: ignore[arg-type]


def test_images_come_in_the_order_they_were_asked_for(stripes: Dataset) -> None:
    images = stripes.split("train")[epoch_order(48, 0, 1)]
    loaded = load(stripes, images, batch_size=20)
    assert [identity for batch in loaded for identity in batch.ids] == images["image_id"].to_list()
    assert torch.cat([batch.labels for batch in loaded]).tolist() == images["label"].to_list()
    assert [len(batch.ids) for batch in loaded] == [20, 20, 8]
    assert loaded[0].pixels.shape == (20, 3, 32, 32)
    assert loaded[0].pixels.is_contiguous(memory_format=torch.channels_last)


def test_the_number_of_threads_changes_no_pixel(stripes: Dataset) -> None:
    images = stripes.split("train")
    augment = EpochAugmentation(Augmentation(), 3, 2)
    one, many = (load(stripes, images, workers=workers, augment=augment) for workers in (1, 7))
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(one, many, strict=True))


def test_an_order_of_rows_is_followed_and_its_first_batches_are_those_of_the_rows_themselves(stripes: Dataset) -> None:
    images, order = stripes.split("train"), epoch_order(48, 0, 1)
    chosen, whole = (
        load(stripes, rows, augment=EpochAugmentation(Augmentation(), 1, 1), **named)
        for rows, named in ((images, {"steps": np.split(order, 6)}), (images[order], {}))
    )
    assert [batch.ids for batch in chosen] == [batch.ids for batch in whole]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(chosen, whole, strict=True))
    assert load(stripes, images, steps=[]) == []


def test_a_part_of_a_batch_looks_as_it_does_in_the_whole(stripes: Dataset) -> None:
    batch = load(stripes, stripes.split("train"), batch_size=12, augment=EpochAugmentation(Augmentation(), epoch=3))[0]
    assert batch.augmentation is not None and 0 < int(batch.augmentation.flips.sum()) < 12
    before = batch.pixels.clone()
    whole = as_input(batch, SMALL)
    parts = torch.cat([as_input(batch.part(start, start + 5), SMALL) for start in (0, 5, 10)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    assert torch.equal(batch.pixels, before)  # looked at again when memory ran out


def test_an_images_augmentation_depends_on_its_id_and_the_epoch_not_on_its_place(stripes: Dataset) -> None:
    images = stripes.split("train")
    first, second = (EpochAugmentation(Augmentation(), epoch=epoch) for epoch in (1, 2))
    forwards = load(stripes, images, batch_size=48, augment=first)[0].pixels
    backwards = load(stripes, images.reverse(), batch_size=48, augment=first)[0].pixels
    later = load(stripes, images, batch_size=48, augment=second)[0].pixels
    assert torch.equal(forwards, backwards.flip(0))
    assert not torch.equal(forwards, later)


def test_batches_may_differ_in_size_and_be_empty(stripes: Dataset) -> None:
    loaded = load(stripes, stripes.split("val"), steps=np.split(np.arange(7), [4, 4]))
    assert [len(batch.ids) for batch in loaded] == [4, 0, 3]


def test_an_image_of_nothing_known_has_the_label_minus_one(stripes: Dataset) -> None:
    images = stripes.split("val")[:2].with_columns(pl.lit(None, dtype=pl.UInt32).alias("label"))
    assert load(stripes, images)[0].labels.tolist() == [-1, -1]


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, landmarks=2, train=2, val=1, test=0)
    (tmp_path / "shards" / "b.tar").write_bytes(bytes(100_000))
    with pytest.raises(LandmarksError, match="0000000000000001"):
        load(open_dataset(dataset.folder), dataset.split("train"))


def test_leaving_the_loader_early_ends_its_threads(stripes: Dataset) -> None:
    before = set(threading.enumerate())
    loader = batches(stripes, stripes.split("train"), SMALL, batch_size=2)
    next(loader)
    assert set(threading.enumerate()) - before
    loader.close()  # type: ignore[attr-defined]
    assert not set(threading.enumerate()) - before


def test_the_evaluation_image_is_the_centre_of_the_resized_image() -> None:
    down, right = np.mgrid[:72, :96]
    image = np.stack([down * 3, right * 2, (down + right)], axis=-1).astype(np.uint8)  # smooth: shifts would show
    cropped = evaluation_image(encode(image, quality=100), SMALL).astype(float)
    resized = np.asarray(Image.fromarray(image).resize((49, 37), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(cropped - resized[2:34, 8:40]).mean() < 3  # 49 × 37 are 48.8 × 36.6, so half a pixel may be between


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32))
def test_a_crop_is_resized_as_pillow_does_it(interpolation: str, width: int, height: int, seed: int) -> None:
    # Nothing here overshoots 0 … 255, which is cut off after one direction or the other.
    image = np.random.default_rng(seed).integers(80, 170, (height, width, 3), dtype=np.uint8)
    kind = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(image).resize((32, 32), kind)).astype(int)
    assert np.abs(resized_crop(image, 32, interpolation).astype(int) - expected).max() <= 2


def test_a_training_image_is_the_crop_that_was_drawn() -> None:
    down, right = np.mgrid[:72, :96]
    image = np.stack([down * 3, right * 2, (down + right)], axis=-1).astype(np.uint8)
    cropped = training_image(encode(image, quality=100), 96, 72, SMALL, (0.25, 0.5, 0.75, 1.0)).astype(float)
    expected = np.asarray(Image.fromarray(image[36:72, 24:72]).resize((32, 32), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(cropped - expected).mean() < 3


def test_a_crop_of_less_than_a_pixel_is_a_pixel() -> None:
    sliver = encode(np.full((1, 3, 3), 90, dtype=np.uint8))
    cropped = training_image(sliver, 3, 1, SMALL, (0.99, 0.0, 1.0, 0.3))
    assert cropped.shape == (32, 32, 3) and np.abs(cropped.astype(int) - 90).max() < 5


def test_normalising_is_what_the_preprocessing_says() -> None:
    images = torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4) * 2
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (SMALL.mean, SMALL.std))
    torch.testing.assert_close(normalised(images, SMALL), (images / 255 - mean) / std, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 5))
def test_each_image_is_seen_once_by_one_process(count: int, batch_size: int, processes: int) -> None:
    order = epoch_order(count, 0, 1)
    every = [epoch_steps(order, batch_size, rank, processes) for rank in range(processes)]
    seen = np.concatenate([rows for steps in every for rows in steps])
    assert sorted(seen.tolist()) == list(range(count))
    sizes = [sum(len(steps[step]) for steps in every) for step in range(len(every[0]))]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_a_network_made_for_images_with_a_border_sees_all_of_them_without_one() -> None:
    record = pretrained_record("volo_d4_448")
    assert record["crop_pct"] > 1
    seen = evaluation_image(encode(painted(0, 0)), from_pretrained(record, 48))
    whole = evaluation_image(encode(painted(0, 0)), replace(from_pretrained(record, 48), crop=1.0))
    assert seen.shape == (48, 48, 3) and np.array_equal(seen, whole)


def test_a_thread_that_reads_computes_alone_and_the_one_that_trains_as_before(
    stripes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Preprocessing(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    threads: list[int] = []

    def counted(self: Reader, piece: Piece, pixels: np.ndarray) -> None:
        threads.append(torch.get_num_threads())

    monkeypatch.setattr(Reader, "load", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(batches(stripes, stripes.split("train"), small, batch_size=8, workers=2))
        assert set(threads) == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


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
