from __future__ import annotations

import json
from pathlib import Path

import pytest
from csv_mirror import write_mirror

from landmarks.cli.main import run
from landmarks.support.tables import read_metadata


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_mirror(tmp_path_factory.mktemp("mirror")))


def test_select_prints_what_it_chose(mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "two.parquet"
    assert run(["select", mirror, "-o", str(out), "--skip", "1", "--take", "2"]) == 0
    printed = capsys.readouterr()
    assert "Colosseum (Rome)" in printed.out
    assert "Sparkassen-Arena, Göttingen" in printed.out
    assert "8 photographs of 2 landmarks, about 1.0 MB in the mirror" in printed.out
    assert f"written to {out}" in printed.err.replace("\n", "")
    assert read_metadata(out)["rule"] == "--set train --skip 1 --take 2"


def test_select_tells_how_many_photographs_show_nothing_known(
    mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["select", mirror, "-o", str(tmp_path / "t"), "--set", "test", "--landmarks", "7"]) == 0
    assert "1 photographs of 1 landmarks and 5 photographs of nothing known" in capsys.readouterr().out


def test_select_prints_json_for_programs(mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["select", mirror, "-o", str(tmp_path / "t"), "--name", "rome", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "rule": "--set train --name rome",
        "photographs": 4,
        "others": 0,
        "expected_bytes": 4 * 121_000,
        "landmarks": [{"landmark_id": 3, "name": "Colosseum (Rome)", "images": 4}],
    }


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--skip", "9"], 1, "error: --skip 9 goes beyond the last of 5 landmarks"),
        (["--set", "tset"], 2, 'error: no set "tset"; expected train or test; did you mean "test"?'),
        (["--landmarks", "rome"], 2, 'error: no landmarks "rome"'),
        (["--take", "many"], 2, "error: Invalid value for '--take'"),
    ],
)
def test_a_clumsy_command_ends_in_one_line(
    mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, options: list[str], code: int, told: str
) -> None:
    assert run(["select", mirror, "-o", str(tmp_path / "t"), *options]) == code
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "t").exists()


def test_a_path_that_is_no_mirror_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["select", str(tmp_path / "nowhere"), "-o", str(tmp_path / "t")]) == 1
    assert capsys.readouterr().err.startswith(f"error: there is no mirror at {tmp_path / 'nowhere'}")


def test_credits_of_a_folder_that_is_no_dataset_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["credits", str(tmp_path)]) == 1
    assert "there is no dataset.json" in capsys.readouterr().err
