"""The server's page in a real browser: a landmark is taught with five images, recognised in the next, and forgotten."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from open_pages import AXE, PHONE, Opened, fetched, opened
from serving.conftest import Running, Serving
from taught_runs import HeldOut, run_that_can_learn

import landmarks

pytestmark = pytest.mark.slow

NAME = "Torre <b>de</b> Belém"


@pytest.fixture(scope="module")
def held_out(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    return run_that_can_learn(miniature, tmp_path_factory.mktemp("held_out"))


@pytest.fixture
def started(held_out: HeldOut, serving: Serving, tmp_path: Path) -> Any:
    """Start a server with a copy of the run, to be taught unless told."""
    place = tmp_path / "run"
    shutil.copytree(held_out.run, place)

    def load() -> Any:
        return landmarks.load(place, device="cpu")

    def start(**options: Any) -> Running:
        return serving(load(), place=place, load=load, device="cpu", **{"teach": True, **options})

    return start


def teach(it: Opened, name: str, files: list[Path]) -> None:
    """Fill the form in as a person does, and wait for what it says."""
    it.tab.get_by_text("Teach it a landmark").click()
    it.tab.get_by_label("What is it called?").fill(name)
    it.tab.set_input_files("#lesson-files", [str(file) for file in files])
    it.tab.get_by_role("button", name="Teach", exact=True).click()
    it.tab.locator("#lesson-said", has_text=re.compile("is known|trained for")).wait_for()


def headings(it: Opened) -> list[str]:
    return list(it.tab.locator(".card h2").all_inner_texts())


def test_a_landmark_taught_with_five_images_is_recognised_in_the_sixth_until_it_is_forgotten(
    browser: Any, started: Any, held_out: HeldOut
) -> None:
    running = started()
    with opened(browser, running.url, offline=False) as it:
        it.give(held_out.images[5])
        assert headings(it)[0] != NAME
        teach(it, NAME, held_out.images[:5])
        assert it.tab.locator("#lesson-said").inner_text() == f"“{NAME}” is known from 5 images now."
        it.give(held_out.images[5])
        it.answered(2)
        assert headings(it)[0] == NAME
        assert next(iter(it.shown(0))) == NAME
        trained, file = next(iter(held_out.trained.items()))
        it.give(file)
        it.answered(3)
        assert headings(it)[0] == trained
        assert re.sub(r"\s+", " ", it.tab.locator("#taught li").inner_text()) == f"{NAME} 5 images Forget {NAME}"
        forget = it.tab.get_by_role("button", name="Forget")
        forget.click()
        assert NAME in it.tab.locator("#taught").inner_text()  # asked again first
        it.tab.get_by_role("button", name="Really forget").click()
        it.tab.locator("#lesson-said", has_text="is forgotten").wait_for()
        assert not it.tab.locator("#taught li").count()
        it.give(held_out.images[5])
        it.answered(4)
        assert NAME not in it.shown(0)
        assert it.complaints == []
        assert all(url.startswith((running.url, "blob:")) for url in it.requests)


def test_the_form_is_not_there_where_the_server_is_not_taught(browser: Any, started: Any, held_out: HeldOut) -> None:
    with opened(browser, started(teach=False).url, offline=False) as it:
        it.give(held_out.images[0])
        assert not it.tab.locator("#teach").is_visible()
        assert not it.tab.get_by_role("button", name="Teach it what this is").count()


def test_what_goes_wrong_is_told_in_words_and_by_the_browser(
    browser: Any, started: Any, held_out: HeldOut, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with opened(browser, started().url, offline=False) as it:
        teach(it, next(iter(held_out.trained)), held_out.images[:2])
        assert "is a landmark that this recogniser was trained for" in it.tab.locator("#lesson-said").inner_text()
        assert it.tab.locator("#lesson-images li").count() == 2  # kept, for another name
        it.tab.get_by_label("What is it called?").fill("Another")
        it.tab.set_input_files("#lesson-files", str(broken))
        it.tab.get_by_role("button", name="Teach", exact=True).click()
        it.tab.locator(
            "#lesson-said", has_text="“Another” is known from 2 images now. 1 image could not be used"
        ).wait_for()
        assert "broken.jpg" in it.tab.locator("#lesson-said").inner_text()
        it.tab.get_by_role("button", name="Teach", exact=True).click()
        assert it.tab.evaluate("document.activeElement.id") == "lesson-name"  # required: the browser says so


def test_a_keyboard_alone_teaches_and_forgets(browser: Any, started: Any, held_out: HeldOut) -> None:
    with opened(browser, started().url, offline=False) as it:
        tab = it.tab
        it.give(held_out.images[5])
        tab.get_by_role("button", name="Teach it what this is").focus()
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.activeElement.id") == "lesson-name"
        tab.keyboard.type("Belém")
        tab.keyboard.press("Tab")
        with tab.expect_file_chooser() as chooser:
            tab.keyboard.press("Enter")
        chooser.value.set_files([str(file) for file in held_out.images[:3]])
        tab.locator("#lesson-images li").nth(3).wait_for()
        tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")  # the one that came from the card is taken out again
        assert tab.locator("#lesson-images li").count() == 3
        assert tab.evaluate("document.activeElement.className") == "remove"
        for _ in range(3):
            tab.keyboard.press("Tab")
        assert tab.locator(":focus").inner_text() == "Teach"
        tab.keyboard.press("Enter")
        tab.locator("#lesson-said", has_text="is known from 3 images").wait_for()
        tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
        tab.keyboard.press("Enter")
        tab.locator("#lesson-said", has_text="is forgotten").wait_for()
        assert tab.locator("[role=status]#lesson-said").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_small_screen_light_or_dark_nothing_is_cut_off_and_axe_finds_nothing(
    browser: Any, started: Any, held_out: HeldOut, scheme: str
) -> None:
    axe = fetched(AXE)["axe.min.js"].decode()
    with opened(browser, started().url, offline=False, viewport=PHONE, color_scheme=scheme) as it:
        it.give(held_out.images[5])
        teach(it, "A landmark with a name longer than such a screen is wide", held_out.images[:2])
        it.tab.set_input_files("#lesson-files", [str(file) for file in held_out.images[2:5]])
        it.tab.locator("#lesson-images li").nth(2).wait_for()
        assert it.tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        it.tab.evaluate(f"{axe}; 0")
        found = it.tab.evaluate("axe.run()")
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []


def test_a_token_is_asked_for_once_and_large_images_are_sent_smaller(
    browser: Any, started: Any, held_out: HeldOut, tmp_path: Path
) -> None:
    from PIL import Image

    with Image.open(held_out.images[0]) as small:
        large = small.resize((3600, 2700))
    for number in range(2):
        large.save(tmp_path / f"{number}.png", compress_level=0)  # 29 MB each, and a request has 20 at most
    with opened(browser, started(token="secret").url, offline=False) as it:
        it.tab.get_by_label("This server wants a token").fill("secret")
        it.tab.get_by_role("button", name="Go on").click()
        teach(it, "Large", [tmp_path / "0.png", tmp_path / "1.png"])
        assert it.tab.locator("#lesson-said").inner_text().startswith("“Large” is known from")
