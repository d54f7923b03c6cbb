"""The miniature archive: the published layout, the same bytes for a seed, and images that decode."""

from __future__ import annotations

import concurrent.futures
import csv
import hashlib
import io
import multiprocessing
import subprocess
import sys
import tarfile
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from landmarks.miniature import make
from landmarks.miniature.make import choose_landmarks, make_miniature, train_images
from landmarks.miniature.shots import render_shot
from landmarks.support.errors import LandmarksError, UsageError


def rows(mirror: Path, name: str) -> list[dict[str, str]]:
    with open(mirror / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def members(mirror: Path, name: str) -> dict[str, bytes]:
    found = {}
    for path in sorted((mirror / name).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def whole(mirror: Path) -> dict[str, bytes]:
    files = (path for path in mirror.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(mirror)): path.read_bytes() for path in files}


def test_one_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    size = {"landmarks": 2, "images": 4, "unknown": 2, "size": 48}
    first = whole(make_miniature(tmp_path / "first", **size, seed=3))
    assert whole(make_miniature(tmp_path / "again", **size, seed=3)) == first
    other = whole(make_miniature(tmp_path / "other", **size, seed=4))
    assert other["train/images_000.tar"] != first["train/images_000.tar"]


def test_an_image_is_the_same_whichever_process_takes_it() -> None:
    shots = [image.shot for image in train_images(choose_landmarks(3, 1), 2, 64, 1)[:2]]
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(render_shot, reversed(shots))) == [render_shot(shot) for shot in reversed(shots)]


SCRIPT = """
import sys
import landmarks.miniature.make as make
print("the script runs")
make.usable_processors = lambda: 2
make.MIN_IMAGES_FOR_PROCESSES = 1
make.make_miniature(sys.argv[1], landmarks=2, images=4, unknown=2, size=48, seed=3)
"""


@pytest.mark.parametrize("given", ["as a file", "on standard input"])
def test_a_script_needs_no_guard_for_the_processes_that_render(tmp_path: Path, given: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    mirror = tmp_path / "mirror"
    ended = subprocess.run(
        [sys.executable, str(script) if given == "as a file" else "-", str(mirror)],
        input=SCRIPT if given == "on standard input" else "",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["the script runs"]  # and not once more in every process
    assert whole(mirror) == whole(make_miniature(tmp_path / "here", landmarks=2, images=4, unknown=2, size=48, seed=3))


def test_a_rendering_process_that_is_ended_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "usable_processors", lambda: 2)
    shots = [image.shot for image in train_images(choose_landmarks(3, 1), 40, 64, 1)]
    before = set(multiprocessing.active_children())
    with pytest.raises(LandmarksError, match="was ended from outside"), make._renderers(len(shots)) as render:
        rendered = render(shots)
        next(rendered)
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        list(rendered)


def test_a_finished_miniature_is_left_as_it_is(miniature: Path) -> None:
    tar = miniature / "train" / "images_000.tar"
    before = tar.stat().st_mtime_ns
    make_miniature(miniature, landmarks=6, images=7, unknown=6, size=96)
    assert tar.stat().st_mtime_ns == before


def test_md5_files_are_what_md5sum_prints(miniature: Path) -> None:
    for name in ("train", "test"):
        tars = sorted((miniature / name).glob("*.tar"))
        assert [tar.name for tar in tars] == [f"images_{number:03d}.tar" for number in range(len(tars))]
        for tar in tars:
            line = (miniature / "md5sum" / name / f"md5.{tar.stem}.txt").read_text()
            assert line == f"{hashlib.md5(tar.read_bytes()).hexdigest()}  {tar.name}\n"


def test_every_image_of_the_csv_files_lies_in_a_tar_under_its_first_three_digits(miniature: Path) -> None:
    for name, ids in (
        ("train", {row["id"] for row in rows(miniature, "metadata/train.csv")}),
        ("train", {row["id"] for row in rows(miniature, "metadata/train_attribution.csv")}),
        ("test", {row["id"] for row in rows(miniature, "metadata/test.csv")}),
        ("test", {row["id"] for row in rows(miniature, "ground_truth/recognition_solution_v2.1.csv")}),
    ):
        assert set(members(miniature, name)) == {f"{id[0]}/{id[1]}/{id[2]}/{id}.jpg" for id in ids}
        assert all(len(id) == 16 and int(id, 16) >= 0 for id in ids)


def test_two_train_files_are_broken_and_all_others_decode(miniature: Path) -> None:
    broken = []
    for name, data in {**members(miniature, "train"), **members(miniature, "test")}.items():
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
            assert max(image.size) == 96
        except (OSError, UnidentifiedImageError) as error:
            broken.append((name, str(error)))
    assert len(broken) == 2
    assert any("truncated" in why for _, why in broken)
    assert any("cannot identify" in why for _, why in broken)


def test_the_test_set_has_both_usages_and_images_of_nothing_known(miniature: Path) -> None:
    solution = rows(miniature, "ground_truth/recognition_solution_v2.1.csv")
    known = {row["landmark_id"] for row in rows(miniature, "metadata/train.csv")}
    assert {row["Usage"] for row in solution} == {"Public", "Private"}
    assert sum(row["landmarks"] == "" for row in solution) == 6
    assert {id for row in solution for id in row["landmarks"].split()} == known


def test_train_urls_hold_no_comma_and_the_clean_set_no_broken_image(miniature: Path) -> None:
    lines = (miniature / "metadata" / "train.csv").read_text(encoding="utf-8").splitlines()
    assert all(line.count(",") == 2 for line in lines)
    clean = {id for row in rows(miniature, "metadata/train_clean.csv") for id in row["images"].split()}
    images = members(miniature, "train")
    assert 0 < len(clean) < len(lines) - 1
    for id in clean:
        Image.open(io.BytesIO(images[f"{id[0]}/{id[1]}/{id[2]}/{id}.jpg"])).load()


def test_the_whole_miniature_has_names_with_commas_and_of_many_tongues() -> None:
    names = [landmark.name for landmark in choose_landmarks(12, 0)]
    assert len(set(names)) == 12
    assert any("," in name for name in names)
    assert any(not name.isascii() for name in names)


def test_category_addresses_read_back_to_the_names(miniature: Path) -> None:
    categories = rows(miniature, "metadata/train_label_to_category.csv")
    names = {unquote(row["category"]).partition("Category:")[2].replace("_", " ") for row in categories}
    assert names == {landmark.name for landmark in choose_landmarks(6, 0)}
    assert all(row["category"].isascii() for row in categories)


def test_bursts_are_nearly_the_same_image() -> None:
    images = train_images(choose_landmarks(2, 0), 12, 48, 0)
    bursts: dict[str, list[np.ndarray]] = {}
    for image in images:
        bursts.setdefault(image.shot.stand, []).append(
            np.asarray(Image.open(io.BytesIO(render_shot(image.shot))).convert("L").resize((16, 16)), float)
        )
    within = [np.abs(a - b).mean() for first in bursts.values() for a, b in pairwise(first)]
    firsts = [first[0] for first in bursts.values()]
    between = [np.abs(a - b).mean() for a, b in pairwise(firsts)]
    assert len(within) >= 4
    assert np.median(within) < 0.5 * np.median(between)


def test_an_archive_of_no_landmarks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="landmarks is too small"):
        make_miniature(tmp_path / "none", landmarks=0)
