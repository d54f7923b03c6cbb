"""Copies are found however they were changed, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import landmarks
from landmarks.dataset.copies import COPIES, copies_between, copy_positions, find_copies, read_copies
from landmarks.dataset.groups import near_between, perceptual_hash
from landmarks.dataset.images import ImageError, decode, encode, shrink
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.sketches import SKETCH_SIDE, Sketch, Sketches, kept_sketches, make_sketch
from landmarks.support.errors import LandmarksError

Pixels = NDArray[np.uint8]


def cropped(left: float, top: float, right: float, bottom: float) -> Callable[[Pixels], Pixels]:
    def change(image: Pixels) -> Pixels:
        height, width = image.shape[:2]
        return image[
            round(top * height) : height - round(bottom * height), round(left * width) : width - round(right * width)
        ]

    return change


def lettered(image: Pixels, words: str = "Greetings", lines: int = 8) -> Pixels:
    written = Image.fromarray(image)
    draw, height = ImageDraw.Draw(written), image.shape[0]
    font = ImageFont.load_default(size=height // lines)
    draw.text((4, height * 0.8), words, font=font, fill="white", stroke_width=lines // 8 or 2, stroke_fill="black")
    return np.asarray(written)


def on_a_screen(image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    screen = Image.new("RGB", (round(width * 1.25), round(height * 1.5)), (250, 250, 250))
    draw = ImageDraw.Draw(screen)
    draw.rectangle((0, 0, screen.width, screen.height * 0.07), fill=(60, 90, 160))
    screen.paste(Image.fromarray(image), (width // 8, height // 4))
    draw.text(
        (width // 8, height * 1.3), "42 people like this view", fill="black", font=ImageFont.load_default(size=12)
    )
    return decode(encode(np.asarray(screen), 80))


def on_a_dark_screen(image: Pixels) -> Pixels:
    """Two thirds of the width are the image: the words around it are the same for all."""
    height, width = image.shape[:2]
    screen = Image.new("RGB", (round(width / 0.65), round(1.12 * height / 0.65)), (24, 24, 28))
    draw, font = ImageDraw.Draw(screen), ImageFont.load_default(size=screen.width // 24)
    draw.rectangle((0, 0, screen.width, screen.height * 0.07), fill=(60, 90, 160))
    draw.text((6, 0.015 * screen.height), "12:30   photo viewer", font=font, fill="white")
    top = round(0.14 * screen.height)
    screen.paste(Image.fromarray(image), ((screen.width - width) // 2, top))
    words = "42 likes · what a view from up there\nthis was our second day"
    draw.text((0.04 * screen.width, top + height + 4), words, font=font, fill=(230, 230, 230))
    return decode(encode(np.asarray(screen), 80))


def in_a_player(image: Pixels) -> Pixels:
    """A third of the width shows other videos, the same ones for all."""
    height, width = image.shape[:2]
    player = Image.new("RGB", (round(width / 0.66), round(1.25 * height)), (15, 15, 15))
    player.paste(Image.fromarray(image), (round(0.02 * width), height // 10))
    random = np.random.default_rng(5)
    side = player.width // 5
    for place in range(4):
        other = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((side, round(0.6 * side)))
        player.paste(other, (round(0.72 * player.width), round(0.08 * height + 0.7 * place * side)))
    return decode(encode(np.asarray(player), 85))


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "half the size": lambda image: shrink(image, max(image.shape) // 2),
    "quality 10": lambda image: decode(encode(image, 10)),
    "5 % off every side": cropped(0.05, 0.05, 0.05, 0.05),
    "10 % off every side": cropped(0.1, 0.1, 0.1, 0.1),
    "10 % off the left": cropped(0.1, 0, 0, 0),
    "10 % off the top": cropped(0, 0.1, 0, 0),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "without colours": lambda image: np.asarray(Image.fromarray(image).convert("L").convert("RGB")),
    "darker": lambda image: (255 * (image / 255) ** 1.6).astype(np.uint8),
    "with text": lettered,
    "with large text": lambda image: lettered(image, "Greetings\nfrom here", lines=6),
    "in a white frame": lambda image: np.pad(image, ((9, 9), (9, 9), (0, 0)), constant_values=255),
    "on a screen": on_a_screen,
    "on a dark screen": on_a_dark_screen,
    "in a player": in_a_player,
}


@pytest.fixture(scope="module")
def images(miniature: Path) -> list[Pixels]:
    """Twelve images of the miniature, none of which looks much like another."""
    found: list[tuple[int, Pixels]] = []
    for path in sorted(miniature.glob("train/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                with contextlib.suppress(ImageError):  # some members are broken
                    if file := tar.extractfile(member):
                        image = decode(file.read())
                        hash = perceptual_hash(image)
                        if all((hash ^ other).bit_count() > 16 for other, _ in found):
                            found.append((hash, image))
    return [image for _, image in found[:12]]


@functools.cache
def sketch_of(data: bytes, shape: tuple[int, ...]) -> Sketch:
    """The sketch of an image, made once: originals are compared with copies of every kind."""
    return make_sketch(np.frombuffer(data, np.uint8).reshape(shape))


def sketches_of(images: list[Pixels]) -> Sketches:
    made = [sketch_of(image.tobytes(), image.shape) for image in images]
    return Sketches(
        pixels=np.stack([one.pixels for one in made]),
        whole=np.array([one.whole for one in made], np.uint64),
        parts=np.concatenate([one.parts for one in made]),
        corners=np.concatenate([one.corners for one in made]),
        counts=np.array([len(one.parts) for one in made]),
    )


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_no_other_image(change: str, images: list[Pixels]) -> None:
    copies = [CHANGES[change](image) for image in images]
    found = find_copies(sketches_of([*images, *copies]))
    right = {(place, place + len(images)) for place in range(len(images))}
    pairs = {(int(i), int(j)) for i, j in found.pairs}
    assert len(pairs & right) >= len(images) - 1, right - pairs
    assert not pairs - right
    assert found.mirrored.all() if change == "mirrored" else not found.mirrored.any()


def test_images_shown_half_as_wide_on_a_plain_card_are_all_found(images: list[Pixels]) -> None:
    """The first steps of the alignment lead away from where some of them are."""

    def on_a_card(image: Pixels) -> Pixels:
        height, width = image.shape[:2]
        card = Image.new("RGB", (2 * width, 2 * height), (240, 240, 240))
        card.paste(Image.fromarray(image), (width // 2, height // 5))
        return np.asarray(card)

    found = find_copies(sketches_of([*images, *map(on_a_card, images)]))
    assert found.pairs.tolist() == [[place, place + len(images)] for place in range(len(images))]


def test_smooth_patterns_are_nobodys_copies_however_well_they_can_be_fitted() -> None:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (40, 4, 5, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(each).resize((60, 40), Image.Resampling.BICUBIC)) for each in small]
    assert find_copies(sketches_of(smooth)).pairs.tolist() == []


def test_copies_between_many_images_are_looked_for_once(
    images: list[Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = []

    def counted(*given: Any, **named: Any) -> Any:
        searches.append(given)
        return find_copies(*given, **named)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("landmarks.dataset.copies.find_copies", counted)
    first, second = sketches_of(images[:3]), sketches_of([CHANGES["mirrored"](image) for image in images[1:4]])
    assert copies_between(first, second).tolist() == [[1, 0], [2, 1]]
    assert not list(tmp_path.rglob("*.parquet"))  # so few are compared each time
    monkeypatch.setattr("landmarks.dataset.copies.KEPT_FROM", 4)
    for _ in range(2):
        assert copies_between(first, second).tolist() == [[1, 0], [2, 1]]
    assert len(searches) == 2
    assert copies_between(second, first).tolist() == [[0, 1], [1, 2]]
    assert copies_between(first, first.of(np.array([0]))).tolist() == [[0, 0]]
    assert len(searches) == 4
    [kept] = [path for path in tmp_path.rglob("*.parquet") if len(pl.read_parquet(path)) == 1]
    for damage in (b"no table", None):
        if damage is None:
            pl.DataFrame({"first": [9], "second": [0]}).write_parquet(kept)
        else:
            kept.write_bytes(damage)
        assert copies_between(first, first.of(np.array([0]))).tolist() == [[0, 0]]


def test_copies_are_found_without_a_place_to_keep_them(
    images: list[Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("landmarks.dataset.copies.KEPT_FROM", 1)
    assert copies_between(sketches_of(images[:2]), sketches_of(images[:1])).tolist() == [[0, 0]]


def test_images_without_structure_are_nobodys_copies() -> None:
    plain = [np.full((60, 80, 3), shade, np.uint8) for shade in (0, 128, 255)]
    assert not len(find_copies(sketches_of(plain)).pairs)


def test_hashes_near_between_two_sets_are_those_of_comparing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    hashes = random.integers(0, 2**63, 3000, dtype=np.uint64)
    queries = hashes[random.integers(0, 3000, 2000)] ^ (np.uint64(1) << random.integers(0, 63, 2000).astype(np.uint64))
    expected = {(int(i), int(j)) for i, j in np.argwhere(np.bitwise_count(queries[:, None] ^ hashes[None]) <= 6)}
    assert len(expected) >= 2000
    for most in (1 << 40, 0):  # all with all, and by chunks
        monkeypatch.setattr("landmarks.dataset.groups._MOST_COMPARED", most)
        blocks = list(near_between(queries, hashes, 6))
        assert {(int(i), int(j)) for block in blocks for i, j in zip(*block, strict=True)} == expected


# ── In a dataset ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path, images: list[Pixels]) -> Path:
    """A dataset of two landmarks in which image 3 of the first was cropped and is image 9 of the second."""
    for number, image in enumerate(images):
        place = tmp_path / "source" / ("first" if number < 6 else "second")
        place.mkdir(parents=True, exist_ok=True)
        pixels = cropped(0.1, 0.02, 0.05, 0.1)(images[3]) if number == 9 else image
        (place / f"{number}.jpg").write_bytes(encode(np.ascontiguousarray(pixels), 95))
    landmarks.import_(tmp_path / "source", tmp_path / "data")
    return tmp_path / "data"


def grouped(data: Dataset) -> list[list[str]]:
    groups = data.images.group_by("group").agg(pl.col("image_id").sort())["image_id"].to_list()
    return sorted(group for group in groups if len(group) > 1)


def test_split_puts_a_cropped_copy_into_the_group_of_its_original(folder: Path) -> None:
    assert grouped(landmarks.split(folder, copies="no")) == []
    data = landmarks.split(folder)
    assert grouped(data) == [["first-3", "second-9"]] or [len(group) for group in grouped(data)] == [2]
    stored = read_copies(folder)
    assert stored is not None
    assert stored.schema == COPIES
    assert stored["copies"].list.len().sum() == 1


def test_what_a_kill_left_of_sketches_is_removed_by_the_next_run(folder: Path) -> None:
    data = open_dataset(folder)
    kept_sketches(data, data.images)
    [pixels] = (folder / "copies").glob("pixels-*.npy")
    left = [folder / "copies" / f".{name}.0123abcd.part" for name in (pixels.name, "sketches.parquet")]
    for path in left:
        path.touch()
    (folder / "copies" / "sketches.parquet").unlink()
    kept_sketches(data, data.images)
    assert not any(path.exists() for path in left)


def test_sketches_are_computed_once_and_those_of_a_changed_image_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Any] = []

    def counting(image: Pixels) -> Any:
        counted.append(image.shape)
        return make_sketch(image)

    monkeypatch.setattr("landmarks.dataset.sketches.make_sketch", counting)
    first = landmarks.split(folder)
    assert len(counted) == len(first.images)
    landmarks.split(folder, seed=1)
    assert len(counted) == len(first.images)
    data = open_dataset(folder)
    changed = data.images.with_columns(
        phash=pl.when(pl.int_range(pl.len()) == 4).then(pl.col("phash") ^ 1).otherwise("phash")
    )
    again = kept_sketches(data, changed)
    assert len(counted) == len(first.images) + 1
    assert again is not None
    assert len(again.whole) == len(first.images)
    assert len(list((folder / "copies").iterdir())) == 2


@pytest.mark.parametrize("harm", ["not parquet", "other pixels", "no pixels", "far corners"])
def test_unsound_sketches_are_computed_again(harm: str, folder: Path) -> None:
    landmarks.split(folder)
    kept = read_copies(folder)
    table, pixels = folder / "copies" / "sketches.parquet", next((folder / "copies").glob("pixels-*.npy"))
    if harm == "not parquet":
        table.write_bytes(b"no table")
    elif harm == "other pixels":
        np.save(pixels, np.zeros((3, SKETCH_SIDE, SKETCH_SIDE), np.uint8))
    elif harm == "no pixels":
        pixels.unlink()
    else:
        pl.read_parquet(table).with_columns(corners=pl.col("corners").list.eval(pl.element() + 1e9)).write_parquet(
            table
        )
    landmarks.split(folder)
    found = read_copies(folder)
    assert found is not None and kept is not None and found.equals(kept)


def test_a_dataset_that_grows_keeps_its_copies_in_one_group(folder: Path, tmp_path: Path) -> None:
    before = landmarks.split(folder)
    csv = tmp_path / "nothing.csv"
    csv.write_text("image_id,correct_landmark_id\n")
    after = landmarks.split(folder, corrections=csv)
    assert grouped(after) == grouped(before)
    assert len(grouped(after)) == 1


@pytest.mark.parametrize("copy", [True, False])
def test_added_images_are_compared_with_all_others_and_join_the_split_of_their_copies(
    copy: bool, images: list[Pixels], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def grow(name: str, change: Callable[[Pixels], Pixels]) -> Dataset:
        capsys.readouterr()
        for number, image in enumerate(images):
            path = tmp_path / name / "first" / f"{name}{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(np.ascontiguousarray(change(image)), 95))
        return landmarks.import_(tmp_path / name, folder, add=True, copy=copy)

    landmarks.split(folder, copies="no")
    assert "pixels" not in str(grow("one", CHANGES["mirrored"]).split_metadata)  # none were looked for before
    before = landmarks.split(folder)
    after = grow("two", CHANGES["10 % off every side"])
    assert after.split_metadata["rule"].endswith("copies by their pixels")
    assert "12 added images" in capsys.readouterr().err
    groups = grouped(after)
    for number in range(len(images)):
        (group,) = (group for group in groups if any(id.endswith(f"two{number}") for id in group))
        assert any(id.endswith(f"one{number}") for id in group)
    splits, old = dict(after.splits.rows()), dict(before.splits.rows())  # type: ignore[union-attr]
    assert {id: splits[id] for id in old} == old
    assert all(len({splits[id] for id in group}) == 1 for group in groups)
    # A later search of all pairs finds no more, and computes no sketch again.
    found = read_copies(folder)
    again = landmarks.split(folder)
    assert "sketches of" not in capsys.readouterr().err
    assert found is not None
    assert found.equals(read_copies(folder))  # type: ignore[arg-type]
    assert grouped(again) == groups


def test_pairs_that_a_person_names_are_copies_too(folder: Path, tmp_path: Path) -> None:
    ids = open_dataset(folder).images["image_id"].sort().to_list()
    csv = tmp_path / "pairs.csv"
    csv.write_text(f"image_id,copy_of\n{ids[1]},{ids[0]}\n")
    together = grouped(landmarks.split(folder, copies=csv))
    assert ids[:2] in together
    assert len(together) == 2
    csv.write_text(f"image_id,copy_of\nnobody,{ids[0]}\n")
    with pytest.raises(LandmarksError, match='line 2: the dataset holds no image "nobody"'):
        landmarks.split(folder, copies=csv)


def test_an_unreadable_image_is_counted_and_the_others_are_compared(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_dataset(folder)
    row = data.images.sort("image_id").row(0, named=True)
    shard = data.path_of(row["shard"])
    content = bytearray(shard.read_bytes())
    content[row["offset"] : row["offset"] + 64] = bytes(64)
    shard.write_bytes(content)
    landmarks.split(folder)
    assert "1 of 12 images could not be read: no copies of them are found" in capsys.readouterr().err
    assert len(grouped(open_dataset(folder))) == 1


def test_an_image_that_could_not_be_read_is_told_each_time_and_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_dataset(folder)
    shard = data.path_of(data.images["shard"][0])
    content = shard.read_bytes()
    first = data.images.sort("offset").row(0, named=True)
    shard.write_bytes(bytes(first["offset"] + first["length"]) + content[first["offset"] + first["length"] :])
    remark = "1 of 12 images could not be read: no copies of them are found"
    for _ in range(2):
        sketches = kept_sketches(data, data.images)
        assert sketches is not None and (sketches.counts > 0).sum() == 11
        assert remark in capsys.readouterr().err
    shard.write_bytes(content)
    sketches = kept_sketches(data, data.images)
    assert sketches is not None and sketches.counts.all()
    monkeypatch.setattr("landmarks.dataset.sketches.make_sketch", None)  # none is looked at any more
    assert kept_sketches(data, data.images) is not None
    assert remark not in capsys.readouterr().err


def test_the_copies_of_a_dataset_are_placed_among_other_images() -> None:
    table = pl.DataFrame({"image_id": ["a", "b", "c"], "copies": [["c"], [], []]}, schema=COPIES)
    pairs, searched = copy_positions(table, pl.Series(["c", "d", "a"]))
    assert pairs.tolist() == [[0, 2]]
    assert searched.tolist() == [True, False, True]


def test_a_removed_image_is_in_no_split_and_comes_back(folder: Path, tmp_path: Path) -> None:
    data = landmarks.split(folder)
    gone = data.images["image_id"][0]
    csv = tmp_path / "decided.csv"
    csv.write_text(f"image_id,correct_landmark_id\n{gone},remove\n")
    after = landmarks.split(folder, corrections=csv)
    assert gone not in after.images["image_id"]
    assert gone not in (after.splits["image_id"] if after.splits is not None else [])
    assert len(after.as_fetched()) == len(data.images)
    assert after.content_digest != data.content_digest
    back = landmarks.split(folder, keep_corrections=False)
    assert gone in back.images["image_id"]
    shutil.rmtree(folder)
