"""Numbers read alike everywhere, and strangers' names fit on a line."""

from __future__ import annotations

import unicodedata

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.reporting.wording import (
    count,
    display_names,
    duration,
    facts,
    format_value,
    interval,
    millions,
    one_line,
    percentage,
)

SPACE = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9384, f"93.8{SPACE}%"),
        ({"value": 0.5, "low": 0.4}, f"50.0{SPACE}%"),
        (None, "–"),
        (float("nan"), "–"),
        ({"value": None}, "–"),
        ("0.5", "–"),
        (True, "–"),
    ],
)
def test_a_share_is_a_percentage_or_a_dash(value: object, text: str) -> None:
    assert percentage(value) == text


def test_an_interval_needs_both_ends() -> None:
    assert interval({"value": 0.9, "low": 0.8712, "high": 0.9288}) == f"87.1–92.9{SPACE}%"
    assert interval({"value": 0.9, "low": 0.8712}) == interval(0.9) == interval(None) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (59.6, "1 min 00 s"), (725, "12 min 05 s"), (12_000, "3 h 20 min"), (None, "–")],
)
def test_times_read_as_a_person_says_them(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_parameters_are_millions() -> None:
    assert [millions(n) for n in (512, 1_068_468, 25_600_000, None)] == ["512", f"1.07{SPACE}M", f"25.6{SPACE}M", "–"]
    assert count(4132914) == "4,132,914"


@given(st.text(max_size=300))
def test_a_readable_text_is_one_short_line_without_characters_that_act(text: str) -> None:
    shown = one_line(text)
    assert len(shown) <= 120
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs"}
    assert one_line(shown) == shown


def test_equal_and_missing_names_get_their_landmark_id() -> None:
    labels = pl.DataFrame({"label": [1, 0, 2, 3], "landmark_id": [11, 10, 12, 13], "name": ["A", "A", None, "B"]})
    assert display_names(labels) == ["A (10)", "A (11)", "landmark 12", "B"]


def test_records_become_pairs_of_readable_texts() -> None:
    record = {"a": {"b": 1, "c": {"d": True}}, "e": [1, 2.5], "f": None, "g": {}, "h": 123456, "i": '{"j": 2}'}
    expected = [
        ("a b", "1"),
        ("a c d", "yes"),
        ("e", "1, 2.5"),
        ("f", "none"),
        ("g", ""),
        ("h", "123,456"),
        ("i j", "2"),
    ]
    assert facts(record) == expected
    assert format_value({"x": [1]}) == "x 1"
