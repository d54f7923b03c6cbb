"""The one-file page in a real browser, from disk, with the network off: what a person sees, hears and does with it."""

from __future__ import annotations

import http.server
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_pages import AXE, PHONE, Seen, export_of_miniature, fetched, opened
from PIL import Image
from toy_export import answer_of, write_toy_export

from landmarks.dataset.images import decode
from landmarks.serving.one_page import RUNTIME, write_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return export_of_miniature(miniature, tmp_path_factory.mktemp("seen"))


@pytest.fixture(scope="module")
def page(seen: Seen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fetched(RUNTIME)  # or the reason why not
    return write_page(seen.export, tmp_path_factory.mktemp("page") / "page.html").path


def expected(seen: Seen, pixels: np.ndarray[Any, Any]) -> dict[str, float]:
    found = answer_of(seen.export, pixels)
    return {seen.names[label]: 100 * found["probabilities"][0, label] for label in found["best"][0]}


def assert_alike(shown: dict[str, float], by_python: dict[str, float], percent: float) -> None:
    assert next(iter(shown)) == next(iter(by_python))
    assert set(shown) & set(by_python)
    for name in set(shown) & set(by_python):
        assert abs(shown[name] - by_python[name]) <= percent


@pytest.mark.parametrize("size", [{"width": 1280, "height": 900}, PHONE])
def test_it_recognises_as_python_does_and_asks_for_nothing(
    browser: Any, page: Path, seen: Seen, size: dict[str, int], tmp_path: Path
) -> None:
    lossless = tmp_path / "lossless.png"
    Image.open(seen.files[7]).save(lossless)
    with opened(browser, page, viewport=size) as it:
        it.give(lossless, *seen.files[:8:2])
        assert list(it.shown(0)) == list(expected(seen, decode(lossless.read_bytes())))
        assert_alike(it.shown(0), expected(seen, decode(lossless.read_bytes())), 0.1)
        for position, file in enumerate(seen.files[:8:2], 1):  # through the browser's own decoder
            assert_alike(it.shown(position), expected(seen, decode(file.read_bytes())), 3)
        assert it.tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert [url for url in it.requests if not url.startswith("blob:")] == [page.as_uri()]
        assert it.complaints == []


def test_a_photograph_on_its_side_and_a_transparent_image_are_seen_as_python_sees_them(
    browser: Any, page: Path, seen: Seen, tmp_path: Path
) -> None:
    upright = Image.open(seen.files[3])
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "side.jpg", quality=95, exif=exif)
    see_through = upright.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(upright.size))
    see_through.save(tmp_path / "glass.png")
    with opened(browser, page) as it:
        it.give(tmp_path / "side.jpg", tmp_path / "glass.png")
        for position, name in enumerate(["side.jpg", "glass.png"]):
            assert_alike(it.shown(position), expected(seen, decode((tmp_path / name).read_bytes())), 3)


@pytest.mark.parametrize("side", [(4100, 2900), (2500, 5300)])
def test_an_image_larger_than_a_tile_of_the_canvas_is_put_together_as_it_was(
    browser: Any, page: Path, seen: Seen, tmp_path: Path, side: tuple[int, int]
) -> None:
    large = Image.open(seen.files[5]).resize(side, Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.png", compress_level=1)
    with opened(browser, page) as it:
        it.give(tmp_path / "large.png")
        assert_alike(it.shown(), expected(seen, np.asarray(large)), 1.5)


def test_what_resembles_nothing_is_said_to_be_unknown_and_a_file_that_is_none_has_no_answer(
    browser: Any, page: Path, seen: Seen, tmp_path: Path
) -> None:
    grey = np.full((90, 120, 3), 128, dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    (tmp_path / "empty.jpg").touch()
    assert answer_of(seen.export, grey)["known_score"][0] < 0.6
    with opened(browser, page) as it:
        it.give(tmp_path / "grey.png", seen.cut_off, seen.not_an_image, tmp_path / "empty.jpg", seen.files[0])
        headings = it.tab.locator(".card h2").all_inner_texts()
        assert headings == ["Not a landmark I know", "No answer", "No answer", "No answer", seen.names[seen.labels[0]]]
        assert "The file is empty." in it.card(3).inner_text()
        assert it.complaints == []


def test_the_page_can_be_used_with_a_keyboard_alone(browser: Any, page: Path, seen: Seen) -> None:
    with opened(browser, page) as it:
        it.tab.keyboard.press("Tab")
        assert it.tab.locator(":focus").inner_text() == "Skip to the answers"
        it.tab.keyboard.press("Tab")
        with it.tab.expect_file_chooser() as chooser:
            it.tab.keyboard.press("Enter")
        chooser.value.set_files(str(seen.files[0]))
        it.answered(1)
        canvas = it.card().locator("canvas")
        first, second = list(it.shown())[:2]
        assert canvas.get_attribute("aria-label").endswith(f"with the heat map of {first}")
        it.tab.keyboard.press("Tab")
        it.tab.keyboard.press("ArrowDown")
        assert canvas.get_attribute("aria-label").endswith(f"with the heat map of {second}")
        it.tab.keyboard.press("Tab")
        it.tab.keyboard.press("Space")
        assert canvas.get_attribute("aria-label") == seen.files[0].name
        it.tab.keyboard.press("Tab")
        assert it.tab.locator(":focus").get_attribute("aria-label") == f"Remove {seen.files[0].name}"
        it.tab.keyboard.press("Enter")
        assert it.tab.locator(".card").count() == 0
        assert it.tab.locator(":focus").inner_text() == "Choose images"


def test_a_screen_reader_is_told_the_answer_and_the_trouble(browser: Any, page: Path, seen: Seen) -> None:
    with opened(browser, page) as it:
        live_region = it.tab.locator("[aria-live=polite]")
        it.give(seen.files[0])
        assert live_region.inner_text().startswith(f"{seen.files[0].name}: {seen.names[seen.labels[0]]}, ")
        it.tab.set_input_files("#files", [str(seen.not_an_image)])
        it.answered(2)
        assert live_region.inner_text().startswith(f"{seen.not_an_image.name}: no answer.")


FILE_TRANSFER = """async bytes => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], "given.jpg", { type: "image/jpeg" }));
  return transfer;
}"""


def test_an_image_can_be_pasted_and_dropped(browser: Any, page: Path, seen: Seen) -> None:
    with opened(browser, page) as it:
        transfer = it.tab.evaluate_handle(FILE_TRANSFER, list(seen.files[0].read_bytes()))
        paste = "t => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: t, cancelable: true }))"
        it.tab.evaluate(paste, transfer)
        it.answered(1)
        it.tab.dispatch_event("main", "dragenter", {"dataTransfer": transfer})
        assert it.tab.locator("#drop").is_visible()
        it.tab.dispatch_event("main", "drop", {"dataTransfer": transfer})
        it.answered(2)
        assert not it.tab.locator("#drop").is_visible()
        assert it.tab.locator(".card h2").all_inner_texts() == [seen.names[seen.labels[0]]] * 2
        assert it.shown(0) == it.shown(1)


def test_a_phone_offers_its_camera_and_a_desk_does_not(browser: Any, page: Path, seen: Seen) -> None:
    with opened(browser, page, viewport=PHONE, has_touch=True, is_mobile=True) as it:
        with it.tab.expect_file_chooser() as chooser:
            it.tab.get_by_role("button", name="Use the camera").tap()
        chooser.value.set_files(str(seen.files[2]))
        it.answered(1)
        assert it.tab.locator("input[capture=environment]").count() == 1
    with opened(browser, page) as it:
        assert not it.tab.get_by_role("button", name="Use the camera").is_visible()


def test_the_heat_map_lies_over_the_square_that_the_network_sees(browser: Any, page: Path, seen: Seen) -> None:
    pixel = "([x, y]) => [...document.querySelector('canvas').getContext('2d').getImageData(x, y, 1, 1).data]"
    with opened(browser, page) as it:
        it.give(seen.files[0])
        width, height = it.tab.locator("canvas").evaluate("canvas => [canvas.width, canvas.height]")
        found = answer_of(seen.export, decode(seen.files[0].read_bytes()))["maps"][0, 0]
        row, column = np.unravel_index(found.argmax(), found.shape)
        side = min(width, height)
        spot = [
            int((width - side) / 2 + (column + 0.5) / found.shape[1] * side),
            int((height - side) / 2 + (row + 0.5) / found.shape[0] * side),
        ]
        red, green, blue, _ = it.tab.evaluate(pixel, spot)
        assert red > 180  # the warm end of "inferno" is yellow and white
        assert green > 150
        it.card().locator("[role=switch]").click()
        plain = it.tab.evaluate(pixel, spot)[:3]
        assert plain != [red, green, blue]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 900}, PHONE])
def test_nothing_that_axe_calls_serious(
    browser: Any, page: Path, seen: Seen, scheme: str, size: dict[str, int]
) -> None:
    axe = fetched(AXE)["axe.min.js"].decode()
    grey = seen.export.with_name("grey.png")
    Image.fromarray(np.full((90, 120, 3), 128, dtype=np.uint8)).save(grey)
    with opened(browser, page, viewport=size, color_scheme=scheme) as it:
        it.give(seen.files[0], grey, seen.not_an_image)
        it.tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        it.tab.locator("#names li").first.wait_for()
        it.tab.evaluate(f"{axe}; 0")
        found = it.tab.evaluate("axe.run()")
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []
        assert len(found["passes"]) > 20


def test_a_dark_screen_gets_a_dark_page(browser: Any, page: Path) -> None:
    shades = []
    for scheme in ("light", "dark"):
        with opened(browser, page, color_scheme=scheme) as it:
            shade = it.tab.evaluate("getComputedStyle(document.body).backgroundColor")
            shades.append([int(value) for value in re.findall(r"\d+", shade)])
    assert min(shades[0]) > 200
    assert max(shades[1]) < 60


def test_all_images_can_be_removed_also_while_they_wait(browser: Any, page: Path, seen: Seen) -> None:
    with opened(browser, page) as it:
        it.tab.set_input_files("#files", [str(file) for file in seen.files])
        it.tab.get_by_role("button", name="Remove all").click()
        it.give(seen.files[1])
        assert it.tab.locator(".card").count() == 1
        assert it.complaints == []


def test_not_even_a_script_in_the_page_reaches_a_server_that_is_there(browser: Any, page: Path) -> None:
    requested: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        with opened(browser, page, offline=False) as it:
            ways = """async address => {
              const told = await fetch(address).then(() => "reached", () => "refused");
              new Image().src = address + "image";
              navigator.sendBeacon(address + "beacon", "x");
              await new Promise((resolve) => setTimeout(resolve, 300));
              return told;
            }"""
            assert it.tab.evaluate(ways, address) == "refused"
        with browser.new_context() as free:  # the server is there for whoever may ask
            free.new_page().goto(address)
        server.shutdown()
    assert [path for path in requested if path != "/favicon.ico"] == ["/"]


def test_an_export_without_maps_or_threshold_has_answers_all_the_same(
    browser: Any, page: Path, seen: Seen, tmp_path: Path
) -> None:
    images = [decode(file.read_bytes()) for file in seen.files]
    export = write_toy_export(tmp_path / "bare.onnx", images, seen.labels, seen.names, threshold=None, maps=False)
    grey = np.full((90, 120, 3), 128, dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    with opened(browser, write_page(export, tmp_path / "bare.html").path) as it:
        it.give(tmp_path / "grey.png")
        assert it.tab.locator(".card h2").inner_text() == next(iter(expected(seen, grey)))
        assert it.tab.locator("[role=switch]").count() == 0
        assert it.complaints == []
