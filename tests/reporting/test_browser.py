"""The page in a real browser: it asks for nothing, fits a telephone, sorts, and says what a mark is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_factory import NETWORKS, make_dataset, make_run

from landmarks.reporting.page import report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    data = make_dataset(folder / "data", count=200, unknown=20)
    runs = [make_run(folder / name, data, name, maps=2) for name in NETWORKS]
    return report(runs, folder / "report.html")


def opened(browser: Any, page: Path, width: int, **context: Any) -> tuple[Any, list[str], list[str]]:
    tab = browser.new_context(viewport={"width": width, "height": 900}, **context).new_page()
    tab.set_default_timeout(0)  # a busy machine is no failure
    requests: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(page.as_uri())
    return tab, requests, complaints


@pytest.mark.parametrize("width", [390, 1280])
def test_no_request_leaves_the_page_and_nothing_goes_wrong(browser: Any, page: Path, width: int) -> None:
    tab, requests, complaints = opened(browser, page, width)
    for summary in tab.locator("summary").all():
        if summary.is_visible():
            summary.click()
    tab.mouse.wheel(0, 100_000)
    tab.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    tab.wait_for_load_state("networkidle")
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert complaints == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_never_scrolls_sideways_even_when_all_is_unfolded(browser: Any, page: Path, width: int) -> None:
    tab, _, _ = opened(browser, page, width)
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_a_click_on_a_heading_sorts_and_another_turns_the_order(browser: Any, page: Path) -> None:
    tab, _, _ = opened(browser, page, 1280)
    table = tab.locator("#results table")
    heading = table.locator("th", has_text="Parameters")

    def networks() -> list[str]:
        return table.locator("tbody th").evaluate_all("cells => cells.map(cell => cell.dataset.value)")

    heading.locator("button").click()
    assert networks() == ["legacy_xception", "resnet18", "baseline"]
    assert heading.get_attribute("aria-sort") == "descending"
    heading.locator("button").click()
    assert networks() == ["baseline", "resnet18", "legacy_xception"]
    table.locator("th", has_text="Network").locator("button").click()
    assert networks() == ["baseline", "legacy_xception", "resnet18"]


def test_pointing_at_a_mark_says_what_it_is(browser: Any, page: Path) -> None:
    tab, _, _ = opened(browser, page, 1280)
    cell = tab.locator("figure.wide [data-tip]").first
    cell.scroll_into_view_if_needed()
    cell.hover()
    assert tab.locator("#tip").is_visible()
    assert tab.locator("#tip").inner_text() == cell.get_attribute("data-tip")


def test_a_link_to_a_folded_run_opens_it(browser: Any, page: Path) -> None:
    tab, _, _ = opened(browser, page, 1280)
    tab.locator("nav a", has_text="baseline").click()
    assert tab.locator("#run-baseline details.chapter").get_attribute("open") is not None


def test_all_images_are_drawn_and_a_dark_screen_gets_a_dark_page(browser: Any, page: Path) -> None:
    tab, _, _ = opened(browser, page, 1280, color_scheme="dark")
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    tab.evaluate("document.querySelectorAll('img').forEach(one => { one.loading = 'eager'; })")
    tab.wait_for_function("[...document.images].every(one => one.complete)")
    assert tab.evaluate("[...document.images].filter(one => !one.naturalWidth).length") == 0
    shade = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(split) for split in shade.removeprefix("rgb(").removesuffix(")").split(",")) < 60


def test_without_a_script_everything_can_still_be_read(browser: Any, page: Path) -> None:
    tab, _, _ = opened(browser, page, 1280, java_script_enabled=False)
    assert tab.locator("#results tbody tr").count() == len(NETWORKS)
    assert tab.locator("svg").first.is_visible()
