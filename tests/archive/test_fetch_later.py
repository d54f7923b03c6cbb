"""A fetch that goes on later, also under another version of ours or of a decoder: nothing is refused or repeated."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tar_mirror import image, made_up_id, make_mirror, make_selection, member_name, put_tar, tar_of

from landmarks.archive import fetch as fetching
from landmarks.archive.fetch import fetch
from landmarks.dataset import manifest
from landmarks.dataset.images import DECODER, PIXEL_FORM
from landmarks.dataset.manifest import SPLITS, Dataset, open_dataset
from landmarks.dataset.split import split
from landmarks.support.errors import LandmarksError
from landmarks.support.tables import read_metadata, write_table

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
    selection = make_selection(folder / "s.parquet", folder / "mirror", [made_up_id(seed) for seed in range(tars * 10)])
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
    """Run the command line of a later version and return its notes."""
    ended = subprocess.run(
        [sys.executable, "-c", UPGRADED, *map(str, line)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_an_upgrade_in_the_middle_of_a_fetch_repeats_nothing_and_says_so(tmp_path: Path) -> None:
    selection, data = half_fetched(tmp_path)
    early = {path: path.stat().st_mtime_ns for path in sorted((data / "shards").iterdir())}
    assert len(early) == 2
    notes = upgraded("fetch", selection, "-o", data)
    assert "2 TARs are done already" in notes
    both = sorted([DECODER, f"simplejpeg 99.9, pillow 99.9, form {PIXEL_FORM}"])
    assert f"decoded by {both[0]} and {both[1]}, which differ by some grey levels" in notes
    record = json.loads((data / "dataset.json").read_text())
    assert (record["images"], record["failed"]) == (30, [])
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
        "from tar_mirror import make_selection, made_up_id\n"
        "make_selection(Path(sys.argv[1]), Path(sys.argv[2]), [made_up_id(seed) for seed in range(30)])\n"
    )
    line = [sys.executable, "-c", again, Path(__file__).parent, selection, tmp_path / "mirror"]
    subprocess.run(line, check=True)
    assert selection.read_bytes() != before
    assert len(fetched(selection, data).images) == 30


def test_what_would_be_stored_otherwise_is_refused_with_the_version_that_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection, data = half_fetched(tmp_path)
    monkeypatch.setattr(fetching, "HASH_FORM", fetching.HASH_FORM + 1)
    with pytest.raises(LandmarksError, match=r"begun by version 0\.1\.0, which stores images otherwise"):
        fetch(selection, data)
    monkeypatch.undo()
    whole = fetched(selection, data)
    monkeypatch.setattr(fetching, "STORED_FORM", fetching.STORED_FORM + 1)
    assert fetched(selection, data).record == whole.record  # what is complete is left alone


def with_copies(folder: Path) -> tuple[Path, Path, dict[str, str]]:
    """A dataset of 90 images, divided, whose fourth TAR could not be had; it holds 30 near-copies and 30 others.

    Returns the selection, the dataset, and copy → original.
    """
    ids = make_mirror(folder / "mirror", tars=3, each=30)
    copies = {made_up_id(1000 + seed): ids[seed] for seed in range(30)}
    others = {made_up_id(2000 + seed): image(2000 + seed) for seed in range(30)}
    shrunk = {id: image(seed, 160, 120) for seed, id in enumerate(copies)}
    last = tar_of([(member_name(id), data) for id, data in {**shrunk, **others}.items()])
    put_tar(folder / "mirror", 3, last)
    tar = folder / "mirror/train/images_003.tar"
    tar.rename(tar.with_suffix(".away"))
    selection = make_selection(folder / "s.parquet", folder / "mirror", [*ids, *copies, *others])
    fetched(selection, folder / "data")
    split(folder / "data", val=0.2, test=0.1, seed=5)
    tar.with_suffix(".away").rename(tar)
    return selection, folder / "data", copies


def test_what_a_later_fetch_adds_is_added_to_the_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selection, data, copies = with_copies(tmp_path)
    before = dict(open_dataset(data).splits.rows())  # type: ignore[union-attr]
    assert {part: list(before.values()).count(part) for part in SPLITS} == {"train": 63, "val": 18, "test": 9}
    capsys.readouterr()
    whole = fetched(selection, data)
    notes = capsys.readouterr().err
    after = dict(whole.splits.rows())  # type: ignore[union-attr]
    assert sorted(after) == whole.images["image_id"].to_list() and len(after) == 150
    assert {id: after[id] for id in before} == before
    assert {copy: after[copy] for copy in copies} == {copy: before[one] for copy, one in copies.items()}
    assert {before[one] for one in copies.values()} == set(SPLITS)  # or the line above says little
    others = [part for id, part in after.items() if id not in before and id not in copies]
    assert set(others) == set(SPLITS)
    shares = [list(after.values()).count(part) / 150 for part in SPLITS]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.04)
    assert (
        "60 images are new: 30 joined the split of those they are grouped with, 30 were divided as all before "
        "(by group, val 0.2, test 0.1, seed 5); the 90 others stay in their splits"
    ) in notes
    metadata = read_metadata(data / "splits.parquet")
    assert {name: metadata[name] for name in ("by", "val", "test", "seed", "added")} == {
        "by": "group", "val": "0.2", "test": "0.1", "seed": "5", "added": "60",
    }  # fmt: skip
    leakage = json.loads(metadata["leakage"])
    assert leakage["near_duplicate_pairs"] == 30
    assert leakage["straddling_pairs"] == leakage["held_out_with_kin_in_train"] == 0
    assert (
        f"of 30 near-duplicate pairs 0 straddle this split, {leakage['straddling_pairs_random']} a random one" in notes
    )
    of = dict(whole.images.select("image_id", "group").rows())
    assert all(of[copy] == of[one] for copy, one in copies.items())


def test_a_lost_shard_that_is_fetched_again_leaves_the_split_as_it_was(tmp_path: Path) -> None:
    selection, data, _ = with_copies(tmp_path)
    fetched(selection, data)
    before = {name: (data / name).read_bytes() for name in ("splits.parquet", "images.parquet")}
    (data / "shards/images_001.tar").unlink()
    fetched(selection, data)
    assert {name: (data / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("written", range(5))
def test_a_fetch_killed_while_it_adds_to_the_split_ends_with_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    selection, data, _ = with_copies(tmp_path)
    shutil.copytree(tmp_path / "data", tmp_path / "killed")
    whole = fetched(selection, data)
    count = 0

    def killed(*arguments: Any, **options: Any) -> None:
        nonlocal count
        if count == written:
            raise KeyboardInterrupt
        count += 1
        write_table(*arguments, **options)

    monkeypatch.setattr(manifest, "write_table" if written < 4 else "write_record", killed if written < 4 else _kill)
    with pytest.raises(KeyboardInterrupt):
        fetch(selection, tmp_path / "killed")
    monkeypatch.undo()
    resumed = fetched(selection, tmp_path / "killed")
    assert resumed.digest == whole.digest
    for name in ("splits.parquet", "images.parquet", "labels.parquet", "rejected.parquet"):
        assert (tmp_path / "killed" / name).read_bytes() == (data / name).read_bytes()


def _kill(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_corrections_hold_for_the_groups_of_what_a_later_fetch_adds(tmp_path: Path) -> None:
    selection, data, _ = with_copies(tmp_path)
    before = open_dataset(data)
    one = before.split("test")["image_id"][0]
    landmark = before.images.filter(pl.col("image_id") == one)["landmark_id"][0]
    (tmp_path / "decided.csv").write_text(f"image_id,correct_landmark_id\n{one},{100 + (landmark + 1) % 3}\n")
    split(data, corrections=tmp_path / "decided.csv")
    whole = fetched(selection, data)
    assert whole.splits.join(before.splits, on=["image_id", "split"], how="semi").height == 90  # type: ignore[union-attr, arg-type]
    assert len(whole.corrected) == 1
    assert read_metadata(data / "splits.parquet")["corrected"] == "1"


def test_groups_are_known_before_anything_is_divided(tmp_path: Path) -> None:
    ids = make_mirror(tmp_path / "mirror", tars=1, each=6)
    put_tar(tmp_path / "mirror", 1, tar_of([(member_name(made_up_id(99)), image(0, 160, 120))]))
    data = fetched(
        make_selection(tmp_path / "s.parquet", tmp_path / "mirror", [*ids, made_up_id(99)]), tmp_path / "data"
    )
    assert data.splits is None
    group = dict(data.images.select("image_id", "group").rows())
    assert group[ids[0]] == group[made_up_id(99)]
    assert len(set(group.values())) == 6
