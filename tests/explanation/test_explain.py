"""The verb: images a person names, galleries of a dataset, and what is written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from landmarks.cli.main import run as landmarks
from landmarks.dataset.images import decode
from landmarks.dataset.manifest import Dataset
from landmarks.explanation.explain import (
    CAPTION,
    MARGIN,
    TILE,
    Caption,
    colours,
    draw_panel,
    explain,
    images_in_turn,
    overlay,
    shortened,
    text_and_font,
)
from landmarks.support.errors import BusyError, LandmarksError, UsageError
from landmarks.support.files import held, read_record
from landmarks.support.systems import printable
from landmarks.training.eligible_images import eligible_images
from landmarks.training.run import Run

NAMES = ["Charles Bridge", "Český Krumlov, zámek", "Łódź"]


def test_a_gallery_takes_recognised_images_from_the_landmarks_in_turn(colour_run: Run, striped: Dataset):
    result = explain(colour_run, count=6)
    assert [entry["truth"] for entry in result["panels"][:3]] == [entry["truth"] for entry in result["panels"][3:]]
    assert {entry["truth_name"] for entry in result["panels"]} == set(NAMES)
    for entry in result["panels"]:
        assert entry["correct"] and entry["answers"][0]["label"] == entry["truth"]
        assert sum(answer["probability"] for answer in entry["answers"]) == pytest.approx(1.0, abs=1e-6)
        image = decode((colour_run.folder / "maps" / entry["image"]).read_bytes())
        assert image.shape[1] > 4 * 224
    index = read_record(colour_run.folder / "maps" / "index.json")
    assert index["panels"] == result["panels"] and index["inputs"] == colour_run.digest


def test_the_same_command_draws_the_same_bytes(colour_run: Run):
    explain(colour_run, count=2)
    first = {path.name: path.read_bytes() for path in (colour_run.folder / "maps").glob("*.j*")}
    explain(colour_run, count=2)
    assert first == {path.name: path.read_bytes() for path in (colour_run.folder / "maps").glob("*.j*")}


def test_images_that_are_not_there_are_told_before_the_network_is_opened(
    colour_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("landmarks.explanation.explain.open_trained", lambda *_: pytest.fail("the network is opened"))
    with pytest.raises(LandmarksError, match=r"there is no image .*nothing.jpg"):
        explain(colour_run, [tmp_path / "nothing.jpg"])


def test_files_and_folders_are_explained_and_what_is_no_image_is_named(colour_run: Run, tmp_path: Path, striped):
    folder = tmp_path / "mine"
    folder.mkdir()
    data = striped.split("all").row(0, named=True)
    shard = striped.path_of(data["shard"]).read_bytes()
    good = shard[data["offset"] : data["offset"] + data["length"]]
    (folder / "summer, 1.jpg").write_bytes(good)
    (folder / "text.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_bytes(b"not taken")
    for named in ({"count": 2}, {"data": striped}):
        with pytest.raises(UsageError, match="the images to explain are named already"):
            explain(colour_run, [folder], **named)
    result = explain(colour_run, folder)
    (entry,) = result["panels"]
    assert (entry["image_id"], entry["truth"], entry["correct"]) == ("summer, 1", None, None)
    assert entry["answers"][0]["name"] == NAMES[0]
    assert (colour_run.folder / "maps" / entry["image"]).exists()
    assert [Path(each["image"]).name for each in result["rejected"]] == ["text.jpg"]


def test_images_with_one_name_in_two_folders_keep_two_images(colour_run: Run, tmp_path: Path, striped):
    row = striped.split("all").row(0, named=True)
    shard = striped.path_of(row["shard"]).read_bytes()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(shard[row["offset"] : row["offset"] + row["length"]])
    result = explain(colour_run, [tmp_path / "a", tmp_path / "b"])
    assert len({entry["image"] for entry in result["panels"]}) == 2
    assert all("/" not in entry["image"] for entry in result["panels"])


def test_later_panels_join_earlier_ones_of_the_same_weights(colour_run: Run):
    explain(colour_run, count=1)
    assert len(explain(colour_run, count=3)["panels"]) == 3
    record = json.loads((colour_run.folder / "maps" / "index.json").read_text())
    (colour_run.folder / "maps" / "index.json").write_text(json.dumps(record | {"inputs": "other weights"}))
    assert len(explain(colour_run, count=1)["panels"]) == 1


def test_the_order_of_images_does_not_depend_on_the_table(colour_run: Run, striped: Dataset):
    images = images_in_turn(colour_run, eligible_images(colour_run, None, "test"))
    assert len(images) == 12 and len({image.id for image in images}) == 12
    assert sorted(image.truth for image in images[:3]) == [0, 1, 2]
    assert images == images_in_turn(colour_run, eligible_images(colour_run, striped.folder, "test"))


def test_fewer_recognised_images_than_asked_for_are_counted_aloud(colour_run: Run, capsys):
    assert len(explain(colour_run, count=100)["panels"]) == 12
    assert "only 12 of 12 images are recognised; 100 were asked for" in capsys.readouterr().err


IMPOSSIBLE = [
    ({"count": 0}, "must be positive"),
    ({"images": ["nowhere.jpg"]}, "no image nowhere.jpg"),
    ({"data": "nowhere"}, "no folder nowhere"),
]


@pytest.mark.parametrize("settings, message", IMPOSSIBLE)
def test_what_cannot_be_explained_is_one_line(colour_run: Run, settings, message):
    with pytest.raises(LandmarksError, match=message):
        explain(colour_run, **settings)


def test_a_dataset_that_moved_away_is_told_with_the_way_out(colour_run: Run, striped: Dataset):
    striped.folder.rename(striped.folder.with_name("moved"))
    with pytest.raises(LandmarksError, match=r"is not at .*data any more; say where its images are with --data"):
        explain(colour_run)
    assert explain(colour_run, data=striped.folder.with_name("moved"), count=1)["panels"]


def test_a_second_process_is_told_and_touches_nothing(colour_run: Run):
    with held(colour_run.folder / "maps"), pytest.raises(BusyError):
        explain(colour_run, count=1)


def test_the_verb_prints_and_ends_with_1_when_something_was_left_out(colour_run: Run, tmp_path: Path, capsys):
    from landmarks.cli.result_verbs import explain as verb

    assert verb(colour_run.folder, count=1) == 0
    assert "Grad-CAM" in capsys.readouterr().out
    (tmp_path / "text.jpg").write_bytes(b"not an image")
    assert verb(colour_run.folder, [tmp_path / "text.jpg"], json=True) == 1
    assert json.loads(capsys.readouterr().out)["made"] == []
    with pytest.raises(UsageError, match="faithfulness is measured on a dataset"):
        verb(colour_run.folder, [tmp_path], faithfulness=True)


def test_files_whose_names_are_not_utf8_are_explained_or_named_like_any_other(
    colour_run: Run, striped: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = striped.split("all").row(0, named=True)
    good = striped.path_of(row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["length"]]
    folder = tmp_path / "mine"
    folder.mkdir()
    try:
        (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(good)
        (folder / os.fsdecode(b"b\xe4d.jpg")).write_bytes(b"not an image")
    except OSError:
        pytest.skip("names of files are Unicode here")
    assert landmarks(["explain", str(colour_run.folder), str(folder), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    stored = read_record(colour_run.folder / "maps" / "index.json")
    assert (
        [entry["image_id"] for entry in printed["made"]]
        == [entry["image_id"] for entry in stored["panels"]]
        == ["caf\\xe9"]
    )
    assert [Path(entry["image"]).name for entry in stored["rejected"]] == ["b\\xe4d.jpg"]
    assert (colour_run.folder / "maps" / printed["made"][0]["image"]).is_file()


def test_a_device_that_nobody_has_is_wrong_usage(colour_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--count", "1"], ["--faithfulness", "--split", "all"]):
        assert landmarks(["explain", str(colour_run.folder), *words, "--device", "gpu"]) == 2
        assert 'no device "gpu"; expected auto, cuda, mps, cpu' in capsys.readouterr().err
    assert landmarks(["explain", str(colour_run.folder), "--count", "1", "--device", "cpu"]) == 0


# ── Drawing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_colour_map_grows_lighter_with_heat():
    ramp = colours(np.linspace(0, 1, 50, dtype=np.float32)[None])[0]
    lightness = ramp @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


def test_a_cold_map_leaves_a_dim_image_and_heat_is_warm_where_it_is():
    image = np.full((40, 60, 3), 128, dtype=np.uint8)
    heat = np.zeros((4, 6), dtype=np.float32)
    cold = overlay(image, heat)
    assert cold.shape == image.shape and (np.abs(cold.astype(int) - 115) <= 1).all()
    heat[1, 4] = 1.0
    warm = overlay(image, heat).astype(int)
    hottest = np.unravel_index((warm[..., 0] - warm[..., 2]).argmax(), (40, 60))
    assert 10 <= hottest[0] < 20 and 40 <= hottest[1] < 50
    assert (warm[35, 5] == cold[35, 5]).all()


def test_a_panel_holds_the_image_and_a_tile_for_each_answer():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    answers = [Caption("Łódź", 0.9, True), Caption("x" * 200, 0.0, False)]
    sheet = draw_panel(image, np.zeros((2, 3, 3), dtype=np.float32), answers, "Łódź")
    assert sheet.shape == (TILE + 2 * MARGIN + CAPTION, 3 * TILE + 4 * MARGIN, 3)
    assert sheet.dtype == np.uint8
    captions = sheet[MARGIN + TILE : -MARGIN]
    for column in range(3):
        left = MARGIN + column * (TILE + MARGIN)
        assert captions[:, left : left + TILE].min() < 128, "something is written under each image"
        assert (captions[:, left - MARGIN + 1 : left - 1] == 255).all(), "and it stays under it"


@pytest.mark.parametrize(
    "text", ["Charles Bridge", "Český Krumlov", "Łódź", "Gyönyörű", "Москва", "東京", "\U0001f600"]
)
def test_any_name_is_drawn_with_letters_the_font_has(text):
    written, font = text_and_font(text, 16)
    unknown = bytes(font.getmask("￿"))
    assert written
    assert all(bytes(font.getmask(letter)) != unknown for letter in set(written) - {" "})


def test_accents_are_taken_off_where_no_font_has_them(monkeypatch):
    monkeypatch.setattr("landmarks.explanation.explain.FONTS", ())
    from landmarks.explanation import explain as module

    module._fonts.cache_clear()
    try:
        assert text_and_font("Český Łódź, Þingvellir – 東", 16)[0] == "Cesky Lodz, Thingvellir - ?"
    finally:
        module._fonts.cache_clear()


def test_control_characters_and_line_breaks_are_no_part_of_a_caption():
    assert printable("a\nb\u202e c\x00") == "a b c"


def test_a_long_name_ends_in_dots_inside_its_width():
    text, font = text_and_font("A very long name of a landmark, (with additions)", 16)
    short = shortened(text, font, 150)
    assert short.endswith("...") and font.getlength(short) <= 150
    assert shortened("short", font, 150) == "short"
