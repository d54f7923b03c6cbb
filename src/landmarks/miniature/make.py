"""Make a miniature archive in the published layout: rendered images of made-up landmarks by made-up authors."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import multiprocessing
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from landmarks.miniature.metadata import AUTHORS, landmark_name, write_metadata
from landmarks.miniature.monuments import KINDS
from landmarks.miniature.shots import Shot, render_shot
from landmarks.support.console import Advance, note, progress
from landmarks.support.errors import UsageError
from landmarks.support.files import digest_of, held, read_record, write_record, written_whole
from landmarks.support.seeds import generator
from landmarks.support.systems import usable_processors

IMAGES_PER_TAR = 340
MIN_IMAGES_FOR_PROCESSES = 80
"""With fewer images, starting other processes takes longer than it saves."""

FAULTS = ("cut off", "not an image")
"""The faults of two files in the train set: a truncated JPEG, and a text named .jpg."""


@dataclass(frozen=True)
class MadeUpLandmark:
    """A landmark of the miniature: its id, its kind, its number among those of the kind, and its name."""

    id: int
    kind: str
    number: int
    name: str


@dataclass(frozen=True)
class MadeUpImage:
    """An image of the miniature: its shot, the ids of its landmarks, and the fault of its file."""

    shot: Shot
    landmarks: tuple[int, ...]
    usage: str = ""
    fault: str = ""


def make_miniature(
    folder: Path | str,
    *,
    landmarks: int = 12,
    images: int = 120,
    unknown: int = 240,
    size: int = 160,
    seed: int = 0,
) -> Path:
    """Write a mirror with `landmarks` made-up landmarks to `folder` and return it; a seed always gives the same bytes.

    `images` is the mean number of train images per landmark; the test set has a fifth of it, and `unknown` images of no
    landmark. `size` is the longer side of the images in pixels. A folder that already holds the same miniature is left
    unchanged.
    """
    _require_positive(landmarks=landmarks, images=images, size=size)
    settings = {"landmarks": landmarks, "images": images, "unknown": unknown, "size": size, "seed": seed}
    folder = Path(folder)
    with held(folder):
        record_file = folder / "miniature.json"
        if record_file.exists() and read_record(record_file)["inputs"] == digest_of(settings):
            return folder
        known = choose_landmarks(landmarks, seed)
        train = train_images(known, images, size, seed)
        test = test_images(known, images, unknown, size, seed)
        count = len(train) + len(test)
        with progress("photographing the miniature", count) as advance, _renderers(count) as render_all:
            _write_tars(folder, "train", train, render_all, advance)
            _write_tars(folder, "test", test, render_all, advance)
        write_metadata(folder, known, train, test, seed)
        write_record(record_file, settings, verb="demo", inputs=digest_of(settings))
        note(f"miniature: {len(train)} train and {len(test)} test images of {landmarks} landmarks in {folder}")
    return folder


def _require_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise UsageError(f"{name} is too small", received=value, expected="1 or more")


def choose_landmarks(count: int, seed: int) -> list[MadeUpLandmark]:
    """Return `count` landmarks sorted by id, about a sixth of which share their kind with another."""
    rng = generator(seed, "landmarks")
    kinds = [str(kind) for kind in rng.permutation(sorted(KINDS))][: max(1, math.ceil(0.84 * count))]
    ids = rng.choice(203_094, size=count, replace=False)
    result = []
    for position, id in enumerate(ids):
        kind, number = kinds[position % len(kinds)], position // len(kinds)
        result.append(MadeUpLandmark(int(id), kind, number, landmark_name(kind, number)))
    return sorted(result, key=lambda landmark: landmark.id)


def train_images(known: Sequence[MadeUpLandmark], mean: int, size: int, seed: int) -> list[MadeUpImage]:
    """Return the train set in the order of its TARs: 0.6 to 1.5 times `mean` images per landmark, two with a fault."""
    rng = generator(seed, "train")
    spread = np.linspace(0.6, 1.5, len(known)) if len(known) > 1 else np.ones(1)
    counts = np.maximum(1, np.round(rng.permutation(spread) * mean / spread.mean()).astype(int))
    images = [
        MadeUpImage(shot, (landmark.id,))
        for landmark, count in zip(known, counts, strict=True)
        for shot in _album(("train", landmark.id), ((landmark.kind, landmark.number),), int(count), size, seed)
    ]
    images = [images[i] for i in rng.permutation(len(images))]
    faulty = rng.choice(len(images), size=min(len(FAULTS), len(images)), replace=False)
    for fault, position in zip(FAULTS, faulty, strict=False):
        images[position] = replace(images[position], fault=fault)
    return images


def test_images(known: Sequence[MadeUpLandmark], mean: int, unknown: int, size: int, seed: int) -> list[MadeUpImage]:
    """Return the test set: `mean` / 5 images per landmark, some with a second one behind it, and `unknown` others."""
    rng = generator(seed, "test")
    images = []
    for landmark in known:
        first: tuple[tuple[str, int], ...] = ((landmark.kind, landmark.number),)
        for number, shot in enumerate(_album(("test", landmark.id), first, max(1, mean // 5), size, seed)):
            second = known[int(rng.integers(len(known)))]
            if number % 12 == 5 and second.id != landmark.id:
                both = replace(shot, landmarks=(*first, (second.kind, second.number)))
                images.append(MadeUpImage(both, tuple(sorted((landmark.id, second.id)))))
            else:
                images.append(MadeUpImage(shot, (landmark.id,)))
    images += [MadeUpImage(shot, ()) for shot in _album(("test", "others"), (), unknown, size, seed)]
    usage = ["Public" if share < 0.35 else "Private" for share in rng.random(len(images))]
    return [replace(images[i], usage=usage[i]) for i in rng.permutation(len(images))]


def _album(
    key: tuple[object, ...], landmarks: tuple[tuple[str, int], ...], count: int, size: int, seed: int
) -> Iterator[Shot]:
    """Yield `count` shots by several authors, each of whom makes one or more visits and takes bursts now and then."""
    rng = generator(seed, "album", *map(str, key))
    author, visit, stand = "", "", ""
    for number in range(count):
        if not author or rng.random() < 0.16:
            author = AUTHORS[rng.integers(len(AUTHORS))]
            visit = stand = f"{key} {number}"
        elif rng.random() < 0.3 and landmarks:
            pass  # a burst: the same standpoint again
        elif rng.random() < 0.45:
            visit = stand = f"{key} {number}"
        else:
            stand = f"{key} {number}"
        image_id = generator(seed, "id", *map(str, key), number).bytes(8).hex()
        yield Shot(image_id, seed, author, visit, stand, landmarks, size)


@contextlib.contextmanager
def _renderers(images: int) -> Iterator[Callable[[Sequence[Shot]], Iterator[bytes]]]:
    """Yield a function that renders shots in order, in several processes if there are enough images."""
    processors = usable_processors()
    if images < MIN_IMAGES_FOR_PROCESSES or processors == 1:
        yield lambda shots: map(render_shot, shots)
        return
    with ProcessPoolExecutor(processors, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda shots: pool.map(render_shot, shots, chunksize=8)


def _write_tars(
    folder: Path,
    name: str,
    images: Sequence[MadeUpImage],
    render_all: Callable[[Sequence[Shot]], Iterator[bytes]],
    advance: Advance,
) -> None:
    """Write the TARs of one set, and the MD5 file of each."""
    count = max(1, math.ceil(len(images) / IMAGES_PER_TAR))
    for number in range(count):
        images_of_tar = images[number::count]
        jpegs = render_all([image.shot for image in images_of_tar])
        path = folder / name / f"images_{number:03d}.tar"
        with written_whole(path) as temporary:
            _write_tar(temporary, images_of_tar, jpegs, advance)
            md5 = hashlib.md5(temporary.read_bytes(), usedforsecurity=False).hexdigest()
        with written_whole(folder / "md5sum" / name / f"md5.images_{number:03d}.txt") as temporary:
            temporary.write_text(f"{md5}  images_{number:03d}.tar\n", encoding="ascii")


def _write_tar(path: Path, images: Sequence[MadeUpImage], jpegs: Iterable[bytes], advance: Advance) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image, jpeg in zip(images, jpegs, strict=True):
            image_id = image.shot.id
            data = _with_fault(jpeg, image.fault)
            member = tarfile.TarInfo(f"{image_id[0]}/{image_id[1]}/{image_id[2]}/{image_id}.jpg")
            member.size, member.mtime, member.mode = len(data), 1_556_668_800, 0o644
            tar.addfile(member, io.BytesIO(data))
            advance(1)


def _with_fault(jpeg: bytes, fault: str) -> bytes:
    if fault == "cut off":
        return jpeg[: len(jpeg) * 2 // 3]
    if fault == "not an image":
        return b"404: this image has flown south for the winter\n"
    return jpeg
