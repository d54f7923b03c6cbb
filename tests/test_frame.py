"""The frame: what the package promises before any verb runs."""

from __future__ import annotations

import ast
import importlib
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import landmarks
from landmarks.cli.main import VERBS, run

HEAVY = ("torch", "polars", "numpy", "timm", "scipy", "altair")


def loaded_after(code: str) -> set[str]:
    printed = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules, file=sys.stderr)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(printed.stderr.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_after("import landmarks") & set(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    assert not loaded_after("from landmarks.cli.main import run; run(['-h'])") & set(HEAVY)


def test_answering_loads_neither_what_trains_nor_what_draws() -> None:
    loaded = loaded_after("import landmarks; landmarks.predict, landmarks.load")
    assert "numpy" in loaded
    assert not loaded & {"accelerate", "altair", "jinja2", "optuna", "sklearn", "timm", "torch", "vl_convert"}


@pytest.mark.slow
def test_help_answers_in_under_half_a_second() -> None:
    # Alone among the tests this one has a limit, since the promise itself is a time. The best of five is compared, and
    # of the processor's time alone: a busy machine is no failure.
    def used() -> float:
        return os.times().children_user + os.times().children_system

    seconds = []
    for _ in range(5):
        before = used()
        subprocess.run([sys.executable, "-m", "landmarks", "-h"], capture_output=True, check=True)
        seconds.append(used() - before)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("verb", [verb for _, verbs in VERBS.values() for verb in verbs])
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "-h"]) == 0
    assert f"landmarks {verb}" in capsys.readouterr().out


def test_every_verb_is_a_function_of_the_package_also_after_its_rooms_were_loaded() -> None:
    importlib.import_module("landmarks.cli.main")
    importlib.import_module("landmarks.reporting.page")
    for _, verbs in VERBS.values():
        for verb in verbs:
            assert callable(getattr(landmarks, "import_" if verb == "import" else verb))


def test_the_public_surface_is_the_verbs_and_what_they_return() -> None:
    verbs = {"import_" if verb == "import" else verb for _, verbs in VERBS.values() for verb in verbs}
    others = {"__version__", "LandmarksError", "Recipe", "export_page", "load", "open_dataset", "open_run"}
    assert set(dir(landmarks)) == verbs | others


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        _ = landmarks.tarin


def test_a_function_whose_extra_is_missing_says_which() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import landmarks\n"
        "try: landmarks.train\n"
        "except landmarks.LandmarksError as error: sys.exit(f'{type(error).__name__}: {error}')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stderr == (
        'MissingExtraError: landmarks.train needs the extra "train", which is not installed (no module named torch); '
        'install it with: pip install "landmarks[train]"\n'
    )


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["trian"], 2, 'did you mean "train"?'),
        (["select"], 2, "Missing argument"),
        (["demo", "--colour"], 2, "No such option"),
        (["report", "no-such-run"], 1, "no-such-run"),
    ],
)
def test_a_wrong_command_is_told_in_one_line(
    words: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == code
    message = capsys.readouterr().err.strip()
    assert line in message
    assert "\n" not in message


def test_the_drawing_of_the_house_names_every_room_from_top_to_bottom() -> None:
    root = Path(landmarks.__file__).parent
    drawing = (root.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^\| `(\w+)` \|", drawing[drawing.index("## Rooms") :], re.MULTILINE)
    layers = tomllib.loads((root.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert drawn == layers["contracts"][0]["layers"]
    assert set(drawn) == {path.parent.name for path in root.glob("*/__init__.py")}


def test_no_file_of_the_house_has_the_name_of_another() -> None:
    names = [path.name for path in Path(landmarks.__file__).parent.rglob("*.py") if path.name != "__init__.py"]
    assert {name for name in names if names.count(name) > 1} == set()


def test_an_interruption_ends_with_130_and_one_line(tmp_path: Path) -> None:
    code = (
        "import sys, landmarks.archive.fetch as fetching\n"
        "def interrupted(*_, **__): raise KeyboardInterrupt\n"
        "fetching.fetch = interrupted\n"
        "from landmarks.cli.main import run; sys.exit(run(['fetch', 'x.parquet', '-o', sys.argv[1]]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr == "interrupted; what is finished is kept; run the same command again to go on\n"


@pytest.mark.linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_being_asked_to_end_is_an_interruption(number: int, tmp_path: Path) -> None:
    code = (
        "import os, sys, time, landmarks.dataset.credits as credits\n"
        "def waiting(*_, **__):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    time.sleep(60)\n"
        "credits.credits = waiting\n"
        "from landmarks.cli.main import main; sys.argv = ['landmarks', 'credits', 'x']; main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr == "interrupted; nothing is half-written; run the same command again\n"


@pytest.mark.linux
def test_who_asks_twice_does_not_wait_for_threads_and_sees_no_traceback() -> None:
    code = (
        "import os, signal, threading, time, sys, landmarks.dataset.credits as credits\n"
        "def waiting(*_, **__):\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "credits.credits = waiting\n"
        "from landmarks.cli.main import main; sys.argv = ['landmarks', 'credits', 'x']; main()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "interrupted; nothing is half-written; run the same command again\n"
        time.sleep(0.2)  # it begins to wait for its thread
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == 130


SOURCES = sorted(Path(landmarks.__file__).parent.rglob("*.py"))
ONE_PLACE = {
    r"(?<![\w.])print\(": ("console.py", "main.py"),
    r"\.write_csv\([^)]*(aside|path|out|file)": ("tables.py",),
    r"csv\.writer\(": ("make.py",),  # of the made-up archive, whose CSVs are as the archive's
    r"\.write_parquet\(": ("tables.py",),
    r"\.mkdir\(|rmtree\(": ("disk.py", "files.py", "weights.py", "make.py", "checkpoint.py"),
}
"""What is written in one place alone: pattern → the files that may."""


@pytest.mark.parametrize("pattern", ONE_PLACE)
def test_what_prints_and_what_writes_is_one_place(pattern: str) -> None:
    found = {path.name for path in SOURCES if re.search(pattern, path.read_text(encoding="utf-8"))}
    assert found <= set(ONE_PLACE[pattern])


def test_the_file_that_type_checkers_read_uses_every_public_name() -> None:
    text = (Path(__file__).parent / "front_door.py").read_text(encoding="utf-8")
    assert [name for name in dir(landmarks) if not re.search(rf"\b{name}\b", text)] == []


def test_a_public_class_or_function_occurs_once() -> None:
    """But for the command line, whose functions are named like the verbs, and both backends of a recogniser."""
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        if path.parent.name == "cli" or path.name == "portable.py":  # answers as `trained.py` does
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{path.parent.name}/{path.name}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_benchmarks_import_what_there_is() -> None:
    """They take minutes and need real images, so that no test runs them."""
    missing = []
    for path in sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("landmarks"):
                continue
            place = Path(landmarks.__file__).parent.joinpath(*(node.module or "").split(".")[1:])
            module = place.with_suffix(".py")
            text = module.read_text(encoding="utf-8") if module.exists() else ""
            for name in (one.name for one in node.names):
                defined = re.search(rf"^((def|class) )?{name}\b", text, re.MULTILINE) or name in dir(landmarks)
                if not defined and not (place / f"{name}.py").exists():
                    missing.append(f"{path.name}: {node.module}.{name}")
    assert missing == []
