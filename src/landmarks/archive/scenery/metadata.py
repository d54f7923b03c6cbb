"""The CSV files that go with the miniature's photographs, written as the archive writes them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from landmarks.archive.scenery.names import LICENSES, SUPERCATEGORIES, category_url
from landmarks.support.files import written_whole
from landmarks.support.seeds import generator

if TYPE_CHECKING:
    from landmarks.archive.miniature import Landmark, Photograph


def write_metadata(
    folder: Path, known: Sequence[Landmark], train: Sequence[Photograph], test: Sequence[Photograph], seed: int
) -> None:
    """Write every CSV of the published layout: landmarks, photographs, their authors and the recognition solution."""
    names = {landmark.id: landmark.name for landmark in known}
    rng = generator(seed, "metadata")
    shuffled = [train[i] for i in rng.permutation(len(train))]
    titles = {photograph.shot.id: _title(names[photograph.landmarks[0]], photograph.shot.id) for photograph in train}
    metadata = folder / "metadata"
    _write(metadata / "train.csv", ["id", "url", "landmark_id"], (
        (p.shot.id, _url(titles[p.shot.id], "http" if rng.random() < 0.3 else "https"), p.landmarks[0])
        for p in shuffled
    ))  # fmt: skip
    _write(metadata / "train_attribution.csv", ["id", "url", "author", "license", "title"], (
        (
            photograph.shot.id,
            f"https://commons.wikimedia.org/wiki/File:{quote(titles[photograph.shot.id].replace(' ', '_'), safe='_')}",
            photograph.shot.author,
            LICENSES[rng.integers(len(LICENSES))],
            f"File:{titles[photograph.shot.id]}",
        )
        for photograph in shuffled
    ))  # fmt: skip
    clean = {photograph.shot.id for photograph in train if not photograph.fault and rng.random() > 0.1}
    _write(metadata / "train_clean.csv", ["landmark_id", "images"], _clean_rows(known, shuffled, clean))
    _write(metadata / "train_label_to_category.csv", ["landmark_id", "category"], (
        (landmark.id, category_url(landmark.name)) for landmark in known
    ))  # fmt: skip
    _write(
        metadata / "train_label_to_hierarchical.csv",
        ["landmark_id", "category", "supercategory", "hierarchical_label", "natural_or_human_made"],
        (_hierarchy(landmark) for landmark in known),
    )
    _write(metadata / "test.csv", ["id"], ((photograph.shot.id,) for photograph in test))
    _write(folder / "ground_truth" / "recognition_solution_v2.1.csv", ["id", "landmarks", "Usage"], (
        (photograph.shot.id, " ".join(map(str, photograph.landmarks)), photograph.usage)
        for photograph in sorted(test, key=lambda photograph: photograph.shot.id)
    ))  # fmt: skip


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with written_whole(path) as aside:
        aside.write_text(text.getvalue(), encoding="utf-8")


def _title(name: str, photo_id: str) -> str:
    return f"{name} ({int(photo_id[:4], 16)}).jpg"


def _url(title: str, scheme: str) -> str:
    return f"{scheme}://upload.wikimedia.org/wikipedia/commons/{quote(title.replace(' ', '_'), safe='_')}"


def _clean_rows(
    known: Sequence[Landmark], photographs: Sequence[Photograph], clean: set[str]
) -> Iterable[tuple[int, str]]:
    for landmark in known:
        ids = [p.shot.id for p in photographs if p.landmarks[0] == landmark.id and p.shot.id in clean]
        if ids:
            yield landmark.id, " ".join(ids)


def _hierarchy(landmark: Landmark) -> tuple[int, str, str, str, str]:
    supercategory = SUPERCATEGORIES[landmark.kind]
    return (
        landmark.id,
        category_url(landmark.name),
        supercategory,
        supercategory.lower(),
        "human-made" if supercategory else "",
    )
