"""A mirror of CSV files alone, small enough to be read by eye, for the tests of `select`."""

from __future__ import annotations

import csv
from pathlib import Path

COMMONS = "http://commons.wikimedia.org/wiki/Category:"

IMAGES = {7: 6, 3: 4, 9: 4, 1: 3, 20: 1}
"""Landmark → images in train.csv; 3 and 9 tie."""

NAMES = {
    7: "Saint_Peter%27s_Basilica",
    3: "Colosseum_(Rome)",
    9: "Sparkassen-Arena,_G%C3%B6ttingen",
    1: "Obersee_(K%C3%B6nigssee)",
    20: "Media_contributed_by_the_ETH-Bibliothek",
}


def image(landmark: int, number: int) -> str:
    return f"{landmark:08x}{number:08x}"


def write_mirror(folder: Path, *, optional: bool = True) -> Path:
    """Write the CSVs; without `optional` only train.csv."""
    rows = [(landmark, number) for landmark, images in IMAGES.items() for number in range(images)]
    rows.sort(key=lambda row: row[1])  # unsorted by landmark, as the published file
    _write(
        folder / "metadata/train.csv",
        ["id", "url", "landmark_id"],
        [(image(*row), f"https://upload.example/{row[1]}%2C.jpg", row[0]) for row in rows],
    )
    if optional:
        _write_optional(folder, rows)
    return folder


def _write_optional(folder: Path, rows: list[tuple[int, int]]) -> None:
    _write(
        folder / "metadata/train_clean.csv",
        ["landmark_id", "images"],
        [(7, " ".join(image(7, n) for n in range(2))), (9, " ".join(image(9, n) for n in range(3)))],
    )
    _write(
        folder / "metadata/train_label_to_category.csv",
        ["landmark_id", "category"],
        [(landmark, COMMONS + name) for landmark, name in NAMES.items()],
    )
    _write(
        folder / "metadata/train_label_to_hierarchical.csv",
        ["landmark_id", "category", "supercategory", "hierarchical_label", "natural_or_human_made"],
        [
            (7, COMMONS + NAMES[7], "church", "church", "human-made"),
            (3, COMMONS + NAMES[3], "ruins", "ruins", "human-made"),
            (9, COMMONS + NAMES[9], "sports", "sports venue", "human-made"),
            (1, COMMONS + NAMES[1], "lake", "lake", "natural"),
            (20, COMMONS + NAMES[20], "", "", ""),
        ],
    )
    licences = ("https://creativecommons.org/licenses/by/2.0", "https://creativecommons.org/licenses/by-sa/3.0")
    _write(
        folder / "metadata/train_attribution.csv",
        ["id", "url", "author", "license", "title"],
        [
            (image(*row), "https://x", f'Ann "the lens", {row[0]}', licences[row[1] % 2], f"File:{row[1]}\n.jpg")
            for row in rows
            if row != (7, 5)  # the published file does not name everyone
        ],
    )
    _write(
        folder / "ground_truth/recognition_solution_v2.1.csv",
        ["id", "landmarks", "Usage"],
        [
            ("a" * 16, "7", "Public"),
            ("b" * 16, "3 9", "Private"),
            ("c" * 16, "", "Private"),
            ("d" * 16, "", "Public"),
            ("e" * 16, "555", "Public"),
            ("f" * 16, "9", "Private"),
        ],
    )


def _write(file: Path, header: list[str], rows: list[tuple[object, ...]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
