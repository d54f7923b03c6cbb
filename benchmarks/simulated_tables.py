"""CSV files of the true size for the simulated archive: 4,132,914 rows with realistic class sizes.

    python benchmarks/simulated_tables.py FOLDER [--attribution]

The published facts are met exactly: the number of classes of each size up to 8, of 9 or 10 and of more; the largest;
ranks 34 to 55; the 100 classes at ranks 50 to 149 with 76,316 images, the smallest of 595 (the publications name 976 as
the 50th largest class and 975 as the first of the hundred; 976 is taken for both). The other sizes follow two smooth
curves whose parameters were fitted to the true mean, variance and skewness.
"""

from __future__ import annotations

import argparse
import binascii
from pathlib import Path

import numpy as np
import polars as pl
from simulated_archive import Archive

LANDMARKS = 203_094
SMALL = {1: 18_894, 2: 17_737, 3: 15_804, 4: 13_526, 5: 11_402, 6: 9_976, 7: 8_759, 8: 7_654, 9: 6_600, 10: 5_938}
LARGEST = 10_247
FROM_RANK_34 = (1108, 1107, 1093, 1093, 1088, 1056, 1048, 1047, 1045, 1037, 1032, 1027, 1017, 1000, 986, 978, 976, 975)
FROM_RANK_34 += (968, 961, 947, 946)
HUNDRED = 76_316
CLEAN_LANDMARKS, CLEAN_IMAGES, CLEAN_LARGEST = 81_313, 1_580_470, 6_272
NO_LANDMARK = 138_982
"""The largest class, which is no landmark."""


def class_sizes(images: int = 4_132_914) -> np.ndarray:
    """Return the number of images of each of the 203,094 classes, in descending order."""
    ranks = np.arange(2, 34)
    large = np.rint(1109 + (3654.69 - 1109) * ((33.5 - ranks) / 31.5) ** 3).astype(np.int64)
    hundred = np.rint(946 - (946 - 595) * (np.arange(1, 95) / 94) ** 0.81223).astype(np.int64)
    hundred[40] += HUNDRED - sum(FROM_RANK_34[16:]) - hundred.sum()
    small = np.repeat(list(SMALL), list(SMALL.values()))
    count = LANDMARKS - 1 - len(large) - len(FROM_RANK_34) - len(hundred) - len(small)
    shift, exponent = 27.2020590, 1 - 3.18725452
    low, high = (10.5 + shift) ** exponent, (595.4 + shift) ** exponent
    tail = (low + (np.arange(count) + 0.5) / count * (high - low)) ** (1 / exponent) - shift
    tail = np.rint(tail).astype(np.int64).clip(11, 594)
    missing = images - (LARGEST + large.sum() + sum(FROM_RANK_34) + hundred.sum() + tail.sum() + small.sum())
    middle = np.argsort(np.abs(tail - 40), kind="stable")[: abs(missing)]
    tail[middle] += np.sign(missing)
    return np.sort(np.concatenate(([LARGEST], large, FROM_RANK_34, hundred, tail, small)))[::-1].copy()


def write_tables(folder: Path, archive: Archive, *, attribution: bool = False) -> None:
    """Write `metadata/train.csv`, `train_clean.csv`, `train_label_to_category.csv` and optionally the attribution."""
    generator = np.random.default_rng(archive.seed)
    sizes = class_sizes(archive.images)
    landmarks = generator.permutation(LANDMARKS)
    swap = int(np.flatnonzero(landmarks == NO_LANDMARK)[0])
    landmarks[[0, swap]] = landmarks[[swap, 0]]
    shown = generator.permutation(np.repeat(landmarks, sizes))  # shuffled, so every class is spread over all TARs
    rows = pl.DataFrame({"image_id": as_text(archive.ids()), "landmark_id": shown})
    rows = rows[generator.permutation(len(rows))]
    metadata = folder / "metadata"
    metadata.mkdir(parents=True, exist_ok=True)
    titles = pl.Series([f"{a}_{b}_{c}" for a in _WORDS for b in _WORDS for c in _WORDS])
    titles = titles.gather(generator.integers(0, len(titles), len(rows))).alias("title")
    rows = rows.with_columns(titles)
    file = "https://upload.wikimedia.org/wikipedia/commons/{}/{}/{}_{}.jpg"
    id = pl.col("image_id")
    url = pl.format(file, id.str.slice(3, 1), id.str.slice(3, 2), "title", id.str.slice(0, 6)).alias("url")
    rows.select("image_id", url, "landmark_id").write_csv(metadata / "train.csv")
    _write_clean(metadata, rows, sizes, landmarks, generator)
    categories = [f"http://commons.wikimedia.org/wiki/Category:{_name(landmark)}" for landmark in range(LANDMARKS)]
    pl.DataFrame({"landmark_id": range(LANDMARKS), "category": categories}).write_csv(
        metadata / "train_label_to_category.csv"
    )
    if attribution:
        _write_attribution(metadata, rows)


def as_text(ids: np.ndarray) -> list[str]:
    """Return ids of 64 bits as 16 hexadecimal digits each."""
    digits = binascii.hexlify(ids.astype(">u8").tobytes()).decode()
    return [digits[start : start + 16] for start in range(0, len(digits), 16)]


_WORDS = (
    "Abbey",
    "Bridge_of",
    "Ch%C3%A2teau",
    "Old_Town_Hall",
    "View_from_the",
    "Monument_to",
    "%281904%29",
    "in_winter",
)


def _name(landmark: int) -> str:
    if landmark == NO_LANDMARK:
        return "Media_contributed_by_the_ETH-Bibliothek"
    first, second = _WORDS[landmark % 8], _WORDS[landmark // 8 % 8]
    return f"{first}_{second},_{landmark}" if landmark % 9 == 0 else f"{first}_{second}_{landmark}"


def _write_clean(
    metadata: Path, rows: pl.DataFrame, sizes: np.ndarray, landmarks: np.ndarray, generator: np.random.Generator
) -> None:
    """Write the clean set: 81,313 classes, each with about the same share of its images, 1,580,470 in total."""
    candidates = np.flatnonzero(sizes >= 2)[1:]
    kept = np.concatenate(([0], np.sort(generator.choice(candidates, CLEAN_LANDMARKS - 1, replace=False))))
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        low, high = (share, high) if _shares(sizes[kept], share).sum() <= CLEAN_IMAGES else (low, share)
    counts = _shares(sizes[kept], low)
    extendable = np.flatnonzero(counts < sizes[kept])[1:]
    counts[extendable[: CLEAN_IMAGES - counts.sum()]] += 1
    wanted = pl.DataFrame({"landmark_id": landmarks[kept], "count": counts})
    lists = rows.select("image_id", "landmark_id").join(wanted, on="landmark_id").group_by("landmark_id")
    images = lists.agg(images=pl.col("image_id").sort().head(pl.col("count").first()).str.join(" "))
    images.sort("landmark_id").write_csv(metadata / "train_clean.csv")


def _shares(sizes: np.ndarray, share: float) -> np.ndarray:
    counts = np.clip((sizes * share).astype(np.int64), 2, None)
    counts[0] = CLEAN_LARGEST
    return counts


def _write_attribution(metadata: Path, rows: pl.DataFrame) -> None:
    """Write author, licence and title of all images, some with quotes and commas as in the published file."""
    id = pl.col("image_id")
    page = pl.format("https://commons.wikimedia.org/wiki/File:{}_{}.jpg", "title", id.str.slice(0, 6))
    author = pl.when(id.str.ends_with("0")).then(pl.format('Photo "{}", Commons', id.str.slice(5, 4)))
    author = author.otherwise(pl.format("Photographer {}", id.str.slice(5, 4)))
    rows.select(
        "image_id",
        url=page,
        author=author,
        license=pl.format("https://creativecommons.org/licenses/by-sa/{}.0", pl.when(id.gt("8")).then(3).otherwise(2)),
        title=pl.format("File:{} {}.jpg", "title", id.str.slice(0, 6)),
    ).write_csv(metadata / "train_attribution.csv")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--attribution", action="store_true")
    chosen = options.parse_args()
    write_tables(chosen.folder, Archive(chosen.seed), attribution=chosen.attribution)


if __name__ == "__main__":
    main()
