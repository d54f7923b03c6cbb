from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.support.console import note, print_table, run_step
from landmarks.support.terminal import safe_line, show, show_json

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\x08\u202egnp.exe\r\x7f"


def steers(text: str) -> bool:
    """Whether a text, its line ends aside, holds anything that a terminal obeys."""
    return any(not letter.isprintable() and letter not in "\n" for letter in text)


@given(st.text())
def test_whatever_is_shown_is_one_line_that_steers_nothing(text: str) -> None:
    assert "\n" not in safe_line(text)
    assert not any(letter in safe_line(text) for letter in "\x1b\x9b\x07\x08\r\x7f\u202e\u2066\u2028")


@pytest.mark.parametrize("text", ["Łódź, 東京, é", "a [bold]b[/bold]", "C:\\photos\\x"])
def test_names_of_all_languages_are_shown_as_they_are(text: str) -> None:
    assert safe_line(text) == text


def test_no_way_to_the_terminal_lets_an_escape_sequence_through(capsys: pytest.CaptureFixture[str]) -> None:
    note(f"rejected: {HOSTILE}")
    show(HOSTILE)
    print_table(["image", HOSTILE], [["a", HOSTILE]], title=HOSTILE)
    run_step(["split", HOSTILE], lambda: None)
    show_json({"name": HOSTILE})
    printed = capsys.readouterr()
    assert not steers(printed.out + printed.err)


@given(st.text())
def test_json_stays_the_json_that_it_is(text: str) -> None:
    import contextlib
    import io

    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        show_json({text: [text, 1, None]})
    assert json.loads(written.getvalue()) == {text: [text, 1, None]}
    assert not steers(written.getvalue().replace("\t", "?")) or not text.isprintable()
    assert not any(letter in written.getvalue() for letter in "\x1b\x9b\x07\x7f\u202e")
