"""Every command of docs/serving.md does what it says there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_runs import image
from serving.conftest import IMAGES, command

from landmarks.cli.main import run

DOCUMENT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the document's commands find what they name."""
    (tmp_path / "runs").mkdir()
    shutil.copytree(run_folder, tmp_path / "runs" / "mobilenet")
    new = [image(58, number) for number in range(2)]
    for name, data in zip(("paris.jpg", "rome.jpg", "one.jpg", "two.jpg"), [*IMAGES[:2], *new], strict=True):
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said_by(line: str, url: str, environment: dict[str, str]) -> str:
    """Run one line of the document against the server at `url`; return what it printed."""
    line = line.replace("http://127.0.0.1:8000", url)
    line = re.sub(r"^curl ", "curl --silent --show-error --fail-with-body ", line)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment, "PATH": path},
    )
    assert ended.returncode == 0, (line, ended.stdout, ended.stderr)
    return ended.stdout


@pytest.mark.slow
@pytest.mark.linux
def test_every_command_answers(place: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    serving = [line for line in lines if line.startswith("landmarks serve")]
    at = lines.index(serving[2])
    export = lines[at - 1]
    assert export.startswith("export LANDMARKS_TOKEN=")
    token = said_by(f'{export}; echo "$LANDMARKS_TOKEN"', "", {}).strip()
    curl_lines = [line for line in lines if line.startswith("curl ")]
    assert len(lines) == len(curl_lines) + len(serving) + 1
    assert len(token) > 40
    assert "--teach" in serving[1]
    to_teach = [line for line in curl_lines if "-F name=" in line or "DELETE" in line]
    with_token = [line for line in curl_lines if "$LANDMARKS_TOKEN" in line]
    others = [line for line in curl_lines if line not in to_teach + with_token]
    for words, chosen, environment in (
        (serving[0], others, {}),
        (serving[1], to_teach, {}),
        (serving[2], with_token, {"LANDMARKS_TOKEN": token}),
    ):
        assert chosen
        with command(*shlex.split(words.replace(" --port 8000", ""))[2:], **environment) as (process, url, _):
            for line in chosen:
                printed = said_by(line, url.replace("0.0.0.0", "127.0.0.1"), environment)
                if "/recognise" in line:
                    images = json.loads(printed)["images"]
                    assert len(images) == line.count(".jpg")
                    assert all(image["answers"] for image in images)
                else:
                    assert printed
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0


def test_its_examples_of_json_and_python_are_what_they_say(place: Path) -> None:
    (answer,) = (json.loads(block) for block in blocks("json"))
    assert set(answer["images"][0]) == {"file", "known", "problem", "generation", "answers"}
    (program,) = blocks("python")
    names: dict[str, object] = {}
    exec(program, names)
    assert callable(names["app"])


def test_the_commands_of_services_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    (unit,), (container,) = blocks("ini"), blocks("dockerfile")
    started = shlex.split(re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)[0])
    words = [started, json.loads(re.findall("^CMD (.*)$", container, re.MULTILINE)[0])]
    for program, *arguments in words:
        assert Path(program).name == "landmarks"
        assert run([*arguments, "--port", "0"]) == 1  # understood; what it names is not here
        assert "current.onnx" in capsys.readouterr().err


def test_its_numbers_are_the_defaults() -> None:
    from landmarks.serving.front import COUNTED, Limits
    from landmarks.serving.server import CONNECTIONS

    limits = Limits()
    table = DOCUMENT[DOCUMENT.index("## Errors") : DOCUMENT.index("## Token")]
    for number in (limits.max_bytes, limits.max_pixels, limits.max_files, limits.queue, limits.seconds, CONNECTIONS):
        assert f"{number:,.0f}" in table
    assert limits.held_bytes == 256_000_000
    assert all(path in DOCUMENT for path in COUNTED)
