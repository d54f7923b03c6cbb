"""The page of doubts in a real browser: decided by keyboard, undone, resumed, saved, and taken by `split`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

import landmarks
from landmarks.dataset.images import encode
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.evaluation.doubts import (
    COPIES_FOUND,
    DOUBTS,
    copies_in,
    doubts_of_copies,
    find_strangers,
    write_doubts_page,
)

NAME = '</script><b>Taj "Mahal"'


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Five images of two landmarks, one of which has a name that HTML would take for its own."""
    for number, name in enumerate(["first", "first", "first", "second", "second"]):
        folder = tmp_path / "source" / name
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC))
        (folder / f"{number}.jpg").write_bytes(encode(pixels, 95))
    made = landmarks.import_(tmp_path / "source", tmp_path / "data")
    landmarks.split(made.folder, by="random", val=0.2, test=0.2)
    labels = pl.read_parquet(made.folder / "labels.parquet")
    labels = labels.with_columns(name=pl.when(pl.col("label") == 0).then(pl.lit(NAME)).otherwise("name"))
    labels.write_parquet(made.folder / "labels.parquet")
    return open_dataset(made.folder)


@pytest.fixture
def page(data: Dataset, tmp_path: Path) -> Path:
    ids, landmark = data.images["image_id"], data.labels["landmark_id"].to_list()
    rows = [
        ("label", ids[0], landmark[1], "its features speak for the other landmark", None),
        ("across", ids[3], landmark[0], "90 % of what both show agrees", ids[2]),
        ("nothing", ids[1], None, "it is far from all others", None),
        ("leak", ids[4], None, "95 % of what both show agrees", ids[3]),
    ]
    doubts = pl.DataFrame(rows, schema=DOUBTS, orient="row")
    assert write_doubts_page(data, doubts, tmp_path / "doubts.html", "decided.csv") == 4
    return tmp_path / "doubts.html"


def test_decisions_by_keyboard_are_saved_as_the_csv_that_split_takes(
    browser: Any, page: Path, data: Dataset, tmp_path: Path
) -> None:
    context = browser.new_context(accept_downloads=True)
    tab = context.new_page()
    troubles: list[str] = []
    requested: list[str] = []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto(page.as_uri())
    assert tab.locator("#caption").inner_text().startswith(NAME)
    assert tab.locator("#image").evaluate("image => image.naturalWidth") == 160
    assert tab.locator("#beside").is_hidden()
    tab.keyboard.press("s")
    assert tab.locator("#beside").is_visible()
    tab.keyboard.press("n")
    tab.keyboard.press("r")
    assert tab.locator("#told").inner_text().endswith("3 of 4 decided")
    tab.keyboard.press("u")
    assert "undone" in tab.locator("#told").inner_text()
    assert tab.locator("#kind").inner_text().startswith("3 of 4")
    for _ in range(10):  # what was stored may still be on its way to the browser's own process
        tab.reload()  # and go on where one was
        if tab.locator("#told").inner_text() != "0 of 4 decided":
            break
    assert tab.locator("#told").inner_text() == "2 of 4 decided"
    assert tab.locator("#kind").inner_text().startswith("3 of 4")
    tab.keyboard.press("ArrowRight")
    assert tab.get_by_role("button", name="No suggestion").is_disabled()
    tab.keyboard.press("s")  # there is none: nothing happens
    tab.keyboard.press("o")
    assert tab.locator("#kind").inner_text().startswith("3 of 4")
    tab.keyboard.press("R")
    with tab.expect_download() as caught:
        tab.keyboard.press("d")
    csv = tmp_path / caught.value.suggested_filename
    caught.value.save_as(csv)
    context.close()
    assert not troubles
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requested)
    ids, landmark = data.images["image_id"], data.labels["landmark_id"].to_list()
    assert csv.name == "decided.csv"
    assert pl.read_csv(csv, infer_schema=False).rows() == [
        (ids[0], str(landmark[1])), (ids[3], "none"), (ids[1], "remove"),
    ]  # fmt: skip
    after = landmarks.split(data.folder, corrections=csv)
    shown = dict(after.images.select("image_id", "landmark_id").iter_rows())
    assert shown == {ids[0]: landmark[1], ids[2]: landmark[0], ids[3]: None, ids[4]: landmark[1]}


def test_every_button_can_be_reached_and_says_what_it_does(browser: Any, page: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    tab = context.new_page()
    tab.goto(page.as_uri())
    names = [button.inner_text().strip() for button in tab.get_by_role("button").all()]
    assert len(names) == 9
    assert all(names)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(12):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.textContent.trim()"))
    enabled = {
        button.evaluate("one => one.textContent.trim()") for button in tab.get_by_role("button", disabled=False).all()
    }
    assert enabled <= reached
    assert tab.locator("#image").get_attribute("alt")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
    tab.get_by_role("button", name="Keep").click()
    assert tab.locator("#told").inner_text().endswith("1 of 4 decided")
    context.close()


def test_the_page_connects_nowhere_and_ends_no_element_early(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "unsafe" not in text
    items = text.split('id="items">', 1)[1].split("</script>", 1)[0]
    assert json.loads(items)["items"][0]["name"] == NAME


def test_a_page_holds_the_first_of_each_kind(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmarks.evaluation.doubts.MOST_ON_PAGE", 4)
    ids = data.images["image_id"].to_list()
    rows = [("label", id, None, "", None) for id in ids] + [("nothing", id, None, "", None) for id in ids]
    doubts = pl.DataFrame(rows, schema=DOUBTS, orient="row")
    assert write_doubts_page(data, doubts, tmp_path / "some.html", "decided.csv") == 4
    text = (tmp_path / "some.html").read_text(encoding="utf-8")
    assert "The first 4 of 10 are here" in text
    items = json.loads(text.split('id="items">', 1)[1].split("</script>", 1)[0])["items"]
    assert [(item["kind"], item["id"]) for item in items] == [
        ("label", ids[0]), ("label", ids[1]), ("nothing", ids[0]), ("nothing", ids[1]),
    ]  # fmt: skip


# ── What is doubted ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_copies_in_two_splits_are_leaks_and_those_with_two_labels_are_asked_about_twice() -> None:
    rows = [
        ("b", "a", 0.9, False, 1, 1, "train", "test"),
        ("d", "c", 0.8, True, 1, 2, "train", "train"),
        ("f", "e", 0.7, False, 3, 3, "val", "val"),
        ("h", "g", 0.6, False, 3, None, "val", "train"),
    ]
    doubts = doubts_of_copies(pl.DataFrame(rows, schema=COPIES_FOUND, orient="row"))
    questions = [
        (row["kind"], row["image_id"], row["other_id"], row["suggested_landmark_id"]) for row in doubts.to_dicts()
    ]
    assert questions == [
        ("leak", "a", "b", None),
        ("leak", "h", "g", None),
        ("across", "c", "d", 1),
        ("across", "d", "c", 2),
        ("across", "g", "h", 3),
        ("across", "h", "g", None),
    ]
    assert doubts["why"][2] == "80 % of what both show agrees, mirrored"


def test_copies_of_a_dataset_are_found_with_their_splits(data: Dataset) -> None:
    assert copies_in(data).schema == COPIES_FOUND
    assert not len(copies_in(data))


def test_a_stranger_is_far_from_all_and_unlike_its_label() -> None:
    random = np.random.default_rng(0)
    nearest, own = 0.8 + 0.02 * random.standard_normal(200), 0.7 + 0.1 * random.random(200)
    labels = np.arange(200) % 4
    nearest[[3, 50]], own[[3, 90]] = 0.5, 0.01  # 50 is far but surely its landmark, 90 the other way round
    found, away = find_strangers(nearest, own, labels)
    assert np.flatnonzero(found).tolist() == [3]
    assert away.argmax() == 3
