"""Near-duplicates: which changed copies the hash finds, how fast a million hashes are compared, and its recall.

    python benchmarks/grouping.py [MIRROR]

MIRROR is any mirror on disk; without one the miniature archive's images are used.
"""

from __future__ import annotations

import argparse
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image
from results import save
from scipy.stats import norm

from landmarks.dataset.groups import RADIUS, RADIUS_ACROSS, group_images, near_pairs, perceptual_hash
from landmarks.dataset.images import ImageError, decode, encode, resize, shrink

COPIES = 600
RADII = (0, 2, 4, 6, 8, 10, 12)


def cropped(share: float, sides: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(image: np.ndarray) -> np.ndarray:
        down, across = (max(1, round(share * side)) for side in image.shape[:2])
        return image[down:-down, across:-across] if sides == 4 else image[:, across:]

    return change


def bordered(share: float, shade: int, sides: int = 4) -> Callable[[np.ndarray], np.ndarray]:
    def change(image: np.ndarray) -> np.ndarray:
        width = max(1, round(share * image.shape[0]))
        across = width if sides == 4 else 0
        framed = np.pad(image, ((width, width), (across, across), (0, 0)), constant_values=shade)
        return decode(encode(framed, 85))

    return change


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "half the size": lambda image: shrink(image, max(image.shape) // 2),
    "96 pixels": lambda image: shrink(image, 96),
    "twice the size": lambda image: resize(image, 2 * image.shape[1], 2 * image.shape[0]),
    "quality 30": lambda image: decode(encode(image, 30)),
    "quality 10": lambda image: decode(encode(image, 10)),
    "without colours": lambda image: np.asarray(Image.fromarray(image).convert("L").convert("RGB")),
    "darker": lambda image: (255 * (image / 255) ** 1.3).astype(np.uint8),
    "1 % off each side": cropped(0.01, 4),
    "2.5 % off each side": cropped(0.025, 4),
    "5 % off each side": cropped(0.05, 4),
    "5 % off one side": cropped(0.05, 1),
    "10 % off one side": cropped(0.10, 1),
    "white frame of 3 %": bordered(0.03, 255),
    "black frame of 5 %": bordered(0.05, 0),
    "grey frame of 8 %": bordered(0.08, 128),
    "bars of 8 % above and below": bordered(0.08, 0, sides=2),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("mirror", type=Path, nargs="?")
    with tempfile.TemporaryDirectory() as temporary:
        mirror = options.parse_args().mirror
        if is_miniature := mirror is None:
            from landmarks.miniature.make import make_miniature

            mirror = make_miniature(Path(temporary) / "mirror")
        images = read_images(mirror)
    origin = "the miniature archive" if is_miniature else "images of a mirror"
    hashes = np.array([perceptual_hash(image) for image in images], np.uint64)
    save("grouping-robustness", robustness(images, hashes), images=len(images), origin=origin, radius=RADIUS)
    save("grouping-speed", speed(hashes), radius=RADIUS, radius_across=RADIUS_ACROSS, origin=origin)


def read_images(mirror: Path) -> list[np.ndarray]:
    images = []
    for path in sorted(mirror.glob("t*/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if not (file := tar.extractfile(member)):
                    continue
                try:
                    images.append(decode(file.read()))
                except ImageError as error:
                    print(f"{member.name}: {error}")
    return images


def robustness(images: list[np.ndarray], hashes: np.ndarray) -> list[dict[str, Any]]:
    """Return the share of changed copies within each radius and, in the last row, of pairs of different images."""
    chosen = np.random.default_rng(0).permutation(len(images))[:COPIES]
    rows = []
    for name, change in CHANGES.items():
        copies = np.array([perceptual_hash(change(images[position])) for position in chosen], np.uint64)
        rows.append({"change": name, **shares(np.bitwise_count(copies ^ hashes[chosen]))})
    distances = [np.bitwise_count(hashes[position] ^ hashes[position + 1 :]) for position in range(len(hashes))]
    return [*rows, {"change": "none: two images", **shares(np.concatenate(distances))}]


def shares(distances: np.ndarray) -> dict[str, float]:
    return {f"within {radius}": float((distances <= radius).mean()) for radius in RADII}


def speed(hashes: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for count, radius in ((20_000, RADIUS), (1_000_000, RADIUS_ACROSS), (1_000_000, RADIUS)):
        made_up = made_up_hashes(hashes, count)
        start = now()
        pairs = near_pairs(made_up, radius)
        row = {"what": "near_pairs", "hashes": count, "radius": radius, "pairs": len(pairs)}
        row["recall"] = recall(made_up, pairs, radius) if count <= 20_000 else "not compared"
        rows.append(row | measured(start))
    count = 1_000_000
    random = np.random.default_rng(1)
    images = pl.DataFrame(
        {
            "landmark_id": (50_000 * random.random(count) ** 3).astype(np.int64),
            "phash": made_up_hashes(hashes, count),
            "author": random.integers(0, 100_000, count).astype(str),
        }
    )
    start = now()
    grouping = group_images(images)
    row = {"what": "groups", "hashes": count, "radius": RADIUS, "pairs": grouping.near_duplicates, "recall": "–"}
    return [*rows, row | measured(start)]


def made_up_hashes(hashes: np.ndarray, count: int) -> np.ndarray:
    """Draw hashes whose bits have the means and correlations of those in `hashes`, by a Gaussian copula."""
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).astype(float)
    values, vectors = np.linalg.eigh(np.sin(np.pi / 2 * np.corrcoef(bits.T)))
    mix = vectors * np.sqrt(np.clip(values, 0, None))
    threshold = norm.ppf(1 - bits.mean(axis=0))
    random = np.random.default_rng(0)
    drawn = [
        np.packbits(random.standard_normal((min(100_000, count), 64)) @ mix.T > threshold, axis=1)
        for _ in range(0, count, 100_000)
    ]
    return np.concatenate(drawn).view(np.uint64).ravel()


def recall(hashes: np.ndarray, pairs: np.ndarray, radius: int) -> float:
    """Return the share of all pairs within `radius`, counted by brute force, that `pairs` holds."""
    total = 0
    for position, each in enumerate(hashes):
        total += int((np.bitwise_count(each ^ hashes[position + 1 :]) <= radius).sum())
    assert (np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= radius).all()
    return len(pairs) / total if total else 1.0


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measured(start: tuple[float, float]) -> dict[str, float]:
    seconds, processor = (round(end - begin, 1) for begin, end in zip(start, now(), strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"seconds": seconds, "processor_seconds": processor, "peak_memory_mb_so_far": round(peak)}


if __name__ == "__main__":
    main()
