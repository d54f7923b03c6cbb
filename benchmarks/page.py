"""The one-file page in Chromium, from disk, without network: size, time of the first answer, agreement with Python.

    python benchmarks/page.py NAME.onnx FOLDER [--images 100] [--slower 4] [--rounds 3] [--chromium PATH]

FOLDER holds image files. Measured are the time from opening the page to its first answer, with an image given at once,
and the time of each further answer, in turns at full speed and on a processor made `--slower` times slower. For that
the renderer process, with all its threads, is stopped for the rest of each 40 ms, because the throttling of Chromium's
developer tools leaves workers at full speed. Agreement is with `landmarks.load(NAME.onnx)` on the same files, each side
with its own decoder.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import sync_playwright
from results import save

import landmarks
from landmarks.dataset.sources import find_images
from landmarks.serving.one_page import write_page

PERIOD = 0.04


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--slower", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    chosen = parser.parse_args()
    files = find_images([chosen.folder])[: chosen.images]
    recogniser = landmarks.load(chosen.export)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        written = write_page(chosen.export, Path(folder) / "page.html")
        browser = playwright.chromium.launch(
            executable_path=chosen.chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        times: dict[float, list[tuple[float, float]]] = {1.0: [], chosen.slower: []}
        for _ in range(chosen.rounds):
            for slower, found in times.items():
                with opened(browser, written.path) as (tab, _), slowed(browser, tab, slower):
                    found.append(first_and_next(tab, written.path, files))
        with opened(browser, written.path) as (tab, urls):
            tab.goto(written.path.as_uri())
            shown = [answer(tab, file) for file in files]
            requests = [url for url in urls if not url.startswith("blob:")]
        browser.close()
    rows = []
    for slower, found in times.items():
        first, later = (statistics.median(values) for values in zip(*found, strict=True))
        rows.append({"slower": slower, "first_answer_seconds": first, "next_answer_seconds": later})
    expected = [recogniser.recognise(file) for file in files]
    pairs = list(zip(shown, expected, strict=True))
    same = [name == image.answers[0].name for (name, _, _), image in pairs]
    differences = [abs(percent - 100 * image.answers[0].probability) for (_, percent, _), image in pairs]
    save(
        "page",
        rows,
        page_megabytes=written.bytes / 1e6,
        network_megabytes=written.network_bytes / 1e6,
        runtime_megabytes=written.runtime_bytes / 1e6,
        images=len(files),
        same_best_answer=sum(same),
        same_known=sum(known == (image.known is not False) for (_, _, known), image in pairs),
        mean_difference_percent=statistics.mean(differences),
        largest_difference_percent=max(differences),
        requests_beside_the_page=len(requests) - 1,
    )
    print(f"{written.bytes / 1e6:.2f} MB; same best answer {sum(same)} of {len(files)}; requests {requests}")


@contextlib.contextmanager
def opened(browser: Any, page: Path) -> Iterator[tuple[Any, list[str]]]:
    """Yield an empty tab with a renderer of its own, and the list of the URLs that it requests."""
    context = browser.new_context(offline=True)
    tab = context.new_page()
    tab.set_default_timeout(0)
    urls: list[str] = []
    tab.on("request", lambda request: urls.append(request.url))
    tab.goto("about:blank")
    try:
        yield tab, urls
    finally:
        context.close()


def first_and_next(tab: Any, page: Path, files: list[Path]) -> tuple[float, float]:
    """Return the seconds from opening the page to its first answer, and the median of the five after it."""
    started = time.perf_counter()
    tab.goto(page.as_uri())
    answer(tab, files[0])
    first = time.perf_counter() - started
    later = []
    for file in files[1:6]:
        started = time.perf_counter()
        answer(tab, file)
        later.append(time.perf_counter() - started)
    return first, statistics.median(later)


def answer(tab: Any, file: Path) -> tuple[str, float, bool]:
    """Upload an image; return the best answer's name, its percentage and whether the image counts as known."""
    before = tab.locator(".card").count()
    tab.set_input_files("#files", str(file))
    tab.locator(".card").nth(before).wait_for()
    card = tab.locator(".card").first
    card.locator("h2").wait_for()
    name, percent = card.locator(".name").first.inner_text(), card.locator(".percent").first.inner_text()
    return name, float(re.sub(r"[<>%\s]", "", percent)), "unknown" not in card.get_attribute("class").split()


@contextlib.contextmanager
def slowed(browser: Any, tab: Any, times: float) -> Iterator[None]:
    """Let a tab's renderer process run for only 1/`times` of the time."""
    if times == 1:
        yield
        return
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    ids = [process["id"] for process in processes]
    renderers = [psutil.Process(id) for id in ids if "--type=renderer" in psutil.Process(id).cmdline()]
    done = threading.Event()

    def stop_and_go() -> None:
        while not done.is_set():
            for process in renderers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGSTOP)
            time.sleep(PERIOD * (1 - 1 / times))
            for process in renderers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)
            time.sleep(PERIOD / times)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
