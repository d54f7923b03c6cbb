"""The demonstration at its smallest: every step once, and nothing twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from landmarks.study.demo import Size, demo
from landmarks.support.errors import UsageError

SMALL = Size(landmarks=3, images=12, unknown=8, image_size=32, epochs=(("baseline", 1), ("resnet18", 1)), heat_maps=2)


@pytest.mark.slow
def test_the_demo_ends_in_a_table_and_a_report_and_does_nothing_twice(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = demo(tmp_path / "demo", size=SMALL)
    printed = capfd.readouterr()
    commands = re.findall(r"\$ landmarks (\w+)", printed.err)
    assert commands == [
        *("select", "fetch", "split", "train", "train", "select", "fetch"),
        *("evaluate", "evaluate", "evaluate", "evaluate", "explain", "report"),
    ]
    for word in ("baseline", "resnet18", "validation", "test", "parameters"):
        assert word in printed.err  # standard output is the caller's
    assert page.read_text(encoding="utf-8").lstrip().startswith("<!")

    made = {path: path.stat().st_mtime_ns for path in page.parent.glob("*/model.safetensors")}
    made |= {path: path.stat().st_mtime_ns for path in page.parent.rglob("*.tar")}
    assert len(made) > 3
    demo(tmp_path / "demo", size=SMALL)
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_a_folder_of_something_else_gets_no_demo(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no demo; received mine"):
        demo(tmp_path, size=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
