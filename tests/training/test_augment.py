"""The draw stays within its limits; colours are those of torchvision's functions."""

from __future__ import annotations

import numpy as np
import torch
import torchvision.transforms.functional as oracle
from hypothesis import given
from hypothesis import strategies as st

from landmarks.support.seeds import generator
from landmarks.training.augment import colour_matrix, draw, recolour
from landmarks.training.recipe import Augmentation


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32))
def test_a_crop_lies_inside_the_photograph_and_is_as_large_as_asked(width: int, height: int, seed: int) -> None:
    augmentation = Augmentation(smallest_crop=0.35)
    left, top, right, bottom = draw(augmentation, width, height, generator(seed)).box
    assert 0 <= left < right <= 1 + 1e-9
    assert 0 <= top < bottom <= 1 + 1e-9
    area = (right - left) * (bottom - top)
    square = min(width, height) ** 2 / (width * height)
    assert area >= min(0.35, square) - 1e-9


def test_the_same_key_draws_the_same_and_another_epoch_something_else() -> None:
    draws = [draw(Augmentation(), 400, 300, generator(0, epoch, "a")) for epoch in (1, 1, 2)]
    assert draws[0].box == draws[1].box
    assert draws[0].box != draws[2].box


def test_no_flip_means_never_and_flip_means_half() -> None:
    def flips(flip: bool) -> int:
        return sum(draw(Augmentation(flip=flip), 40, 30, generator(number)).flip for number in range(400))

    assert flips(False) == 0
    assert 150 < flips(True) < 250


def test_colours_are_changed_as_torchvision_changes_them() -> None:
    image = np.random.default_rng(0).integers(60, 180, (24, 32, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    expected = oracle.adjust_contrast(oracle.adjust_saturation(oracle.adjust_brightness(tensor, 1.1), 0.8), 1.2)
    ours = recolour(image, colour_matrix(1.1, 1.2, 0.8))
    difference = ours.astype(float) - (expected * 255).permute(1, 2, 0).numpy()
    assert np.abs(difference).max() < 1.5


def test_factors_of_one_change_nothing() -> None:
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(recolour(image, colour_matrix(1, 1, 1)), image)
