"""The pictures of the README, made anew from what `landmarks demo` wrote.

    python docs/pictures/make.py DEMO

DEMO is the folder of a demonstration (`landmarks demo -o DEMO`). The report is photographed as it stands, a sheet of
heat maps is taken from its run, and a page of the run answers one of the made-up test images, as wide as a phone and
from a `file:` address. Needs Chromium (`playwright install chromium`, or one that is in the path).
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

import landmarks

HERE = Path(__file__).parent
RUN = "resnet18"
WIDTH = 900
"""Of every picture, in pixels, at most."""


def main(demo: Path) -> None:
    """Write the three pictures beside this file."""
    with sync_playwright() as started, tempfile.TemporaryDirectory() as folder:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"))
        keep("report", report(browser, demo / "report.html"))
        drawn = landmarks.explain(demo / RUN, data=demo / "test", count=6)["made"]
        keep("heat-map", (demo / RUN / "maps" / drawn[0]["image"]).read_bytes())
        landmarks.unpack(demo / "test", Path(folder) / "files")
        page = Path(folder) / "page.html"
        landmarks.export_page(demo / RUN, page)
        asked = next(
            path for path in sorted((Path(folder) / "files").rglob("*.jpg")) if drawn[0]["image_id"] in path.name
        )
        keep("page", answered(browser, page, asked))
        browser.close()


def report(browser: Any, path: Path) -> bytes:
    """Return the first screen of a report, as PNG."""
    tab = browser.new_page(viewport={"width": 1100, "height": 900})
    tab.goto(path.resolve().as_uri())
    shown: bytes = tab.screenshot()
    return shown


def answered(browser: Any, path: Path, image: Path) -> bytes:
    """Return a page after it has answered an image, on a screen of a phone's width, as PNG."""
    tab = browser.new_context(offline=True, viewport={"width": 400, "height": 1000}, device_scale_factor=2).new_page()
    tab.goto(path.as_uri())
    tab.locator("#state", has_text="Ready").wait_for(timeout=0)
    tab.set_input_files("#files", str(image))
    tab.locator("#state", has_text="Ready for the next image").wait_for(timeout=0)
    shown: bytes = tab.screenshot()
    return shown


def keep(name: str, picture: bytes) -> None:
    """Write a picture, at most `WIDTH` wide, with few colours: it is looked at small."""
    with Image.open(io.BytesIO(picture)) as image:
        small = image.convert("RGB")
        small.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
        small.quantize(192, Image.Quantize.MEDIANCUT).save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
