"""The evaluation's preprocessing inside an export: the same pixels as Pillow's, for images of any size."""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from landmarks.models.preprocessing import Preprocessing, centre_crop
from landmarks.recognition.export_graph import SUPPORT, preprocessing_model
from landmarks.support.errors import LandmarksError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # what comes out are grey levels


@functools.cache
def session_of(preprocessing: Preprocessing) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(preprocessing_model(preprocessing).SerializeToString())


def resized(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Return the graph's pixels (S, S, 3), or a batch of them, of an image or a batch."""
    batch = pixels if pixels.ndim == 4 else pixels[None]
    found = session_of(preprocessing).run(None, {"image": batch})[0].transpose(0, 2, 3, 1)
    return found if pixels.ndim == 4 else found[0]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return noise over waves, with all the grey levels there are."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    wave = 128 + 90 * np.sin(rows / 7)[..., None] * np.cos(columns / 5)[..., None]
    return np.clip(wave + 60 * random.standard_normal((height, width, 3), np.float32), 0, 255).astype(np.uint8)


SIDES = st.integers(1, 400)
CROPS = st.sampled_from([1.0, 0.95, 0.9, 0.875])
KINDS = st.sampled_from([*SUPPORT])


def apart(height: int, width: int, preprocessing: Preprocessing) -> np.ndarray:
    """Return how many grey levels each value lies from Pillow's."""
    pixels = picture(height, width, height + width)
    return np.abs(resized(pixels, preprocessing) - centre_crop(pixels, preprocessing).astype(np.float32))


@example(182, 1, 7, 1.0, "bilinear")
@given(SIDES, SIDES, st.sampled_from([7, 33, 64]), CROPS, KINDS)
def test_pixels_are_those_of_pillow_but_for_values_between_two_grey_levels(
    height: int, width: int, size: int, crop: float, interpolation: str
) -> None:
    found = apart(height, width, Preprocessing(size, **PLAIN, interpolation=interpolation, crop=crop))
    assert found.max() <= 2.01
    repeated = max(1, size / min(height, width))  # a value of a narrow image stands in several columns, or rows
    assert found.sum() < (6 + 0.03 * found.size) * repeated


@given(st.integers(200, 500), st.integers(200, 500), st.sampled_from([64, 160]), CROPS, KINDS)
def test_images_of_usual_sizes_differ_by_less_than_a_five_hundredth_of_a_grey_level(
    height: int, width: int, size: int, crop: float, interpolation: str
) -> None:
    found = apart(height, width, Preprocessing(size, **PLAIN, interpolation=interpolation, crop=crop))
    assert found.max() <= 2.01
    assert found.mean() < (0.06 if interpolation == "bilinear" else 0.002)  # 240 → 168 has many ties, say


def test_large_images_are_those_of_pillow_too() -> None:
    found = apart(3000, 2001, Preprocessing(160, **PLAIN, crop=0.875))
    assert found.max() <= 1.01 and found.mean() < 0.002


def test_a_batch_is_its_images_and_normalised_as_the_network_was_trained() -> None:
    preprocessing = Preprocessing(24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    several = np.stack([picture(50, 40, seed) for seed in range(3)])
    found = resized(several, preprocessing)
    for one, pixels in zip(found, several, strict=True):
        np.testing.assert_allclose(one, resized(pixels, preprocessing), atol=1e-5)
        seen = centre_crop(pixels, preprocessing)
        np.testing.assert_allclose(one, (seen / 255 - preprocessing.mean) / preprocessing.std, atol=0.03)


def test_an_unknown_interpolation_is_one_line() -> None:
    with pytest.raises(LandmarksError, match='by "hamming"'):
        preprocessing_model(Preprocessing(24, **PLAIN, interpolation="hamming"))
