"""The one-file page in Chromium, from disk, network off: size, first answer, and whether it says what Python says.

    python benchmarks/page.py NAME.onnx FOLDER [--images 100] [--slower 4] [--rounds 3] [--chromium PATH]

FOLDER holds image files. Times are from the opening of the file to the answer on the screen, with an image given at
once, and of each further image; in turns at full speed and on a processor made `--slower` times slower: the renderer's
process, all its threads, is stopped for the rest of each 40 ms (the slow-down of Chromium's developer tools leaves
workers at full speed). Agreement is with `landmarks.load(NAME.onnx)` on the same files, each side with its own decoder.
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
        with opened(browser, written.path) as (tab, asked):
            tab.goto(written.path.as_uri())
            shown = [answer(tab, file) for file in files]
            requests = [url for url in asked if not url.startswith("blob:")]
        browser.close()
    rows = []
    for slower, found in times.items():
        first, later = (statistics.median(values) for values in zip(*found, strict=True))
        rows.append({"slower": slower, "first_answer_seconds": first, "next_answer_seconds": later})
    said = [recogniser.recognise(file) for file in files]
    same = [seen[0] == one.answers[0].name for seen, one in zip(shown, said, strict=True)]
    apart = [abs(seen[1] - 100 * one.answers[0].probability) for seen, one in zip(shown, said, strict=True)]
    save(
        "page",
        rows,
        page_megabytes=written.bytes / 1e6,
        network_megabytes=written.network_bytes / 1e6,
        runtime_megabytes=written.runtime_bytes / 1e6,
        images=len(files),
        same_best_answer=sum(same),
        same_known=sum(seen[2] == (one.known is not False) for seen, one in zip(shown, said, strict=True)),
        mean_difference_percent=statistics.mean(apart),
        largest_difference_percent=max(apart),
        requests_beside_the_page=len(requests) - 1,
    )
    print(f"{written.bytes / 1e6:.2f} MB; same best answer {sum(same)} of {len(files)}; requests {requests}")


@contextlib.contextmanager
def opened(browser: Any, page: Path) -> Iterator[tuple[Any, list[str]]]:
    """Yield an empty tab of its own renderer, and the addresses that it asks for."""
    context = browser.new_context(offline=True)
    tab = context.new_page()
    tab.set_default_timeout(0)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto("about:blank")
    try:
        yield tab, asked
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
    """Give an image; return the best answer's name, its percent and whether it is called known."""
    before = tab.locator(".card").count()
    tab.set_input_files("#files", str(file))
    tab.locator(".card").nth(before).wait_for()
    card = tab.locator(".card").first
    card.locator("h2").wait_for()
    name, percent = card.locator(".name").first.inner_text(), card.locator(".percent").first.inner_text()
    return name, float(re.sub(r"[<>%\s]", "", percent)), "unknown" not in card.get_attribute("class").split()


@contextlib.contextmanager
def slowed(browser: Any, tab: Any, times: float) -> Iterator[None]:
    """Let the renderer of a tab run for one in `times` parts of the time."""
    if times == 1:
        yield
        return
    ids = [one["id"] for one in browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]]
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
