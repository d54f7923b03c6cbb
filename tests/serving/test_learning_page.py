"""The one-file page learns in a real browser, from disk and without a network, as Python does with the export."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from open_pages import AXE, PHONE, Opened, fetched, opened
from PIL import Image
from taught_runs import HeldOut, run_that_can_learn

import landmarks
from landmarks.recognition.learned import read_learned_file
from landmarks.recognition.portable import require_learning
from landmarks.serving.one_page import RUNTIME, write_page

pytestmark = pytest.mark.slow

NAME = "Torre <b>de</b> Belém"


@dataclass(frozen=True)
class Learning:
    """An export that learns, a page of it, and images without loss: every decoder gives the same pixels."""

    export: Path
    page: Path
    images: list[Path]
    nothing: list[Path]
    trained: dict[str, Path]


def lossless(files: list[Path], folder: Path) -> list[Path]:
    made = [folder / f"{path.stem}.png" for path in files]
    for path, png in zip(files, made, strict=True):
        with Image.open(path) as image:
            image.convert("RGB").save(png)
    return made


@pytest.fixture(scope="module")
def learning(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Learning:
    fetched(RUNTIME)  # or the reason why not
    folder = tmp_path_factory.mktemp("learning")
    held: HeldOut = run_that_can_learn(miniature, folder)
    export = landmarks.export(held.run, folder / "run.onnx", learning=True).path
    page = write_page(export, folder / "page.html").path
    (folder / "png").mkdir()
    trained = {name: lossless([path], folder / "png")[0] for name, path in held.trained.items()}
    return Learning(
        export, page, lossless(held.images, folder / "png"), lossless(held.nothing, folder / "png"), trained
    )


def teach(it: Opened, name: str, files: list[Path]) -> None:
    it.tab.get_by_text("Teach it a landmark").click()
    it.tab.get_by_label("What is it called?").fill(name)
    it.tab.set_input_files("#lesson-files", [str(file) for file in files])
    it.tab.get_by_role("button", name="Teach", exact=True).click()
    it.tab.locator("#lesson-said", has_text=re.compile("is known|trained for")).wait_for()


def reload(it: Opened) -> None:
    it.tab.reload()
    it.tab.locator("#state", has_text="Ready").wait_for()


def assert_as_python(it: Opened, recogniser: Any, files: list[Path]) -> None:
    """Give the images, and compare every answer written on the page with Python's."""
    before = it.tab.locator(".card").count()
    it.give(*files)
    it.answered(before + len(files))
    for position, (file, expected) in enumerate(zip(files, recogniser.recognise(files), strict=True)):
        shown = it.shown(position)
        wanted = {answer.name: 100 * answer.probability for answer in expected.answers}
        assert next(iter(shown)) == next(iter(wanted)), file
        for name in set(shown) & set(wanted):
            assert abs(shown[name] - wanted[name]) <= 0.15, (file, name)
        is_unknown = it.card(position).locator("h2").inner_text() == "Not a landmark I know"
        assert is_unknown == (expected.known is False), file


def test_taught_with_five_images_it_recognises_the_sixth_after_a_reload_until_it_forgets(
    browser: Any, learning: Learning
) -> None:
    with opened(browser, learning.page) as it:
        it.give(learning.images[5])
        assert NAME not in it.shown(0)
        teach(it, NAME, learning.images[:5])
        assert it.tab.locator("#lesson-said").inner_text() == f"“{NAME}” is known from 5 images now."
        reload(it)
        it.give(learning.images[5])
        assert it.card(0).locator("h2").inner_text() == NAME
        it.tab.get_by_text("Teach it a landmark").click()
        it.tab.get_by_role("button", name="Forget").click()
        it.tab.get_by_role("button", name="Really forget").click()
        it.tab.locator("#lesson-said", has_text="is forgotten").wait_for()
        reload(it)
        it.give(learning.images[5])
        assert NAME not in it.shown(0)
        assert it.complaints == []
        assert [url for url in it.requests if not url.startswith("blob:")] == [learning.page.as_uri()] * 3


def test_it_answers_as_python_does_with_the_same_export_and_the_same_lesson(browser: Any, learning: Learning) -> None:
    taught = landmarks.load(learning.export).learn(learning.images[:5], NAME)
    images = [*learning.images[5:], *learning.trained.values(), *learning.nothing]
    with opened(browser, learning.page) as it:
        teach(it, NAME, learning.images[:5])
        assert_as_python(it, taught, images)


def test_what_it_was_taught_goes_into_a_file_that_python_and_another_browser_read(
    browser: Any, learning: Learning, tmp_path: Path
) -> None:
    with opened(browser, learning.page) as it:
        teach(it, NAME, learning.images[:5])
        with it.tab.expect_download() as download:
            it.tab.get_by_role("button", name="Save what it was taught").click()
        download.value.save_as(tmp_path / "learned.json")
    recogniser = landmarks.load(learning.export)
    record = require_learning(recogniser.network)  # type: ignore[arg-type]
    read = read_learned_file(tmp_path / "learned.json", record)
    own = recogniser.learn(learning.images[:5], NAME).learned
    assert (read.names, read.landmark_ids, read.counts()) == (own.names, own.landmark_ids, own.counts())
    assert read.images == pytest.approx(own.images, abs=1e-3 * float(abs(own.images).max()))
    with opened(browser, learning.page) as it:
        it.tab.get_by_text("Teach it a landmark").click()
        it.tab.set_input_files("#learned-files", str(tmp_path / "learned.json"))
        it.tab.locator("#lesson-said", has_text="is read").wait_for()
        it.give(learning.images[5])
        assert it.card(0).locator("h2").inner_text() == NAME
        saved = json.loads((tmp_path / "learned.json").read_text(encoding="utf-8"))
        for change in ({"learned_with": "x"}, {"landmarks": [{"name": "a", "landmark_id": 1, "images": ["AAAA"]}]}):
            (tmp_path / "other.json").write_text(json.dumps({**saved, **change}), encoding="utf-8")
            it.tab.set_input_files("#learned-files", str(tmp_path / "other.json"))
            it.tab.locator("#lesson-said.trouble").wait_for()
            it.tab.evaluate("document.getElementById('lesson-said').className = ''")


def test_with_a_threshold_an_image_of_nothing_is_still_said_to_be_unknown(
    browser: Any, learning: Learning, tmp_path: Path
) -> None:
    from landmarks.serving.one_page import facts_of

    export = with_threshold(learning, tmp_path / "strict.onnx")
    assert facts_of(export).threshold is not None
    taught = landmarks.load(export).learn(learning.images[:5], NAME)
    with opened(browser, write_page(export, tmp_path / "strict.html").path) as it:
        teach(it, NAME, learning.images[:5])
        assert_as_python(it, taught, [*learning.nothing, learning.images[5]])
        headings = it.tab.locator(".card h2").all_inner_texts()
        assert headings[: len(learning.nothing)] == ["Not a landmark I know"] * len(learning.nothing)
        assert headings[len(learning.nothing)] == NAME


def with_threshold(learning: Learning, path: Path) -> Path:
    """Write the export with a threshold that nothing but what it has learned can pass, and images of nothing beside."""
    import numpy as np
    import onnx

    from landmarks.dataset.images import decode
    from landmarks.recognition.learned import packed
    from landmarks.recognition.portable import open_export

    outputs = open_export(learning.export).outputs([decode(path.read_bytes()) for path in learning.nothing])
    model = onnx.load(learning.export)
    [entry] = [one for one in model.metadata_props if one.key == "landmarks"]
    record = json.loads(entry.value)
    record |= {"threshold": 2.0, "rule": {"name": "msp", "weights": {"msp": 1.0}, "constant": 0.0}, "score": "msp"}
    assert outputs.whitened is not None
    around = np.random.default_rng(0).normal(0, 0.05, (8, *outputs.whitened.shape)) * np.abs(outputs.whitened)
    record["learning"]["others"] = packed((outputs.whitened + around).reshape(-1, outputs.whitened.shape[1]))
    entry.value = json.dumps(record)
    onnx.save(model, path)
    return path


def test_on_a_small_screen_nothing_is_cut_off_and_axe_finds_nothing(browser: Any, learning: Learning) -> None:
    axe = fetched(AXE)["axe.min.js"].decode()
    with opened(browser, learning.page, viewport=PHONE) as it:
        teach(it, NAME, learning.images[:5])
        it.give(learning.images[5])
        assert it.tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        it.tab.evaluate(f"{axe}; 0")
        found = it.tab.evaluate("axe.run()")
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []


def test_a_page_of_an_export_that_was_taught_knows_it_beside_what_the_browser_keeps_until_it_is_forgotten(
    browser: Any, learning: Learning, tmp_path: Path
) -> None:
    export = tmp_path / "run.onnx"
    export.write_bytes(learning.export.read_bytes())
    count = len(learning.trained)
    with opened(browser, write_page(export, tmp_path / "page.html").path) as it:
        teach(it, "Another", learning.nothing[:2])
        it.tab.locator(".lead", has_text=f"This page knows {count} landmarks and 1 that it was taught.").wait_for()
        landmarks.learn(export, learning.images[:5], name=NAME, landmark_id=77)
        it.tab.goto(write_page(export, tmp_path / "taught.html").path.as_uri())
        it.tab.locator("#state", has_text="Ready").wait_for()
        it.tab.locator(".lead", has_text=f"This page knows {count} landmarks and 2 that it was taught.").wait_for()
        it.give(learning.images[5])
        assert it.card(0).locator("h2").inner_text() == NAME
        it.tab.get_by_text("Teach it a landmark").click()
        with it.tab.expect_download() as download:
            it.tab.get_by_role("button", name="Save what it was taught").click()
        kept = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["landmarks"]
        assert {one["name"]: one["landmark_id"] for one in kept} == {"Another": -2, NAME: 77}
        it.tab.get_by_role("button", name=f"Forget {NAME}").click()
        it.tab.get_by_role("button", name=f"Really forget {NAME}").click()
        it.tab.locator("#lesson-said", has_text="is forgotten").wait_for()
        reload(it)
        it.give(learning.images[5])
        assert NAME not in it.shown(0)
        assert it.complaints == []
