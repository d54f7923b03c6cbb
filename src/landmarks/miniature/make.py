"""A whole archive in miniature: made-up landmarks photographed by made-up people, in the published layout."""

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

from landmarks.miniature.metadata import AUTHORS, name_of, write_metadata
from landmarks.miniature.monuments import KINDS
from landmarks.miniature.shots import Shot, take
from landmarks.support.console import Advance, note, progress
from landmarks.support.errors import UsageError
from landmarks.support.files import digest_of, held, read_record, write_record, written_whole
from landmarks.support.seeds import generator
from landmarks.support.systems import usable_processors

IMAGES_PER_TAR = 340
WORTH_PROCESSES = 80
"""Images from which on it pays to start other processes."""

FAULTS = ("cut off", "not an image")
"""What is wrong with two files of the train set: a JPEG that ends too soon, and a text named .jpg."""


@dataclass(frozen=True)
class Landmark:
    """A landmark of the miniature: the archive's integer, its kind and which one of that kind, its name."""

    id: int
    kind: str
    number: int
    name: str


@dataclass(frozen=True)
class MadeUpImage:
    """An image of the miniature: how it is taken, what it is said to show, and what is wrong with its file."""

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
    """Write a mirror with `landmarks` made-up landmarks to `folder` and return it; the same seed, the same bytes.

    `images` is the mean number of train images of a landmark; the test set has a fifth of it and
    `unknown` images of nothing in particular. `size` is the images' longer side in pixels. A folder that
    already holds this very miniature is left as it is.
    """
    _check(landmarks=landmarks, images=images, size=size)
    whole = {"landmarks": landmarks, "images": images, "unknown": unknown, "size": size, "seed": seed}
    folder = Path(folder)
    with held(folder):
        marker = folder / "miniature.json"
        if marker.exists() and read_record(marker)["inputs"] == digest_of(whole):
            return folder
        known = choose_landmarks(landmarks, seed)
        train = train_images(known, images, size, seed)
        test = test_images(known, images, unknown, size, seed)
        count = len(train) + len(test)
        with progress("photographing the miniature", count) as advance, _renderers(count) as render_all:
            _write_tars(folder, "train", train, render_all, advance)
            _write_tars(folder, "test", test, render_all, advance)
        write_metadata(folder, known, train, test, seed)
        write_record(marker, whole, verb="demo", inputs=digest_of(whole))
        note(f"miniature: {len(train)} train and {len(test)} test images of {landmarks} landmarks in {folder}")
    return folder


def _check(**at_least_one: int) -> None:
    for name, value in at_least_one.items():
        if value < 1:
            raise UsageError(f"{name} is too small", received=value, expected="1 or more")


def choose_landmarks(count: int, seed: int) -> list[Landmark]:
    """Return `count` landmarks sorted by id; about a sixth of them share their kind with another one."""
    rng = generator(seed, "landmarks")
    kinds = [str(kind) for kind in rng.permutation(sorted(KINDS))][: max(1, math.ceil(0.84 * count))]
    ids = rng.choice(203_094, size=count, replace=False)
    made = [(kinds[i % len(kinds)], i // len(kinds)) for i in range(count)]
    return sorted(
        (Landmark(int(id), kind, number, name_of(kind, number)) for id, (kind, number) in zip(ids, made, strict=True)),
        key=lambda landmark: landmark.id,
    )


def train_images(known: Sequence[Landmark], mean: int, size: int, seed: int) -> list[MadeUpImage]:
    """Return the train set in the order of its TARs: 0.6 to 1.5 times `mean` of each landmark, two files broken."""
    rng = generator(seed, "train")
    spread = np.linspace(0.6, 1.5, len(known)) if len(known) > 1 else np.ones(1)
    counts = np.maximum(1, np.round(rng.permutation(spread) * mean / spread.mean()).astype(int))
    taken = [
        MadeUpImage(shot, (landmark.id,))
        for landmark, count in zip(known, counts, strict=True)
        for shot in _album(("train", landmark.id), ((landmark.kind, landmark.number),), int(count), size, seed)
    ]
    order = [taken[i] for i in rng.permutation(len(taken))]
    for fault, place in zip(
        FAULTS, rng.choice(len(order), size=min(len(FAULTS), len(order)), replace=False), strict=False
    ):
        order[place] = replace(order[place], fault=fault)
    return order


def test_images(known: Sequence[Landmark], mean: int, unknown: int, size: int, seed: int) -> list[MadeUpImage]:
    """Return the test set: a fifth of `mean` of each landmark, some with a second one behind, and `unknown`."""
    rng = generator(seed, "test")
    taken = []
    for landmark in known:
        seen: tuple[tuple[str, int], ...] = ((landmark.kind, landmark.number),)
        for number, shot in enumerate(_album(("test", landmark.id), seen, max(1, mean // 5), size, seed)):
            second = known[int(rng.integers(len(known)))]
            if number % 12 == 5 and second.id != landmark.id:
                both = replace(shot, landmarks=(*seen, (second.kind, second.number)))
                taken.append(MadeUpImage(both, tuple(sorted((landmark.id, second.id)))))
            else:
                taken.append(MadeUpImage(shot, (landmark.id,)))
    taken += [MadeUpImage(shot, ()) for shot in _album(("test", "others"), (), unknown, size, seed)]
    usage = ["Public" if share < 0.35 else "Private" for share in rng.random(len(taken))]
    return [replace(taken[i], usage=usage[i]) for i in rng.permutation(len(taken))]


def _album(
    key: tuple[object, ...], landmarks: tuple[tuple[str, int], ...], count: int, size: int, seed: int
) -> Iterator[Shot]:
    """Yield `count` images by several authors, each of whom comes once or twice and takes bursts now and then."""
    rng = generator(seed, "album", *map(str, key))
    author, visit, stand = "", "", ""
    for number in range(count):
        if not author or rng.random() < 0.16:
            author = AUTHORS[rng.integers(len(AUTHORS))]
            visit = stand = f"{key} {number}"
        elif rng.random() < 0.3 and landmarks:
            pass  # a burst: the same stand once more
        elif rng.random() < 0.45:
            visit = stand = f"{key} {number}"
        else:
            stand = f"{key} {number}"
        image_id = generator(seed, "id", *map(str, key), number).bytes(8).hex()
        yield Shot(image_id, seed, author, visit, stand, landmarks, size)


@contextlib.contextmanager
def _renderers(images: int) -> Iterator[Callable[[Sequence[Shot]], Iterator[bytes]]]:
    """Yield what takes images in order: several processes, or this one where starting others takes longer."""
    processors = usable_processors()
    if images < WORTH_PROCESSES or processors == 1:
        yield lambda shots: map(take, shots)
        return
    with ProcessPoolExecutor(processors, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda shots: pool.map(take, shots, chunksize=8)


def _write_tars(
    folder: Path,
    name: str,
    taken: Sequence[MadeUpImage],
    render_all: Callable[[Sequence[Shot]], Iterator[bytes]],
    advance: Advance,
) -> None:
    """Write one set's TARs and the MD5 file of each."""
    count = max(1, math.ceil(len(taken) / IMAGES_PER_TAR))
    for number in range(count):
        part = taken[number::count]
        jpegs = render_all([image.shot for image in part])
        path = folder / name / f"images_{number:03d}.tar"
        with written_whole(path) as aside:
            _write_tar(aside, part, jpegs, advance)
            md5 = hashlib.md5(aside.read_bytes(), usedforsecurity=False).hexdigest()
        with written_whole(folder / "md5sum" / name / f"md5.images_{number:03d}.txt") as aside:
            aside.write_text(f"{md5}  images_{number:03d}.tar\n", encoding="ascii")


def _write_tar(path: Path, part: Sequence[MadeUpImage], jpegs: Iterable[bytes], advance: Advance) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image, jpeg in zip(part, jpegs, strict=True):
            image_id = image.shot.id
            data = _damaged(jpeg, image.fault)
            member = tarfile.TarInfo(f"{image_id[0]}/{image_id[1]}/{image_id[2]}/{image_id}.jpg")
            member.size, member.mtime, member.mode = len(data), 1_556_668_800, 0o644
            tar.addfile(member, io.BytesIO(data))
            advance(1)


def _damaged(jpeg: bytes, fault: str) -> bytes:
    if fault == "cut off":
        return jpeg[: len(jpeg) * 2 // 3]
    if fault == "not an image":
        return b"404: this image has flown south for the winter\n"
    return jpeg
