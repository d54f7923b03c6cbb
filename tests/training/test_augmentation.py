"""The draw stays within its limits and depends on its key alone; colours are those of torchvision's functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as oracle
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from landmarks.training.augmentation import (
    AugmentationDraw,
    DeviceAugmentation,
    EpochAugmentation,
    augmented,
    draw_augmentation,
)
from landmarks.training.recipe import Augmentation


def drawn(
    count: int, width: int = 400, height: int = 300, *, seed: int = 0, epoch: int = 1, **limits: object
) -> AugmentationDraw:
    sides = np.full(count, width), np.full(count, height)
    ids = [f"{number:016x}" for number in range(count)]
    return draw_augmentation(EpochAugmentation(Augmentation(**limits), seed, epoch), *sides, ids)  # type: ignore[arg-type]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32))
def test_a_crop_lies_inside_the_image_and_is_as_large_as_asked(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = drawn(8, width, height, seed=seed, crop_scale=0.35).boxes.T
    assert (left >= 0).all() and (left < right).all() and (right <= 1 + 1e-9).all()
    assert (top >= 0).all() and (top < bottom).all() and (bottom <= 1 + 1e-9).all()
    square = min(width, height) ** 2 / (width * height)
    assert ((right - left) * (bottom - top) >= min(0.35, square) - 1e-9).all()


def test_areas_shapes_places_and_colours_are_spread_evenly_over_what_is_allowed() -> None:
    found = drawn(4000, 1000, 1000, crop_scale=0.1, aspect=1.2)
    left, top, right, bottom = found.boxes.T
    area, ratio = (right - left) * (bottom - top), (right - left) / (bottom - top)
    fits = area < 0.8  # larger ones fit only in some shapes, and are drawn again in others
    assert kstest((area[fits] - 0.1) / 0.7, "uniform").pvalue > 0.001
    assert kstest((np.log(ratio[fits]) / np.log(1.2) + 1) / 2, "uniform").pvalue > 0.001
    for start, end in ((left, right), (top, bottom)):
        assert kstest((start / (1 - (end - start)))[fits], "uniform").pvalue > 0.001
    for factor in found.factors.T:
        assert kstest((factor - 0.8) / 0.4, "uniform").pvalue > 0.001
    columns = np.column_stack([area, ratio, left, top, found.factors, found.flips])
    assert np.abs(np.corrcoef(columns[fits], rowvar=False)[4:] - np.eye(8)[4:]).max() < 0.06  # of colours with anything


def test_a_draw_depends_on_seed_epoch_and_id_and_not_on_the_images_beside_it() -> None:
    whole, again = drawn(6), drawn(6)
    assert np.array_equal(whole.boxes, again.boxes)
    few = draw_augmentation(EpochAugmentation(Augmentation(), 0, 1), np.array([400]), np.array([300]), [f"{4:016x}"])
    assert np.array_equal(few.boxes[0], whole.boxes[4]) and np.array_equal(few.factors[0], whole.factors[4])
    for other in (drawn(6, epoch=2), drawn(6, seed=1), drawn(6, seed=-1)):
        assert not np.isclose(other.boxes, whole.boxes).all(axis=1).any()
    assert len(drawn(0).boxes) == 0


def test_no_flip_means_never_and_flip_means_half() -> None:
    assert not drawn(400, flip=False).flips.any()
    assert 150 < drawn(400).flips.sum() < 250


def look(*factors: tuple[float, float, float], flips: tuple[int, ...] = ()) -> DeviceAugmentation:
    return DeviceAugmentation(torch.tensor(factors), torch.tensor([place in flips for place in range(len(factors))]))


@pytest.mark.parametrize("limits", [(60, 180), (0, 256)])
def test_colours_are_changed_as_torchvision_changes_them(limits: tuple[int, int]) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(*limits, (2, 3, 24, 32), dtype=np.uint8))
    found = augmented(images, look((1.1, 1.2, 0.8), (0.9, 0.8, 1.2), flips=(1,)))
    scaled = images.double() / 255
    scaled[1] = scaled[1].flip(2)
    for one, (brightness, contrast, saturation), ours in zip(
        scaled, ((1.1, 1.2, 0.8), (0.9, 0.8, 1.2)), found, strict=True
    ):
        if limits == (0, 256):  # torchvision cuts off after each step, which is another image where much is cut off
            grey = oracle.rgb_to_grayscale(one * brightness)
            mixed = saturation * one * brightness + (1 - saturation) * grey
            expected = (contrast * mixed + (1 - contrast) * grey.mean()).clamp(0, 1)
        else:
            expected = oracle.adjust_brightness(one, brightness)
            expected = oracle.adjust_contrast(oracle.adjust_saturation(expected, saturation), contrast)
        assert (ours - 255 * expected).abs().max() < 0.1


def test_factors_of_one_change_nothing() -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8))
    torch.testing.assert_close(augmented(images, look((1, 1, 1), (1, 1, 1))), images.float(), rtol=0, atol=1e-3)
