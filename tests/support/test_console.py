from __future__ import annotations

import io

import pytest
from rich.console import Console

from landmarks.support import console


def test_brackets_in_names_are_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(["name", "images"], [["[red]Tower[/red]", 3]])
    assert "[red]Tower[/red]" in capsys.readouterr().out


def test_a_log_gets_one_line_now_and_then_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.StringIO()
    now = [0.0]
    monkeypatch.setattr(console, "err", Console(file=lines, force_terminal=False, width=200))
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with console.progress("fetching", total=100) as advance:
        for _ in range(50):
            now[0] += 1.0
            advance(1, "12 MB/s")
    assert lines.getvalue() == "fetching: 30 %, 1 min 10 s left 12 MB/s\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=drawn, force_terminal=True, width=120))
    with console.progress("fetching", total=2) as advance:
        advance(2, "[1] image")
    assert "fetching" in drawn.getvalue()
    assert "100 %" in drawn.getvalue()
    assert "[1] image" in drawn.getvalue()
