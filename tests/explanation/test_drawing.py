"""Panels and overlays: what is drawn where."""

from __future__ import annotations

import numpy as np
import pytest

from landmarks.explanation.drawing import (
    CAPTION,
    MARGIN,
    TILE,
    Caption,
    colours,
    draw_panel,
    overlay,
    shortened,
    text_and_font,
)
from landmarks.support.systems import printable


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
    monkeypatch.setattr("landmarks.explanation.drawing.FONTS", ())
    from landmarks.explanation import drawing as module

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
