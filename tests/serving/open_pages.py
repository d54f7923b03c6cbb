"""An export that has seen the miniature, and a page of it in a tab."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from toy_export import write_toy_export

from landmarks.dataset.images import ImageError, decode
from landmarks.serving.one_page import pinned_files, read_pinned
from landmarks.support.errors import LandmarksError

AXE = Path(__file__).with_name("axe.lock.json")
PHONE = {"width": 360, "height": 740}


def fetched(lock: Path) -> dict[str, bytes]:
    """Return the pinned files of a package, or skip where npm cannot be had or reaches nothing."""
    pinned = read_pinned(lock)
    try:
        return pinned_files(pinned)
    except LandmarksError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Seen:
    """An export, and the images of the miniature that it was solved on."""

    export: Path
    files: list[Path]
    labels: list[int]
    names: list[str]
    cut_off: Path
    """A JPEG that ends too soon."""
    not_an_image: Path


def export_of_miniature(miniature: Path, folder: Path) -> Seen:
    """Write an export solved on the images of the miniature into `folder`, and the images beside it."""
    table = pl.read_csv(miniature / "metadata" / "train.csv")
    of_image = dict(zip(table["id"], table["landmark_id"], strict=True))
    landmarks = sorted(set(of_image.values()))
    files, labels, images = [], [], []
    broken = {}
    for archive in sorted(miniature.glob("train/*.tar")):
        with tarfile.open(archive) as tar:
            for member in tar:
                if not member.name.endswith(".jpg"):
                    continue
                file = tar.extractfile(member)
                assert file is not None
                path = folder / Path(member.name).name
                path.write_bytes(file.read())
                try:
                    images.append(decode(path.read_bytes()))
                except ImageError as error:
                    broken["cut off" if "truncated" in str(error) else "not an image"] = path
                    continue
                files.append(path)
                labels.append(landmarks.index(of_image[path.stem]))
    names = [f"Landmark {'ABCDEF'[label]} & <b>{label}</b>" for label in range(len(landmarks))]
    credits = {"images": len(images), "licences": {"CC BY 4.0": len(images)}, "authors": ["A <i>Maker</i>"]}
    export = write_toy_export(folder / "toy.onnx", images, labels, names, threshold=0.6, credits=credits)
    return Seen(export, files, labels, names, broken["cut off"], broken["not an image"])


@dataclass
class Opened:
    """A page in a tab, and all that it asked for or complained about."""

    tab: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def give(self, *files: Path) -> None:
        self.tab.set_input_files("#files", [str(file) for file in files])
        self.answered(len(files))

    def answered(self, count: int) -> None:
        """Wait until so many cards are there and none is waiting."""
        self.tab.locator(".card").nth(count - 1).wait_for()
        while self.tab.locator(".card.waiting").count():
            self.tab.wait_for_timeout(20)

    def card(self, position: int = 0) -> Any:
        return self.tab.locator(".card").nth(position)

    def shown(self, position: int = 0) -> dict[str, float]:
        """The answers of a card, name → percent, as they are written."""
        card = self.card(position)
        rows = zip(card.locator(".name").all_inner_texts(), card.locator(".percent").all_inner_texts(), strict=True)
        return {name: float(re.sub(r"[<>% \s]", "", text)) for name, text in rows}


@contextmanager
def opened(browser: Any, page: Path | str, *, offline: bool = True, **context: Any) -> Iterator[Opened]:
    context.setdefault("viewport", {"width": 1280, "height": 900})
    own = browser.new_context(offline=offline, **context)
    tab = own.new_page()
    tab.set_default_timeout(0)  # a busy machine is no failure
    found = Opened(tab)
    tab.on("request", lambda request: found.requests.append(request.url))
    tab.on("console", lambda message: found.complaints.append(message.text))
    tab.on("pageerror", lambda error: found.complaints.append(str(error)))
    tab.on("filechooser", lambda _: None)  # so that choosers are caught from the start, not from the first press on
    tab.goto(page.as_uri() if isinstance(page, Path) else page)
    tab.locator("#state", has_text="Ready").wait_for()
    try:
        yield found
    finally:
        own.close()
