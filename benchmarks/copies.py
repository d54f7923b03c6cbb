"""Copies: which changed images are found, by the hash alone and by comparison; false pairs; speed.

    python benchmarks/copies.py [MIRROR] [--times]
    python benchmarks/copies.py --datasets DATA OTHER

MIRROR is any mirror on disk; without one the miniature archive's images are used. `--times` measures seconds instead,
`--datasets` counts pairs of different landmarks that are joined, within DATA and between it and OTHER.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from grouping import cropped, read_images
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from results import save

from landmarks.dataset import copies as searching
from landmarks.dataset.copies import MOST_SEARCHED, SAME, Copies, find_copies
from landmarks.dataset.groups import RADIUS, near_between, perceptual_hash
from landmarks.dataset.images import decode, encode, resize, shrink
from landmarks.dataset.manifest import open_dataset
from landmarks.dataset.sketches import Sketches, kept_sketches, make_sketch

Pixels = NDArray[np.uint8]

ORIGINALS = 200


def trimmed(left: float, top: float, right: float, bottom: float) -> Callable[[Pixels], Pixels]:
    def change(image: Pixels) -> Pixels:
        height, width = image.shape[:2]
        rows = slice(round(top * height), height - round(bottom * height))
        return image[rows, round(left * width) : width - round(right * width)]

    return change


def framed(share: float, shade: int) -> Callable[[Pixels], Pixels]:
    def change(image: Pixels) -> Pixels:
        width = max(1, round(share * image.shape[0]))
        return decode(encode(np.pad(image, ((width, width), (width, width), (0, 0)), constant_values=shade), 85))

    return change


def font(size: float) -> Any:
    return ImageFont.load_default(size=max(8, int(size)))


def with_text(image: Pixels) -> Pixels:
    canvas, height = Image.fromarray(image), image.shape[0]
    draw = ImageDraw.Draw(canvas)
    at = (0.05 * image.shape[1], 0.78 * height)
    draw.text(at, "Greetings from here", font=font(height / 8), fill="white", stroke_width=2, stroke_fill="black")
    draw.text((at[0], 0.05 * height), "© someone 2019", font=font(height / 14), fill="yellow")
    return decode(encode(np.asarray(canvas), 85))


def captioned(image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    card = Image.new("RGB", (width, height + height // 5), "white")
    card.paste(Image.fromarray(image))
    words = "The old cathedral seen from\nthe market square"
    ImageDraw.Draw(card).text((0.03 * width, 1.03 * height), words, font=font(height / 14), fill="black")
    return decode(encode(np.asarray(card), 85))


def screen(share: float, dark: bool = False, phone: bool = False) -> Callable[[Pixels], Pixels]:
    """Show an image on a screen, at `share` of its width, with a bar above, text above and below, and plain margins."""

    def change(image: Pixels) -> Pixels:
        height, width = image.shape[:2]
        ground, ink = ((24, 24, 28), (230, 230, 230)) if dark else ((250, 250, 250), (30, 30, 30))
        size = (width, height + int(0.7 * width)) if phone else (int(width / share), int(1.12 * height / share))
        left, top = (0, int(0.22 * width)) if phone else ((size[0] - width) // 2, int(0.14 * size[1]))
        shown = Image.new("RGB", size, ground)
        draw = ImageDraw.Draw(shown)
        small = font(size[0] / 24)
        draw.rectangle((0, 0, size[0], 0.07 * size[1]), fill=(60, 90, 160))
        draw.text((6, 0.015 * size[1]), "12:30   photo viewer", font=small, fill="white")
        draw.text((0.04 * size[0], top - size[0] / 14), "somebody, 3 days ago", font=small, fill=ink)
        shown.paste(Image.fromarray(image), (left, top))
        words = "42 likes · what a view from up there\nthis was our second day"
        draw.text((0.04 * size[0], top + height + 4), words, font=small, fill=ink)
        return decode(encode(resize(np.asarray(shown), int(0.9 * size[0]), int(0.9 * size[1])), 80))

    return change


def calendar(image: Pixels) -> Pixels:
    """Show an image above the days of a month, the same for all images."""
    height, width = image.shape[:2]
    sheet = Image.new("RGB", (width, int(1.65 * height)), "white")
    sheet.paste(Image.fromarray(image))
    draw = ImageDraw.Draw(sheet)
    draw.text((0.35 * width, 1.02 * height), "NOVEMBER", font=font(height / 12), fill="red")
    for day in range(30):
        at = (width * (0.04 + 0.135 * (day % 7)), height * (1.13 + 0.1 * (day // 7)))
        draw.text(at, str(day + 1), font=font(height / 16), fill="black")
    return decode(encode(np.asarray(sheet), 85))


def player(image: Pixels) -> Pixels:
    """Show an image on the left and a list of small images on the right, the same for all images."""
    height, width = image.shape[:2]
    shown = Image.new("RGB", (int(width / 0.66), int(1.25 * height)), (15, 15, 15))
    shown.paste(Image.fromarray(image), (int(0.02 * width), int(0.1 * height)))
    ImageDraw.Draw(shown).text((0.03 * width, 1.11 * height), "Holiday video no. 1", font=font(height / 14))
    random, side = np.random.default_rng(5), int(0.2 * shown.width)
    for place in range(5):
        other = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((side, int(0.6 * side)))
        shown.paste(other, (int(0.72 * shown.width), int(0.08 * height + 0.7 * place * side)))
    return decode(encode(np.asarray(shown), 85))


def hue_shifted(image: Pixels) -> Pixels:
    values = np.array(Image.fromarray(image).convert("HSV"))
    values[..., 0] += 60
    return np.asarray(Image.fromarray(values, "HSV").convert("RGB"))


def sepia(image: Pixels) -> Pixels:
    grey = image @ np.array([0.3, 0.59, 0.11])
    return np.clip(grey[..., None] * np.array([1.07, 0.95, 0.75]) + 10, 0, 255).astype(np.uint8)


def brighter(image: Pixels) -> Pixels:
    return np.clip((image.astype(float) - 110) * 1.4 + 140, 0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "half the size": lambda image: shrink(image, max(image.shape) // 2),
    "96 pixels": lambda image: shrink(image, 96),
    "squeezed to 80 %": lambda image: resize(image, image.shape[1], int(0.8 * image.shape[0])),
    "quality 10": lambda image: decode(encode(image, 10)),
    "5 % off each side": cropped(0.05, 4),
    "10 % off each side": trimmed(0.1, 0.1, 0.1, 0.1),
    "5 % off the left": trimmed(0.05, 0, 0, 0),
    "10 % off the left": trimmed(0.1, 0, 0, 0),
    "10 % off the top": trimmed(0, 0.1, 0, 0),
    "10 % off the right": trimmed(0, 0, 0.1, 0),
    "10 % off the bottom": trimmed(0, 0, 0, 0.1),
    "3, 9, 10 and 2 % off": trimmed(0.03, 0.09, 0.1, 0.02),
    "mirrored": lambda image: image[:, ::-1],
    "mirrored, 5 % off each side": lambda image: cropped(0.05, 4)(image)[:, ::-1],
    "without colours": lambda image: np.asarray(Image.fromarray(image).convert("L").convert("RGB")),
    "sepia": sepia,
    "other colours": hue_shifted,
    "saturated": lambda image: np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(2)),
    "darker": lambda image: (255 * (image / 255) ** 1.6).astype(np.uint8),
    "brighter, more contrast": brighter,
    "with text": with_text,
    "with text, 5 % off each side": lambda image: with_text(np.ascontiguousarray(cropped(0.05, 4)(image))),
    "with a caption below": captioned,
    "white frame of 3 %": framed(0.03, 255),
    "black frame of 5 %": framed(0.05, 0),
    "grey frame of 8 %": framed(0.08, 128),
    "screenshot": screen(0.8),
    "dark screenshot": screen(0.65, dark=True),
    "screenshot of a phone": screen(1.0, phone=True),
    "sheet of a calendar": calendar,
    "in a video player": player,
}


def sketches_of(images: list[Pixels]) -> Sketches:
    sketches = [make_sketch(np.ascontiguousarray(image)) for image in images]
    return Sketches(
        pixels=np.stack([each.pixels for each in sketches]),
        whole=np.array([each.whole for each in sketches], np.uint64),
        parts=np.concatenate([each.parts for each in sketches]),
        corners=np.concatenate([each.corners for each in sketches]),
        counts=np.array([len(each.parts) for each in sketches]),
    )


def recall_by_change(images: list[Pixels]) -> list[dict[str, Any]]:
    """Return, for each change, the shares of changed copies found by hash and by comparison, and the false pairs."""
    chosen = np.random.default_rng(0).permutation(len(images))[:ORIGINALS]
    originals = [images[place] for place in chosen]
    hashes = np.array([perceptual_hash(image) for image in originals], np.uint64)
    own = pairs_of(find_copies(sketches_of(originals)))
    rows = []
    for name, change in CHANGES.items():
        copies = [np.ascontiguousarray(change(image)) for image in originals]
        found = find_copies(sketches_of([*originals, *copies]))
        pairs = {(int(i) % len(chosen), int(j) % len(chosen)) for i, j in found.pairs}
        right = sum((place, place) in pairs for place in range(len(chosen)))
        false = {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]} - own
        distances = np.bitwise_count(np.array([perceptual_hash(copy) for copy in copies], np.uint64) ^ hashes)
        row = {"change": name, "by hash": float((distances <= RADIUS).mean()), "found": right / len(chosen)}
        rows.append(row | {"other pairs": len(false)})
        print(rows[-1], flush=True)
    return rows


def pairs_of(found: Copies) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in found.pairs}


def times(images: list[Pixels]) -> list[dict[str, Any]]:
    """Return the seconds of each stage for some thousand images, and extrapolated to a million."""
    started = time.process_time()
    sketches = sketches_of(images)
    sketching = (time.process_time() - started) / len(images)
    started = time.process_time()
    found = find_copies(sketches)
    comparing = time.process_time() - started
    rows: list[dict[str, Any]] = [
        {
            "what": "candidates compared",
            "images": len(images),
            "seconds": comparing,
            "how": f"{found.compared:,} pairs",
        },
        {"what": "sketches", "images": 10_000, "seconds": 10_000 * sketching, "how": f"from {len(images):,}"},
        {
            "what": "candidates compared",  # by far the most are an image's few by shape
            "images": 10_000,
            "seconds": 10_000 / len(images) * comparing,
            "how": "in proportion",
        },
    ]
    radius = next(radius for radius, most in MOST_SEARCHED.items() if most >= 1_000_000)
    parts, whole = made_up_hashes(sketches, 1_000_000)
    started, wall = time.process_time(), time.perf_counter()
    hits = sum(len(query) for query, _ in near_between(parts, whole, radius))
    rows.append(
        {
            "what": "candidates found",
            "images": 1_000_000,
            "seconds": time.process_time() - started,
            "how": f"{len(parts):,} parts within {radius} bits: {hits:,} hits, in {time.perf_counter() - wall:.0f} s",
        }
    )
    rows.append({"what": "sketches", "images": 1_000_000, "seconds": 1e6 * sketching, "how": f"from {len(images):,}"})
    return rows


def made_up_hashes(sketches: Sketches, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the hashes of all parts, and those of the whole, of `count` made-up images.

    They mix the bits of two real images at random. Fewer of them are near one another than of real ones.
    """
    random = np.random.default_rng(0)
    source, second = random.integers(0, len(sketches.whole), (2, count))
    mask = random.integers(0, 2**64, count, dtype=np.uint64)
    begins = np.cumsum(sketches.counts) - sketches.counts
    whole = (sketches.whole[source] & mask) | (sketches.whole[second] & ~mask)
    counts = np.minimum(sketches.counts[source], sketches.counts[second])
    owner = np.repeat(np.arange(count), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first, other = (sketches.parts[begins[each[owner]] + number] for each in (source, second))
    return (first & mask[owner]) | (other & ~mask[owner]), whole


def joined_by_mistake(data: Path, other: Path) -> list[dict[str, Any]]:
    """Return how many pairs of images of different landmarks, and of a landmark and anything else, are joined."""
    ours, theirs = (open_dataset(folder) for folder in (data, other))
    sketches = [kept_sketches(dataset, dataset.images) for dataset in (ours, theirs)]
    assert sketches[0] is not None and sketches[1] is not None
    searching.SAME = -1.0  # every pair that is compared is returned
    rows = []
    for where, datasets, found in (
        ("within DATA", [ours], find_copies(sketches[0])),
        (
            "DATA and OTHER",
            [ours, theirs],
            find_copies(
                sketches[0].joined(sketches[1]),
                side=np.repeat([1, 0], [len(ours.images), len(theirs.images)]),
            ),
        ),
    ):
        images = pl.concat([dataset.images.select("image_id", "landmark_id") for dataset in datasets])
        landmark = images["landmark_id"].fill_null(-1).to_numpy()
        first, second = landmark[found.pairs].T
        known = np.minimum(first, second) >= 0
        for what, chosen in (
            ("two landmarks", (first != second) & known),
            ("a landmark and anything else", (first != second) & ~known),
        ):
            joined = found.pairs[chosen & (found.agreement >= SAME)]
            pairs = ", ".join(" and ".join(images["image_id"].gather(pair)) for pair in joined)
            row = {"where": where, "pairs of": what, "compared": int(chosen.sum()), "joined": len(joined)}
            rows.append(row | {"which": pairs})
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("mirror", type=Path, nargs="?")
    options.add_argument("--times", action="store_true")
    options.add_argument("--datasets", type=Path, nargs=2, metavar=("DATA", "OTHER"))
    chosen = options.parse_args()
    if chosen.datasets:
        save("copies-joined", joined_by_mistake(*chosen.datasets), datasets=[path.name for path in chosen.datasets])
        return
    with tempfile.TemporaryDirectory() as temporary:
        if chosen.mirror is None:
            from landmarks.miniature.make import make_miniature

            images = read_images(make_miniature(Path(temporary) / "mirror"))
        else:
            images = read_images(chosen.mirror)
    origin = "images of a mirror" if chosen.mirror else "the miniature archive"
    if chosen.times:
        save("copies-times", times(images), origin=origin)
    else:
        name = "copies" if chosen.mirror else "copies-miniature"
        save(name, recall_by_change(images), images=len(images), originals=ORIGINALS, origin=origin)


if __name__ == "__main__":
    main()
