"""The pages of docs/ build without a broken link, name every public function, and their commands run in their order."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import landmarks
from landmarks.cli.main import VERBS
from landmarks.cli.main import run as landmarks_command
from landmarks.miniature.make import make_miniature

ROOT = Path(__file__).parents[2]
GUIDE = [ROOT / "docs" / "guide" / f"{name}.md" for name in ("choose", "own-images", "train", "numbers", "copies")]


def commands(page: Path) -> list[str]:
    """Return the indented lines of a page that are commands of ours."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.startswith("    landmarks ")]


def test_the_reference_names_every_public_function() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    named = {place.rpartition(".")[2] for place in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    assert set(dir(landmarks)) - {"__version__"} <= named


def test_the_commands_of_the_guide_are_verbs_that_exist() -> None:
    verbs = {verb for _, of_panel in VERBS.values() for verb in of_panel}
    documented = {shlex.split(command)[1] for page in GUIDE for command in commands(page)}
    assert documented <= verbs


@pytest.mark.slow
def test_every_command_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_miniature("demo/mirror", landmarks=3, images=16, unknown=3, seed=0)
    for page in GUIDE:
        for command in commands(page):
            words, _, file = command.partition(" > ")
            arguments = shlex.split(words, comments=True)[1:]
            if arguments[:2] == ["import", "holiday"]:  # anybody's folder of folders
                assert landmarks_command(["unpack", "data", "-o", "unpacked"]) == 0
                (tmp_path / "unpacked" / "train").rename(tmp_path / "holiday")
            if arguments[:2] == ["import", "holiday/labels.csv"]:  # somebody's list beside them
                rows = [f"{one.parent.name}/{one.name},{one.parent.name}" for one in Path("holiday").glob("*/*.jpg")]
                Path("holiday/labels.csv").write_text("\n".join(["file_name,class", *rows]), encoding="utf-8")
            capsys.readouterr()
            assert landmarks_command(arguments) == 0, command
            if file:
                Path(file).write_text(capsys.readouterr().out, encoding="utf-8")


@pytest.mark.slow
def test_the_pages_build_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    assert "Train a network on the dataset folder" in page
