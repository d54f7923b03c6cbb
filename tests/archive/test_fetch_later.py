"""A fetch that goes on later, also under another version of ours or of a decoder: nothing is refused or repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tar_mirror import make_mirror, make_selection, photo_id

from landmarks.archive import fetch as fetching
from landmarks.archive.fetch import fetch
from landmarks.dataset.manifest import Dataset
from landmarks.dataset.pictures import DECODER
from landmarks.support.errors import LandmarksError

UPGRADED = (  # the command line, but of a later version of ours, and of what decodes and encodes
    "import importlib.metadata, sys\n"
    "import landmarks\n"
    "installed = importlib.metadata.version\n"
    "importlib.metadata.version = lambda name: '99.9' if name in ('pillow', 'simplejpeg') else installed(name)\n"
    "landmarks.__version__ = '0.1.99'\n"
    "from landmarks.cli.main import run\n"
    "sys.exit(run(sys.argv[1:]))\n"
)


def half_fetched(folder: Path, tars: int = 3) -> tuple[Path, Path]:
    """A dataset whose last TAR could not be had, and its selection; the TAR is there again afterwards."""
    make_mirror(folder / "mirror", tars=tars)
    selection = make_selection(folder / "s.parquet", folder / "mirror", [photo_id(seed) for seed in range(tars * 10)])
    last = folder / f"mirror/train/images_{tars - 1:03d}.tar"
    last.rename(last.with_suffix(".away"))
    dataset = fetched(selection, folder / "data")
    assert [failed["tar"] for failed in dataset.record["failed"]] == [f"train/{last.name}"]
    last.with_suffix(".away").rename(last)
    return selection, folder / "data"


def fetched(selection: Path, out: Path) -> Dataset:
    dataset = fetch(selection, out)
    assert dataset is not None
    return dataset


def upgraded(*line: object) -> str:
    """Run the command line of a later version and return what it told."""
    told = subprocess.run(
        [sys.executable, "-c", UPGRADED, *map(str, line)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    return told.stderr


def test_an_upgrade_in_the_middle_of_a_fetch_repeats_nothing_and_says_so(tmp_path: Path) -> None:
    selection, data = half_fetched(tmp_path)
    early = {path: path.stat().st_mtime_ns for path in sorted((data / "shards").iterdir())}
    assert len(early) == 2
    told = upgraded("fetch", selection, "-o", data)
    assert "2 TARs are done already" in told
    both = sorted([DECODER, "simplejpeg 99.9, pillow 99.9"])
    assert f"decoded by {both[0]} and {both[1]}, which differ by some grey levels" in told
    record = json.loads((data / "dataset.json").read_text())
    assert (record["photographs"], record["failed"]) == (30, [])
    assert record["decoders"] == both
    assert {path: path.stat().st_mtime_ns for path in early} == early
    assert "complete already" in upgraded("fetch", selection, "-o", data)


def test_one_decoder_is_recorded_and_not_worth_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selection, data = half_fetched(tmp_path)
    assert fetched(selection, data).record["decoders"] == [DECODER]
    assert "decoded by" not in capsys.readouterr().err


def test_the_same_selection_made_again_by_another_version_goes_on(tmp_path: Path) -> None:
    selection, data = half_fetched(tmp_path)
    before = selection.read_bytes()
    again = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv.pop(1))\n"
        "import landmarks; landmarks.__version__ = '0.1.99'\n"
        "from tar_mirror import make_selection, photo_id\n"
        "make_selection(Path(sys.argv[1]), Path(sys.argv[2]), [photo_id(seed) for seed in range(30)])\n"
    )
    line = [sys.executable, "-c", again, Path(__file__).parent, selection, tmp_path / "mirror"]
    subprocess.run(line, check=True)
    assert selection.read_bytes() != before
    assert len(fetched(selection, data).photos) == 30


def test_what_would_be_stored_otherwise_is_refused_with_the_version_that_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection, data = half_fetched(tmp_path)
    monkeypatch.setattr(fetching, "HASH_FORM", fetching.HASH_FORM + 1)
    with pytest.raises(LandmarksError, match=r"begun by version 0\.1\.0, which stores photographs otherwise"):
        fetch(selection, data)
    monkeypatch.undo()
    whole = fetched(selection, data)
    monkeypatch.setattr(fetching, "STORED_FORM", fetching.STORED_FORM + 1)
    assert fetched(selection, data).record == whole.record  # what is complete is left alone
