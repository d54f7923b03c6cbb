from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from landmarks.support import console

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\x08\u202egnp.exe\r\x7f"


def steers(text: str) -> bool:
    """Whether a text, its line ends aside, holds anything that a terminal obeys."""
    return any(not letter.isprintable() and letter not in "\n" for letter in text)


@given(st.text())
def test_whatever_is_shown_is_one_line_that_steers_nothing(text: str) -> None:
    assert "\n" not in console.safe_line(text)
    assert not any(letter in console.safe_line(text) for letter in "\x1b\x9b\x07\x08\r\x7f\u202e\u2066\u2028")


@pytest.mark.parametrize("text", ["Łódź, 東京, é", "a [bold]b[/bold]", "C:\\photos\\x"])
def test_names_of_all_languages_are_shown_as_they_are(text: str) -> None:
    assert console.safe_line(text) == text


def test_no_way_to_the_terminal_lets_an_escape_sequence_through(capsys: pytest.CaptureFixture[str]) -> None:
    console.note(f"rejected: {HOSTILE}")
    console.show(HOSTILE)
    console.print_table(["image", HOSTILE], [["a", HOSTILE]], title=HOSTILE)
    console.run_step(["split", HOSTILE], lambda: None)
    console.show_json({"name": HOSTILE})
    printed = capsys.readouterr()
    assert not steers(printed.out + printed.err)


@given(st.text())
def test_json_stays_the_json_that_it_is(text: str) -> None:
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        console.show_json({text: [text, 1, None]})
    assert json.loads(written.getvalue()) == {text: [text, 1, None]}
    assert not steers(written.getvalue().replace("\t", "?")) or not text.isprintable()
    assert not any(letter in written.getvalue() for letter in "\x1b\x9b\x07\x7f\u202e")


def test_brackets_in_names_are_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(["name", "images"], [["[red]Tower[/red]", 3]])
    assert "[red]Tower[/red]" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a :x: b", "root:x:0", ":smile:", "C:\\photos\\", "[red]x[/red]\\", "[/]", "\\[a]"])
def test_names_are_shown_letter_by_letter(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.note(f"note {name}")
    console.print_table([name, "images"], [[name, 3]], title=f"title {name}")
    printed = capsys.readouterr()
    assert printed.err == f"note {name}\n"
    assert f"title {name}\n" in printed.out
    assert f"┃ {name} " in printed.out and f"│ {name} " in printed.out


@pytest.mark.parametrize("name", ["a :x: b", "C:\\photos\\", "[red]x[/red]"])
def test_a_bar_shows_names_letter_by_letter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None, markup=False, emoji=False)
    monkeypatch.setattr(console, "err", screen)
    with console.progress(name, 3) as advance:
        advance(1, f"now {name}")
    assert isinstance(screen.file, io.StringIO)
    assert f"{name} " in screen.file.getvalue() and f"now {name}" in screen.file.getvalue()


def test_a_log_gets_one_line_now_and_then_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.StringIO()
    now = [0.0]
    monkeypatch.setattr(console, "err", Console(file=lines, force_terminal=False, width=200))
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with console.progress("fetching", total=100) as advance:
        for _ in range(50):
            now[0] += 1.0
            advance(1, "12 MB/s")
    assert lines.getvalue() == "fetching: 30 %, 1 min 10 s left, 12 MB/s\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=drawn, force_terminal=True, width=120))
    with console.progress("fetching", total=2) as advance:
        advance(2, "[1] image")
    assert "fetching" in drawn.getvalue()
    assert "100 %" in drawn.getvalue()
    assert "[1] image" in drawn.getvalue()


def test_at_80_columns_a_bar_keeps_the_time_left_and_cuts_what_stands_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=drawn, force_terminal=True, width=80))
    with console.progress("epoch 3 of 10", total=2) as advance:
        advance(1, "loss 1.234, 71.2 %, 46 images/s, 12 min left in all, and more that has no room")
    last = re.sub("\x1b[^m]*m|\x1b\\[[^A-Za-z]*[A-Za-z]", "", drawn.getvalue()).replace("\r", "\n").splitlines()[-1]
    assert len(last) <= 80
    assert "epoch 3 of 10" in last and "50 %" in last and "…" in last
    assert re.search(r"\d:\d\d|--:--", last)


def test_a_title_is_not_wrapped_at_the_width_of_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(["a"], [[1]], "a title that is much longer than the table below it")
    assert capsys.readouterr().out.splitlines()[0] == "a title that is much longer than the table below it"


def test_a_bar_on_a_terminal_leaves_lines_in_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr(console, "err", Console(file=io.StringIO(), force_terminal=True, width=120))
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with console.output_settings(log=tmp_path / "log"), console.progress("fetching", total=10) as advance:
        now[0] += 31
        advance(1)
    console.note("not in the log any more")
    assert [line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()] == [
        "fetching: 10 %, 4 min 39 s left"
    ]
