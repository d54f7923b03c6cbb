from __future__ import annotations

import contextlib
import functools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from landmarks.dataset import groups as neighbours
from landmarks.dataset.groups import (
    HASH_FORM,
    NO_HASH,
    RADIUS,
    RADIUS_ACROSS,
    group_images,
    near_pairs,
    perceptual_hash,
)
from landmarks.dataset.images import ImageError, decode, encode, resize, shrink
from landmarks.support.errors import UsageError

AUTHORS = st.sampled_from([None, "", "unknown", "Ann", "ann ", "Bob"])
# One of three far-apart hashes with a few bits flipped, or no hash at all.
HASHES = st.one_of(
    st.none(),
    st.just(NO_HASH),
    st.builds(
        lambda centre, bits: (0, 0xFFFF_0000_FF00_F0F0, 0x0F0F_0F0F_FFFF_3333)[centre] ^ sum(1 << bit for bit in bits),
        st.integers(0, 2),
        st.sets(st.integers(0, 63), max_size=8),
    ),
)
IMAGES = st.lists(st.tuples(st.sampled_from([None, 3, 7]), HASHES, AUTHORS), max_size=14)


def table(rows: list[tuple[int | None, int | None, str | None]]) -> pl.DataFrame:
    schema = {"landmark_id": pl.Int64, "phash": pl.UInt64, "author": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def near(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    if not one[1] or not other[1]:
        return False
    radius = RADIUS if one[0] is not None and one[0] == other[0] else RADIUS_ACROSS
    return (one[1] ^ other[1]).bit_count() <= radius


def by_one_author(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    names = {str(author or "").strip().lower() for author in (one[2], other[2])}
    return one[0] is not None and one[0] == other[0] and len(names) == 1 and not names & {"", "unknown"}


def grouped_slowly(rows: list[tuple[Any, ...]]) -> list[int]:
    """Give each image the smallest position that can be reached from it."""
    group = list(range(len(rows)))
    changed = True
    while changed:
        changed = False
        for i, one in enumerate(rows):
            for j, other in enumerate(rows):
                if group[i] > group[j] and (near(one, other) or by_one_author(one, other)):
                    group[i], changed = group[j], True
    return group


@given(IMAGES)
@settings(max_examples=100)
def test_groups_are_what_is_joined_directly_or_through_others(rows: list[tuple[Any, ...]]) -> None:
    slow = grouped_slowly(rows)
    numbers = {first: number for number, first in enumerate(dict.fromkeys(slow))}
    grouping = group_images(table(rows))
    assert grouping.group.tolist() == [numbers[first] for first in slow]
    assert grouping.count == len(numbers)


@given(IMAGES, st.data())
@settings(max_examples=100)
def test_straddling_pairs_are_counted_as_if_all_pairs_were_listed(rows: list[tuple[Any, ...]], data: Any) -> None:
    split = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    pairs = [(i, j) for j in range(len(rows)) for i in range(j) if near(rows[i], rows[j])]
    grouping = group_images(table(rows))
    assert grouping.near_duplicates == len(pairs)
    assert grouping.straddling(np.array(split, np.uint8)) == sum(split[i] != split[j] for i, j in pairs)


def test_a_hundred_thousand_copies_of_one_image_are_one_group_quickly() -> None:
    grouping = group_images(table([(1, 0xABCD, None)] * 100_000))
    assert grouping.count == 1
    assert grouping.near_duplicates == 100_000 * 99_999 // 2
    assert grouping.straddling(np.arange(100_000) % 2) == 50_000**2


def test_images_without_structure_are_not_joined() -> None:
    for grey in (0, 128, 255):
        assert perceptual_hash(np.full((50, 70, 3), grey, np.uint8)) == NO_HASH
    noise = np.random.default_rng(0).integers(126, 130, (300, 400, 3), dtype=np.uint8)
    assert perceptual_hash(noise) == NO_HASH
    assert group_images(table([(1, NO_HASH, None)] * 5)).count == 5


@functools.cache
def scene(seed: int, width: int = 300, height: int = 200) -> np.ndarray[Any, Any]:
    """Blots of many sizes: spectra as images have them."""
    random = np.random.default_rng(seed)
    whole = np.zeros((height, width, 3))
    for cells in (3, 5, 9, 17, 33):
        blots = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        whole += resize(blots, width, height).astype(float) / cells
    whole -= whole.min()
    image = (255 * whole / whole.max()).astype(np.uint8)
    image.flags.writeable = False  # the next test gets it too
    return image


CHANGES = {
    "half the size": lambda image: shrink(image, 150),
    "a thumbnail": lambda image: shrink(image, 96),
    "enlarged": lambda image: resize(image, 900, 600),
    "quality 30": lambda image: decode(encode(image, 30)),
    "quality 10": lambda image: decode(encode(image, 10)),
    "without colours": lambda image: np.asarray(Image.fromarray(image).convert("L").convert("RGB")),
    "darker": lambda image: (image * 0.7).astype(np.uint8),
    "2 % cropped from each side": lambda image: image[4:-4, 6:-6],
    "4 % cropped from one side": lambda image: image[:, :-12],
    "a black frame": lambda image: np.pad(image, ((12, 12), (12, 12), (0, 0))),
    "a white frame": lambda image: decode(encode(np.pad(image, ((9, 9), (9, 9), (0, 0)), constant_values=255))),
    "bars above and below": lambda image: np.pad(image, ((30, 30), (0, 0), (0, 0))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_has_nearly_the_same_hash(change: str) -> None:
    apart = [
        (perceptual_hash(scene(seed)) ^ perceptual_hash(CHANGES[change](scene(seed)))).bit_count() for seed in range(20)
    ]
    assert np.mean(np.array(apart) <= RADIUS) >= 0.95, apart


def test_different_images_have_hashes_far_apart() -> None:
    hashes = [perceptual_hash(scene(seed)) for seed in range(60)]
    apart = [(one ^ other).bit_count() for i, one in enumerate(hashes) for other in hashes[:i]]
    assert min(apart) > RADIUS
    assert 28 < np.mean(apart) < 36


def test_the_tiniest_and_the_narrowest_images_have_a_hash_or_none() -> None:
    random = np.random.default_rng(0)
    for shape in ((1, 1, 3), (1, 500, 3), (500, 1, 3), (2, 3, 3)):
        assert 0 <= perceptual_hash(random.integers(0, 255, shape, dtype=np.uint8)) < 2**64


@pytest.mark.shared
def test_real_copies_are_found_and_different_landmarks_are_not_joined(shared: Path) -> None:
    train = pl.read_csv(shared / "mirror/metadata/train.csv", columns=["id", "landmark_id"])
    landmark_of = dict(train.iter_rows())
    rows = []
    for path in sorted((shared / "mirror/train").glob("*.tar"))[:2]:
        with tarfile.open(path) as tar:
            for member in tar:
                with contextlib.suppress(ImageError):
                    image = decode(tar.extractfile(member).read())  # type: ignore[union-attr]
                    rows.append((landmark_of[member.name[-20:-4]], perceptual_hash(image), None))
    grouping = group_images(table(rows))
    landmark = np.array([row[0] for row in rows])
    assert len(grouping.pairs) > 0
    assert (landmark[grouping.pairs[:, 0]] == landmark[grouping.pairs[:, 1]]).all()
    assert np.bincount(grouping.group).max() < 12


def test_hashes_of_this_form_never_change() -> None:
    """A fetch that goes on after an upgrade compares old hashes with new ones: give other ones a new `HASH_FORM`."""
    y, x = np.mgrid[:200, :300]
    images = [
        np.stack([(x * y) % 251, (x * x // 7 + y) % 241, (x + y * y // 5) % 239], axis=2),
        np.stack([x * 255 // 299, y * 255 // 199, (x // 40 + y // 30) % 2 * 255], axis=2),
    ]
    hashes = [perceptual_hash(image.astype(np.uint8)) for image in images]
    kept = {1: [0x90972EE4C1D57A2D, 0x26D2CCE7B83502FA]}[HASH_FORM]
    assert [(one ^ other).bit_count() <= 1 for one, other in zip(hashes, kept, strict=True)] == [True, True]


HASHES_of_neighbours = st.lists(st.integers(0, 2**64 - 1), max_size=12)
FLIPS = st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 63), max_size=14)), max_size=30)


def compared_with_all(hashes: list[int], radius: int) -> list[list[int]]:
    return [
        [i, j]
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= radius
    ]


@given(HASHES_of_neighbours, FLIPS, st.integers(0, 12), st.sampled_from([0, 8192]))
@settings(max_examples=150)
def test_every_pair_is_found_and_no_other(
    hashes: list[int], flips: list[tuple[int, set[int]]], radius: int, few: int
) -> None:
    """With `few` 0 even a handful goes through the chunks."""
    for of, bits in flips:
        if of < len(hashes):
            hashes.append(hashes[of] ^ sum(1 << bit for bit in bits))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_FEW", few)
        patch.setattr(neighbours, "_cost", lambda count, radius, chunks: abs(chunks - 5 - radius % 3))
        assert near_pairs(np.array(hashes, np.uint64), radius).tolist() == compared_with_all(hashes, radius)


@pytest.mark.parametrize("radius", [0, 2, 5, 8, 11])
def test_recall_is_one_among_thousands_of_hashes_with_favourite_bits(radius: int) -> None:
    random = np.random.default_rng(radius)
    centres = random.integers(0, 2, (40, 64))
    bits = centres[random.integers(0, 40, 9000)] ^ (random.random((9000, 64)) < 0.12)
    hashes = np.packbits(bits, axis=1).view(np.uint64).ravel()
    found = near_pairs(hashes, radius)
    near = [np.flatnonzero(np.bitwise_count(hashes[i] ^ hashes[i + 1 :]) <= radius) + i + 1 for i in range(len(hashes))]
    expected = [(i, j) for i, others in enumerate(near) for j in others]
    assert len(expected) > (0 if radius else -1)
    assert np.array_equal(found, np.array(expected).reshape(-1, 2))


def test_none_and_one_hash_have_no_pairs() -> None:
    assert near_pairs(np.empty(0, np.uint64), 8).shape == (0, 2)
    assert near_pairs(np.ones(1, np.uint64), 8).shape == (0, 2)


def test_an_impossible_radius_is_refused() -> None:
    for radius in (-1, 16, 64):
        with pytest.raises(UsageError, match="impossible radius"):
            near_pairs(np.ones(2, np.uint64), radius)
