"""The loader: images of a dataset, in a given order, as batches of images a network can take.

Threads, not processes: decoding and resizing release Python's lock, nothing is copied to a worker, and the manifest
stands in memory once. What a batch holds depends on the order, the seed, the epoch and the images' ids, never on
which thread was faster.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from landmarks.dataset.images import ImageError, decode, resize
from landmarks.dataset.manifest import NO_LABEL, Dataset
from landmarks.dataset.shards import ImageReader
from landmarks.models.network import Preprocessing
from landmarks.support.errors import LandmarksError
from landmarks.support.seeds import generator
from landmarks.support.systems import usable_processors
from landmarks.training.recipe import Augmentation

BATCHES_AHEAD = 3
"""Batches that are being read while one is used: enough to hide a slow image, few enough to stay small."""


@dataclass(frozen=True)
class Batch:
    """Some images: `ids` (N,), `images` uint8 (N, 3, S, S) in channels-last memory, `labels` int64 (N,)."""

    ids: list[str]
    pixels: torch.Tensor
    labels: torch.Tensor


def batches(
    dataset: Dataset,
    images: pl.DataFrame,
    preprocessing: Preprocessing,
    *,
    batch_size: int | Sequence[int],
    workers: int | None = None,
    augment: Augmentation | None = None,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[Batch]:
    """Yield `images` (rows of `dataset.split(...)`) in their order, `batch_size` at a time, the last batch smaller.

    A sequence of batch sizes, some perhaps zero, divides them unevenly. Without `augment` an image is what evaluation
    sees (shorter side resized, centre cropped); with it, the draw of (seed, epoch, id). Raises `LandmarksError` that
    names an image which cannot be read.
    """
    reader = ImageReader(dataset)
    columns = [images[name].to_list() for name in ("id", "shard", "offset", "length", "width", "height")]
    rows = list(zip(*columns, strict=True))
    labels = images["label"].cast(pl.Int64).fill_null(NO_LABEL).to_numpy()
    size = preprocessing.image_size

    def load(row: tuple[str, str, int, int, int, int], place: NDArray[np.uint8]) -> None:
        identity, shard, offset, length, width, height = row
        try:
            data = reader.read(shard, offset, length)
            if augment is None:
                place[...] = evaluation_image(data, preprocessing)
            else:
                chosen = draw(augment, width, height, generator(seed, epoch, identity))
                place[...] = training_image(data, width, height, preprocessing, chosen)
        except (ImageError, OSError) as error:
            raise LandmarksError(
                f"image {identity} in {dataset.path_of(shard)} cannot be read ({error})",
                way_out="fetch or import the dataset again",
            ) from error

    pending: deque[tuple[int, NDArray[np.uint8], list[Future[None]]]] = deque()
    with ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="images") as pool:

        def begin(start: int, end: int) -> None:
            chosen = rows[start:end]
            pixels = np.empty((len(chosen), size, size, 3), dtype=np.uint8)
            work = [pool.submit(load, row, pixels_of_one) for row, pixels_of_one in zip(chosen, pixels, strict=True)]
            pending.append((start, pixels, work))

        try:
            for start, end in _bounds(len(rows), batch_size):
                begin(start, end)
                if len(pending) > BATCHES_AHEAD:
                    yield _finished(*pending.popleft(), rows, labels)
            while pending:
                yield _finished(*pending.popleft(), rows, labels)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _bounds(count: int, batch_size: int | Sequence[int]) -> Iterator[tuple[int, int]]:
    if isinstance(batch_size, int):
        yield from ((start, min(start + batch_size, count)) for start in range(0, count, batch_size))
    else:
        yield from pairwise(accumulate(batch_size, initial=0))


def _finished(
    start: int,
    pixels: NDArray[np.uint8],
    work: list[Future[None]],
    rows: list[tuple[str, str, int, int, int, int]],
    labels: NDArray[np.int64],
) -> Batch:
    for future in work:
        future.result()
    end = start + len(pixels)
    return Batch(
        ids=[row[0] for row in rows[start:end]],
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.from_numpy(labels[start:end].copy()),
    )


def default_workers() -> int:
    """One thread per core that this process may use, at most 16: decoding is quick beside training."""
    return min(16, usable_processors())


def evaluation_image(data: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the (S, S, 3) image that evaluation sees of an image's bytes.

    The shorter side is resized to `round(image_size / crop)` and the centre cropped, in one resampling; a JPEG is
    decoded at the smallest scale that still has so many pixels.
    """
    shorter = round(preprocessing.image_size / preprocessing.crop)
    return centre_crop(decode(data, min_side=shorter), preprocessing)


def centre_crop(pixels_of_one: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the (S, S, 3) image that evaluation sees of decoded pixels (H, W, 3)."""
    size = preprocessing.image_size
    shorter = round(size / preprocessing.crop)
    height, width = pixels_of_one.shape[:2]
    side = size * min(width, height) / shorter
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return resize(pixels_of_one, size, size, box, interpolation=preprocessing.interpolation)


def training_image(
    data: bytes, width: int, height: int, preprocessing: Preprocessing, chosen: Draw
) -> NDArray[np.uint8]:
    """Return the (S, S, 3) image that training sees of an image of `width` × `height` pixels.

    The JPEG is decoded at the smallest scale at which the drawn crop still has `size` pixels.
    """
    left, top, right, bottom = chosen.box
    size = preprocessing.image_size
    crop = min((right - left) * width, (bottom - top) * height)
    pixels_of_one = decode(data, min_side=math.ceil(size * min(width, height) / crop))
    height, width = pixels_of_one.shape[:2]
    box = (left * width, top * height, right * width, bottom * height)
    cropped = resize(pixels_of_one, size, size, box, interpolation=preprocessing.interpolation)
    cropped = recolour(cropped, chosen.colour)
    return np.ascontiguousarray(cropped[:, ::-1]) if chosen.flip else cropped


def normalised(
    pixels: torch.Tensor, preprocessing: Preprocessing, device: torch.device | str | None = None
) -> torch.Tensor:
    """Return uint8 images (N, 3, S, S) as a network takes them: on `device`, float32, by mean and deviation."""
    mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1) * 255
    return pixels.to(device, non_blocking=True).float().sub_(mean).div_(std)


def order_of(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order in which an epoch sees `count` images: the same on every machine, for any workers."""
    return generator(seed, epoch, "order").permutation(count)


def shares(order: NDArray[np.int64], batch_size: int, rank: int = 0, processes: int = 1) -> list[NDArray[np.int64]]:
    """Return, per step, which images process `rank` of `processes` sees: each is seen once, by one process.

    An epoch has as few steps as `batch_size` allows, of equal size but for one image, so that no step is tiny; a
    step's images are divided in the same way, and a process may have none.
    """
    steps = max(1, math.ceil(len(order) / batch_size))
    return [np.array_split(step, processes)[rank] for step in np.array_split(order, steps)]


def joined(steps: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the images of all `steps` in one array: an empty one when no step is left."""
    return np.concatenate([np.empty(0, dtype=np.int64), *steps])


# ── Augmentation that leaves a landmark recognisable: which crop to take, its colours, its mirror image ─────────────
#
# An image's draw depends on (seed, epoch, id) alone. There is no vertical flip: buildings stand upright. Whether to
# flip left and right is a choice, since some landmarks are told from others by their handedness, and all by lettering.


LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


@dataclass(frozen=True)
class Draw:
    """One image's augmentation in one epoch."""

    box: tuple[float, float, float, float]  # left, top, right, bottom, as fractions of width and height
    colour: NDArray[np.float32]  # (3, 4): a pixel's new red, green and blue are colour @ (red, green, blue, mean)
    flip: bool


def draw(augmentation: Augmentation, width: int, height: int, random: np.random.Generator) -> Draw:
    """Draw the augmentation of an image of `width` × `height` pixels (Szegedy et al. 2015 for the crop)."""
    box = _crop(augmentation, width, height, random)
    brightness, contrast, saturation = (
        float(random.uniform(1 - reach, 1 + reach))
        for reach in (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    )
    return Draw(
        box=box,
        colour=colour_matrix(brightness, contrast, saturation),
        flip=bool(augmentation.flip and random.random() < 0.5),
    )


def _crop(
    augmentation: Augmentation, width: int, height: int, random: np.random.Generator
) -> tuple[float, float, float, float]:
    reach = math.log(augmentation.aspect)
    for _ in range(10):
        area = width * height * random.uniform(augmentation.crop_scale, 1.0)
        ratio = math.exp(random.uniform(-reach, reach))
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop_width <= width and crop_height <= height:
            break
    else:  # a panorama in which no such crop fits: the largest square, somewhere
        crop_width = crop_height = min(width, height)
    left = random.uniform(0, width - crop_width)
    top = random.uniform(0, height - crop_height)
    return left / width, top / height, (left + crop_width) / width, (top + crop_height) / height


def colour_matrix(brightness: float, contrast: float, saturation: float) -> NDArray[np.float32]:
    """Return the (3, 4) matrix that scales brightness, then saturation, then contrast around the mean brightness.

    Saturation mixes a pixel with its own luma; contrast mixes it with the image's mean luma, the fourth input.
    """
    mixed = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * LUMA[None, :]
    matrix = np.empty((3, 4), dtype=np.float32)
    matrix[:, :3] = brightness * contrast * mixed
    matrix[:, 3] = brightness * (1 - contrast)
    return matrix


def recolour(pixels_of_one: NDArray[np.uint8], colour: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Apply a `colour_matrix` to an image (H, W, 3); values are rounded and kept within 0 … 255."""
    pixels = pixels_of_one.reshape(-1, 3).astype(np.float32)
    constant = colour[:, 3] * float(pixels.mean(axis=0) @ LUMA) + 0.5
    pixels = pixels @ colour[:, :3].T + constant
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8).reshape(pixels_of_one.shape)
