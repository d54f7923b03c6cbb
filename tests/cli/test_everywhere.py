"""What holds for every verb: --json, --quiet, --log, --partial-ok, exit codes, and the same defaults as in Python."""

from __future__ import annotations

import csv
import inspect
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_exports import GOOD, by_hand
from made_up_runs import _short_features, image, make_dataset, make_run, own_data, run

import landmarks
from landmarks.cli import main
from landmarks.cli.everywhere import EXIT_CODES, parse_shared_options, print_json
from landmarks.cli.main import VERBS
from landmarks.cli.main import run as command
from landmarks.dataset.manifest import Dataset
from landmarks.support.errors import UsageError
from landmarks.training.run import Run

__all__ = ["_short_features", "own_data", "run"]

EVERY_VERB = [verb for _, verbs in VERBS.values() for verb in verbs]
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d "


def answered(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """Run a command that must succeed and return its whole standard output as JSON."""
    assert command([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def rows_of(table: Path) -> list[dict[str, str]]:
    with open(table, encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_every_verb_answers_in_json_and_names_the_exit_codes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([verb, "-h"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    word = "import_" if verb == "import" else verb
    takes = inspect.signature(getattr(sys.modules[f"landmarks.cli.{_module(verb)}"], word)).parameters
    assert ("json" in takes) == (verb != "serve")  # which answers in JSON over HTTP, and never returns
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in text


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_every_verb_has_the_same_defaults_in_the_shell_as_in_python(verb: str) -> None:
    word = "import_" if verb == "import" else verb
    shell = inspect.signature(getattr(sys.modules[f"landmarks.cli.{_module(verb)}"], word)).parameters
    python = inspect.signature(getattr(landmarks, word)).parameters
    shared = set(shell) & set(python)
    assert shared
    for name in shared:
        default = shell[name].default
        if default is not None and default is not inspect.Parameter.empty:
            here = python[name].default
            assert str(default) == (",".join(here) if isinstance(here, tuple) else str(here)), name


def _module(verb: str) -> str:
    return next(module for module, verbs in VERBS.values() if verb in verbs)


def test_the_readme_and_the_page_for_every_day_list_the_exit_codes() -> None:
    root = Path(__file__).parents[2]
    for file in ("README.md", "docs/every-day.md"):
        text = " ".join((root / file).read_text(encoding="utf-8").split())
        for code, meaning in EXIT_CODES.items():
            assert re.search(rf"\b{code}\W+{re.escape(meaning)}", text), (file, code)


@given(st.permutations(["train", "data", "-o", "run"]), st.integers(0, 4), st.sampled_from(["--log=a b", "--log"]))
def test_options_for_every_verb_may_stand_anywhere(words: list[str], place: int, log: str) -> None:
    given_words = [*words[:place], "--quiet", log, *(["a b"] if log == "--log" else []), *words[place:], "--partial-ok"]
    found = parse_shared_options(given_words)
    assert found.words == tuple(words)
    assert (found.quiet, found.partial_ok, found.debug, found.log) == (True, True, False, Path("a b"))


def test_what_follows_two_dashes_is_left_alone() -> None:
    assert parse_shared_options(["predict", "run", "--", "--quiet"]).words == ("predict", "run", "--", "--quiet")


@pytest.mark.parametrize("words", [["predict", "run", ""], ["predict", "", "a.jpg"], ["import", "a", "--out="]])
def test_an_empty_argument_is_no_folder(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(words) == 2
    assert "is empty; a variable of the shell may not be set" in capsys.readouterr().err


def test_home_is_meant_where_the_shell_leaves_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = ["import", "~/images", "--out=~/data", "--name=a~/b", "x=~/y"]
    home = os.path.expanduser("~")  # noqa: PTH111
    assert parse_shared_options(words).words == (
        "import",
        f"{home}/images",
        f"--out={home}/data",
        "--name=a~/b",
        "x=~/y",
    )
    (tmp_path / "~").mkdir()
    assert parse_shared_options(["import", "~/", "--", "~/x"]).words == ("import", "~/", "--", "~/x")


@pytest.mark.linux
def test_a_folder_that_is_gone_is_no_place_to_start_in(tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            "/bin/sh",
            "-c",
            'mkdir gone && cd gone && rmdir ../gone && exec "$0" -m landmarks import a -o b',
            sys.executable,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "the folder in which this was started is not there any more" in ended.stderr


@pytest.mark.linux
def test_a_log_on_a_full_disk_ends_no_verb(run: Run, inbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["predict", str(run.folder), str(inbox), "--log", "/dev/full"]) == 1  # one image is broken
    notes = capsys.readouterr().err
    assert notes.count("the log /dev/full is not written any more (No space left on device)") == 1


@pytest.mark.parametrize("name", ["run.json", "model.safetensors"])
def test_a_table_of_answers_replaces_no_file_of_another_kind(
    run: Run, inbox: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / name
    copy.write_bytes(b"kept")
    assert command(["predict", str(run.folder), str(inbox), "--csv", str(copy)]) == 2
    assert "is there already and is not .csv by its name" in capsys.readouterr().err
    assert copy.read_bytes() == b"kept"


@pytest.mark.parametrize("words", [["train", "--log"], ["--log="], ["--log", "--quiet"]])
def test_a_log_without_a_name_is_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="needs the name of a file"):
        parse_shared_options(words)
    assert command(words) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_numbers_that_are_none_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"path": Path("a"), "low": float("nan"), "rows": ({"high": float("-inf")}, "ä")})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"path": "a", "low": None, "rows": [{"high": None}, "ä"]}
    assert "ä" in printed


# ── The log ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_log_holds_every_line_with_its_time_and_the_exit_code(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "day.log"
    assert command(["evaluate", str(run.folder), "--split", "val", "--log", str(log)]) == 0
    printed = capsys.readouterr()
    assert command(["evaluate", str(tmp_path / "none"), f"--log={log}"]) == 1
    lines = log.read_text(encoding="utf-8").splitlines()
    assert all(re.match(STAMP, line) for line in lines)
    texts = [line.split(" ", 1)[1] for line in lines]
    assert texts[0] == f"$ landmarks evaluate {run.folder} --split val"
    notes = [" ".join(line.split()) for line in printed.err.splitlines() if line.strip()]
    assert texts[1 : 1 + len(notes)] == notes
    assert sum(line.startswith("exit code 0 (done) after") for line in texts) == 1
    assert texts[-2].startswith("error: there is no run")
    assert texts[-1].startswith("exit code 1 (")


def test_quiet_leaves_results_and_errors(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--quiet", "evaluate", str(run.folder), "--split", "val"]) == 0
    printed = capsys.readouterr()
    assert (printed.err, "top1" in printed.out) == ("", True)
    assert command(["evaluate", str(tmp_path / "none"), "--quiet"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_no_log_is_appended_to_a_file_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run.json", "a.jpg"):
        (tmp_path / name).write_bytes(b"{}")
        assert command(["networks", "baseline", "--log", str(tmp_path / name)]) == 2
        assert f"{name} is there already and is not .log by its name" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == b"{}"
    for _ in range(2):  # a log of any name goes on
        assert command(["networks", "baseline", "--log", str(tmp_path / "mine.json")]) == 0


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert command(["networks", "--log", str(tmp_path / "file" / "day.log")]) == 1
    assert "file cannot be made a folder" in capsys.readouterr().err


def test_an_unforeseen_error_leaves_its_traceback_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a\nbug")

    monkeypatch.setattr(main, "_program", broken)
    log = tmp_path / "day.log"
    assert command(["networks", "--log", str(log)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    lines = log.read_text().splitlines()
    assert any("test_everywhere.py" in line for line in lines)
    assert all(re.match(STAMP, line) for line in lines)


def test_no_secret_of_an_address_reaches_the_log(tmp_path: Path) -> None:
    address = "https://me:hunter2@127.0.0.1:9/mirror?X-Amz-Signature=abc"
    command(["select", address, "-o", str(tmp_path / "a.parquet"), "--log", str(tmp_path / "day.log")])
    log = (tmp_path / "day.log").read_text()
    assert "127.0.0.1" in log
    assert "hunter2" not in log and "abc" not in log


# ── Done in part ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """Two good images and a broken one."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(image(11, number))
    (folder / "broken.jpg").write_bytes(image(11, 3)[:100])
    return folder


def test_a_broken_image_among_good_ones_is_1_or_with_partial_ok_0(
    run: Run, inbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "answers.csv"
    words = ["predict", str(run.folder), str(inbox), "--csv", str(table)]
    for more, code in ([], 1), (["--partial-ok"], 0):
        table.unlink(missing_ok=True)
        assert command([*words, *more]) == code
        printed = capsys.readouterr()
        assert "broken.jpg" in printed.err
        rows = rows_of(table)
        assert len({row["path"] for row in rows}) == 3
        assert [Path(row["path"]).name for row in rows if row["problem"]] == ["broken.jpg"]
        assert printed.out.splitlines()[0].endswith("answers.csv: best answers")  # counted, not listed
        assert "0.jpg" not in printed.out


def test_an_empty_folder_is_1_or_with_partial_ok_nothing_to_do(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    words = ["predict", str(run.folder), str(tmp_path / "empty")]
    assert command(words) == 1
    assert command([*words, "--partial-ok"]) == 0
    assert "nothing to do: " in capsys.readouterr().err
    assert answered(capsys, *words, "--partial-ok") == []


def test_partial_ok_forgives_no_error(tmp_path: Path) -> None:
    assert command(["predict", str(tmp_path / "none"), str(tmp_path), "--partial-ok"]) == 1
    assert command(["predict", "--partial-ok"]) == 2


def test_the_table_can_go_to_standard_output(run: Run, inbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["predict", str(run.folder), str(inbox), "--csv", "-", "--partial-ok"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 2 * 3 + 1
    assert not Path("-").exists()
    assert command(["predict", str(run.folder), str(inbox), "--csv", "-", "--json"]) == 2


# ── Every verb as JSON, on real data ────────────────────────────────────────────────────────────────────────────────


def test_the_data_verbs_answer_in_json(miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen, data = tmp_path / "chosen.parquet", tmp_path / "data"
    selected = answered(capsys, "select", miniature, "-o", chosen)
    assert (selected["path"], len(selected["landmarks"])) == (str(chosen), 6)
    index = answered(capsys, "locate", miniature, "-o", tmp_path / "index.parquet")
    assert (index["tars"], index["unindexed"]) == (index["indexed"], [])
    dry = answered(capsys, "fetch", chosen, "-o", data, "--dry-run")
    assert dry["requests"] > 0 and not data.exists()
    fetched = answered(capsys, "fetch", chosen, "-o", data)
    assert (fetched["images"] + fetched["rejected"], fetched["landmarks"]) == (selected["images"], 6)
    assert fetched["failed"] == []
    split = answered(capsys, "split", data)
    assert sum(row["images"] for row in split["splits"]) == fetched["images"]
    assert answered(capsys, "unpack", data, "-o", tmp_path / "folders") == {"folder": str(tmp_path / "folders")}
    imported = answered(capsys, "import", tmp_path / "folders", "-o", tmp_path / "again")
    assert (imported["images"], imported["folder"]) == (fetched["images"], str(tmp_path / "again"))
    assert len(answered(capsys, "credits", data)) == fetched["images"]


def test_the_verbs_of_a_run_answer_in_json(
    run: Run, own_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answered(capsys, "evaluate", run.folder)["known"] == 6
    page = tmp_path / "page.html"
    assert answered(capsys, "report", run.folder, "-o", page) == {"page": str(page), "runs": [str(run.folder)]}
    assert answered(capsys, "subsets", run.folder, "--landmarks", "2")["draws"] == 200
    assert answered(capsys, "networks", "baseline")[0]["network"] == "baseline"
    measured = answered(capsys, "explain", run.folder, "--faithfulness", "--count", "2")
    assert measured["maps"][0]["map"] == "heat"
    assert landmarks.explain(run.folder, count=2, faithfulness=True)["maps"] == measured["maps"]


def test_training_prints_its_record_and_nothing_else(
    own_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--backbone", "baseline", "--image-size", "32", "--epochs", "1", "--tracking", "none"]
    record = answered(capsys, "train", own_data.folder, "-o", tmp_path / "new", *words)
    assert (record["folder"], record["recipe"]["backbone"]) == (str(tmp_path / "new"), "baseline")


# ── Wrong answers, and errors that point the way ────────────────────────────────────────────────────────────────────


def test_wrong_answers_are_a_table(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    table = tmp_path / "wrong.csv"
    numbers = landmarks.evaluate(run.folder, wrong=table)
    rows = rows_of(table)
    assert len(rows) == round(6 * (1 - (numbers.top1.value or 0))) > 0
    answers = {row["image_id"]: row for row in run.predictions("test").to_dicts()}
    for row in rows:
        expected = answers[row["image_id"]]
        assert ([row["shows"]], row["answer"], expected["correct"]) == (expected["shows"], expected["answer"], False)
        assert Path(row["file"]).is_file()
    probabilities = np.array([float(row["probability"]) for row in rows])
    assert (np.diff(probabilities) <= 0).all()


def test_help_breaks_its_lines_where_the_terminal_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert command(["split", "-h"]) == 0
    text = capsys.readouterr().out.partition("╭")[0]
    for line, following in itertools.pairwise(line.strip() for line in text.splitlines()):
        if line and following:  # of one paragraph
            assert len(f"{line} {following.split()[0]}") > 58, line


@pytest.mark.parametrize(
    ("words", "message", "times"),
    [
        (["evaluat"], "did you mean", 1),
        (["evaluate"], "landmarks evaluate -h", 1),
        (["evaluate", "run", "--splt", "val"], "landmarks evaluate -h", 1),
        (["nothing-like-it"], "landmarks -h", 1),
    ],
)
def test_a_wrong_command_is_pointed_to_its_help_once(
    words: list[str], message: str, times: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(words) == 2
    error = capsys.readouterr().err
    assert error.lower().count(message) == times
    assert error.lower().count("did you mean") <= 1


@pytest.mark.linux
@pytest.mark.parametrize("kind", ["export", pytest.param("run", marks=pytest.mark.slow)])
def test_a_pipe_that_reads_json_gets_json_alone(kind: str, run: Run, own_data: Dataset, tmp_path: Path) -> None:
    labels = [{"landmark_id": id, "name": f"Tower {id}"} for id in (11, 22)]
    (tmp_path / "hand.onnx").write_bytes(by_hand(GOOD | {"labels": labels}))
    words = [tmp_path / "hand.onnx", "--data", own_data.folder] if kind == "export" else [run.folder]
    done = subprocess.run(
        [sys.executable, "-m", "landmarks", "evaluate", *map(str, words), "--json", "--quiet"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["name"] == ("data" if kind == "export" else "test")
    assert done.stderr == ""


def test_an_empty_split_is_named_with_the_ones_that_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_dataset(tmp_path / "data", [[11], [22]] * 6, splits=["train"] * 8 + ["val"] * 4)
    bare = make_run(tmp_path / "run", data)
    for verb in ("explain", "evaluate"):
        assert command([verb, str(bare.folder)]) == 1
        notes = capsys.readouterr().err
        assert 'the split "test" of' in notes and "name another with --split: train, val" in notes
    page = landmarks.report([bare.folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "--split val" in page
