"""Neighbours among stored vectors against a search by hand, and an index folder that grows, shrinks and is asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from made_up_runs import image, make_dataset, make_run

import landmarks
from landmarks.cli.main import run as program
from landmarks.dataset.images import decode
from landmarks.dataset.importing import import_
from landmarks.dataset.manifest import Dataset
from landmarks.recognition import indexing as room
from landmarks.recognition.indexing import open_index
from landmarks.recognition.searching import CONVINCING
from landmarks.recognition.vectors import StoredVectors, inverted_file, lists_for, neighbours, open_codes, whitening_of
from landmarks.support.errors import LandmarksError, StaleError
from landmarks.training.run import Run


def clustered(count: int, width: int = 32, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(50, width))
    values = centres[random.integers(50, size=count)] + 0.4 * random.normal(size=(count, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def vectors() -> StoredVectors:
    values = clustered(6000)
    return StoredVectors((values[:1000], values[1000:1001], values[1001:]))


def test_datasets_that_cannot_be_indexed_are_told_before_the_first_one_is(run: Run, own_data: Dataset, tmp_path: Path):
    with pytest.raises(LandmarksError, match="there is no folder"):
        landmarks.index([own_data, tmp_path / "nothing"], tmp_path / "index", run=run)
    assert not (tmp_path / "index").exists()


def test_images_that_are_gone_are_told_before_the_first_one_is_looked_at(run: Run, own_data: Dataset, tmp_path: Path):
    shutil.rmtree(own_data.folder / "shards")
    with pytest.raises(LandmarksError, match=r"index reads the images of .*received 1 of 1 shard missing, such as"):
        landmarks.index(own_data, tmp_path / "index", run=run)


def test_exact_neighbours_are_those_of_a_whole_matrix_over_all_parts(
    vectors: StoredVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("landmarks.recognition.vectors.BLOCK", 700)
    queries = clustered(20, seed=1).astype(np.float32)
    every = vectors.rows(np.arange(len(vectors)))
    expected = np.argsort(-(queries @ every.T), axis=1, kind="stable")[:, :7]
    cosines, places = neighbours(queries, vectors, 7)
    assert (places == expected).mean() > 0.99  # sums in another order may swap equals
    assert cosines == pytest.approx(np.take_along_axis(queries @ every.T, places, axis=1), abs=1e-5)
    without = neighbours(queries, vectors, 7, removed=places[:, 0])[1]
    assert not np.isin(without, places[:, 0]).any()


def test_codes_find_what_exact_search_finds_and_answer_with_true_cosines(
    vectors: StoredVectors, tmp_path: Path
) -> None:
    queries = clustered(100, seed=2).astype(np.float32)
    expected = neighbours(queries, vectors, 10)
    faiss.write_index(inverted_file(vectors), str(tmp_path / "codes"))
    mapped = open_codes(tmp_path / "codes")
    cosines, places = neighbours(queries, vectors, 10, index=mapped)
    assert (places[:, 0] == expected[1][:, 0]).mean() >= 0.97
    same = places[:, 0] == expected[1][:, 0]
    assert cosines[same, 0] == pytest.approx(expected[0][same, 0], abs=1e-5)
    gone = neighbours(queries, vectors, 10, index=mapped, removed=places[:, 0])[1]
    assert not np.isin(gone, places[:, 0]).any()


@pytest.mark.linux
def test_codes_are_mapped_and_not_read(tmp_path: Path) -> None:
    faiss.write_index(inverted_file(StoredVectors((clustered(200_000),))), str(tmp_path / "codes"))
    size = (tmp_path / "codes").stat().st_size
    before = _own_bytes()
    mapped = open_codes(tmp_path / "codes")
    assert size > 3_000_000 and _own_bytes() - before < size / 4
    assert mapped.ntotal == 200_000


def _own_bytes() -> int:
    """Return the bytes of memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_codes_that_an_earlier_version_wrote_are_read(vectors: StoredVectors, tmp_path: Path) -> None:
    index = faiss.IndexIVFPQ(faiss.IndexFlatL2(32), 32, 64, 16, 8)
    every = vectors.rows(np.arange(len(vectors)))
    index.train(every)
    index.add(every)
    faiss.write_index(index, str(tmp_path / "codes"))
    queries = clustered(50, seed=2).astype(np.float32)
    found = neighbours(queries, vectors, 1, index=open_codes(tmp_path / "codes"))[1]
    assert (found == neighbours(queries, vectors, 1)[1]).mean() >= 0.97


@pytest.mark.parametrize("width", [1, 7, 100, 256])
def test_vectors_of_any_length_have_codes(width: int) -> None:
    values = StoredVectors((clustered(300, width),))
    places = neighbours(values.rows(np.arange(300)), values, 1, index=inverted_file(values))[1]
    if width > 1:
        assert (places[:, 0] == np.arange(300)).mean() > 0.95


def test_more_neighbours_than_vectors_leaves_places_empty() -> None:
    few = StoredVectors((clustered(3),))
    cosines, places = neighbours(clustered(1, seed=5), few, 5, removed=np.array([1]))
    assert places[0, 2:].tolist() == [-1, -1, -1] and np.isneginf(cosines[0, 2:]).all()


def test_fully_whitened_vectors_have_the_same_spread_along_every_axis() -> None:
    values = np.random.default_rng(0).normal(size=(5000, 6)) @ np.diag([5, 3, 2, 1, 0.5, 0.1]) + 7
    found = whitening_of(values, 4, power=1.0)
    white = (values - found.mean) @ found.matrix
    assert np.cov(white.T) == pytest.approx(np.eye(4), abs=0.01)
    assert np.linalg.norm(found.apply(values), axis=1) == pytest.approx(np.ones(5000), abs=1e-5)


@pytest.mark.parametrize("first", [1, 2, 5])
def test_an_index_that_began_with_few_images_tells_later_ones_apart(first: int) -> None:
    values = clustered(400, width=64)
    whitening = whitening_of(values[:first], 32)
    vectors = whitening.apply(values)
    assert vectors.shape == (400, 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    wanted, found = (cosines - 2 * np.eye(400) for cosines in (values @ values.T, vectors @ vectors.T))
    nearest = np.take_along_axis(wanted, found.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert np.median(wanted.max(axis=1) - nearest) < 0.05  # what is found is nearly as near as the nearest


def test_lists_grow_with_the_root_of_the_vectors() -> None:
    assert [lists_for(count) for count in (1, 10_000, 1_000_000, 4_132_914)] == [2, 256, 2048, 4096]


# ── The folder ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def found(run: Run, own_data: Dataset, tmp_path: Path) -> Path:
    landmarks.index(own_data.folder, tmp_path / "index", run=run.folder, dimensions=16)
    return tmp_path / "index"


def test_an_image_of_the_index_finds_itself_and_its_landmark(found: Path, tmp_path: Path) -> None:
    path = tmp_path / "asked.jpg"
    path.write_bytes(image(22, 4))
    table = landmarks.search(found, path, top=3)
    assert table["image_id"][0] == f"{4:016x}" and table["name"][0] == "Tower 22"
    assert table["cosine"][0] == pytest.approx(1, abs=2e-3) and table["cosine"][0] <= 1
    assert table["cosine"].is_sorted(descending=True) and table["rank"].to_list() == [1, 2, 3]


def test_verified_images_come_with_the_points_that_agree_and_a_drawing(found: Path, tmp_path: Path) -> None:
    path = tmp_path / "asked.jpg"
    path.write_bytes(image(22, 4))
    table = landmarks.search(found, path, top=12, verify=True, drawings=tmp_path / "drawn")
    plain = landmarks.search(found, path, top=12)
    assert sorted(table["image_id"]) == sorted(plain["image_id"]) and plain["inliers"].null_count() == 12
    assert table["image_id"][0] == f"{4:016x}" and table["inliers"].null_count() == 2
    agreeing = table["inliers"].fill_null(0).to_list()  # stripes hardly have points: see test_searching for more
    assert [count for count in agreeing if count >= CONVINCING] == sorted(agreeing, reverse=True)[
        : sum(count >= CONVINCING for count in agreeing)
    ]
    assert decode((tmp_path / "drawn" / "asked.jpg").read_bytes()).shape == (48, 136, 3)


def test_an_index_grows_by_other_datasets_and_forgets_images(
    found: Path, run: Run, own_data: Dataset, tmp_path: Path
) -> None:
    other = make_dataset(tmp_path / "other", [[11], [44], []] * 4, first=100)
    grown = landmarks.index([own_data.folder, other.folder], found, run=run.folder)
    assert len(grown) == 42 and grown.record["parts"] == 2  # the first dataset is there already
    path = tmp_path / "asked.jpg"
    path.write_bytes(image(44, 101))
    assert landmarks.search(found, path, top=1)["image_id"].to_list() == [f"{101:016x}"]
    assert len(landmarks.index([], found, remove=[f"{101:016x}"])) == 41
    assert f"{101:016x}" not in landmarks.search(found, path, top=41)["image_id"].to_list()
    with pytest.raises(LandmarksError, match=f"1 image to remove not in .*received {101:016x}"):
        landmarks.index([], found, remove=[f"{101:016x}"])
    assert len(landmarks.index(other.folder, found)) == 42  # what was taken out by mistake comes back
    assert landmarks.search(found, path, top=1)["image_id"].to_list() == [f"{101:016x}"]


def test_the_verb_takes_images_out_and_says_what_it_needs(found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(["index", "-o", str(found), "--remove", f"{4:016x}", "--remove", f"{5:016x}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 28
    assert program(["index", "-o", str(found)]) == 2
    assert "nothing to add to an index and nothing to remove" in capsys.readouterr().err
    assert program(["search", str(found.parent), "one.jpg"]) == 1
    assert "is no index; expected a folder with index.json" in capsys.readouterr().err
    assert program(["index", "data", "-o", str(found.parent / "none")]) == 2
    assert "expected --run RUN" in capsys.readouterr().err


def test_landmarks_of_several_datasets_are_counted_by_their_names_and_one_id_in_two_is_told(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("gate", "hill")):  # each is landmark 0 of its dataset
        (tmp_path / "images" / name / name).mkdir(parents=True)
        for one in ("one", name):
            (tmp_path / "images" / name / name / f"{one}.jpg").write_bytes(image(11, 2 * number + len(one)))
        import_(tmp_path / "images" / name, tmp_path / name)
    out = str(tmp_path / "both.index")
    assert program(["index", str(tmp_path / "gate"), str(tmp_path / "hill"), "--run", str(run.folder), "-o", out]) == 0
    assert "4 images of 2 landmarks" in capsys.readouterr().out
    assert program(["index", "-o", out, "--remove", "one"]) == 0
    captured = capsys.readouterr()
    assert "2 images of 2 landmarks" in captured.out and "2 images are taken out" in captured.err
    assert program(["index", "-o", out, "--remove", "gate"]) == 0
    captured = capsys.readouterr()
    assert "1 image of 1 landmark" in captured.out and "taken out" not in captured.err


def test_beyond_what_is_compared_one_by_one_the_answers_come_from_an_inverted_file(
    found: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_EXACT", 100)
    many = make_dataset(tmp_path / "many", [[11], [22], [44]] * 100, first=1000)
    grown = landmarks.index(many.folder, found, run=run.folder)
    assert grown.codes is not None and grown.codes.ntotal == len(grown) == 330
    later = make_dataset(tmp_path / "later", [[33]] * 4, first=5000)
    assert landmarks.index(later.folder, found, run=run.folder).codes.ntotal == 334
    path = tmp_path / "asked.jpg"
    path.write_bytes(image(33, 5002))
    assert landmarks.search(found, path, top=2)["image_id"][0] == f"{5002:016x}"


def test_a_part_whose_writing_was_killed_is_written_again(
    found: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_dataset(tmp_path / "other", [[11], [44]] * 3, first=100)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for step in ("write_table", "_write_codes", "_update_record"):
        monkeypatch.setattr(room, step, killed)
        with pytest.raises(KeyboardInterrupt):
            landmarks.index(other.folder, found, run=run.folder)
        monkeypatch.undo()
        monkeypatch.setattr("landmarks.recognition.vectors.MAX_WIDTH", 128)
        assert len(open_index(found)) == 30
    assert len(landmarks.index(other.folder, found, run=run.folder)) == 36


def test_no_index_is_written_among_other_things(run: Run, own_data: Dataset) -> None:
    before = sorted(own_data.folder.iterdir())
    with pytest.raises(LandmarksError, match=r"is not empty and holds no index; received .*; choose another"):
        landmarks.index(own_data.folder, own_data.folder, run=run.folder)
    assert sorted(own_data.folder.iterdir()) == before


def test_an_index_of_another_network_is_refused(found: Path, own_data: Dataset, tmp_path: Path) -> None:
    other = make_run(tmp_path / "second", own_data, seed=5)
    with pytest.raises(StaleError, match="made with another network than second's"):
        landmarks.index(own_data.folder, found, run=other.folder)


def test_the_program_indexes_and_searches_and_names_what_is_no_image(
    run: Run, own_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "by program"
    assert program(["index", str(own_data.folder), "--run", str(run.folder), "-o", str(out)]) == 0
    (tmp_path / "good.jpg").write_bytes(image(33, 2))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert program(["search", str(out), str(tmp_path / "good.jpg"), str(tmp_path / "bad.jpg"), "--top", "1"]) == 1
    captured = capsys.readouterr()
    assert "30 images of 3 landmarks" in captured.out and "Tower 33" in captured.out
    assert captured.err.count("bad.jpg") == 1


def test_drawings_stand_in_a_folder_of_their_own_and_each_image_has_one(found: Path, tmp_path: Path) -> None:
    holiday = tmp_path / "holiday"
    for folder, landmark in (("a", 11), ("b", 22)):
        (holiday / folder).mkdir(parents=True)
        (holiday / folder / "1.jpg").write_bytes(image(landmark, 4))
    for among in (holiday / "a", holiday):
        with pytest.raises(LandmarksError, match="is not empty and holds no drawings"):
            landmarks.search(found, holiday / "a", verify=True, drawings=among)
    assert (holiday / "a" / "1.jpg").read_bytes() == image(11, 4)
    for _ in range(2):
        landmarks.search(found, holiday, verify=True, drawings=tmp_path / "drawn")
        assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 2
    with pytest.raises(LandmarksError, match=r"drawings show points that agree; .*add --verify"):
        landmarks.search(found, holiday, drawings=tmp_path / "other")


def test_run_dataset_and_index_that_are_moved_together_are_found_again(
    run: Run, own_data: Dataset, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    for folder in (run.folder, own_data.folder):
        shutil.copytree(folder, home / folder.name)
    data = landmarks.open_dataset(home / own_data.folder.name)
    landmarks.index(data, home / "index", run=home / run.folder.name, dimensions=16)
    home.rename(tmp_path / "elsewhere")
    path = tmp_path / "asked.jpg"
    path.write_bytes(image(22, 4))
    moved = tmp_path / "elsewhere"
    assert landmarks.search(moved / "index", path, top=1, verify=True)["inliers"].null_count() == 0
    assert len(landmarks.index(moved / data.folder.name, moved / "index")) == 30  # the same images, none twice
    shutil.rmtree(moved / data.folder.name)
    with pytest.raises(LandmarksError, match=r"the dataset .* is not there any more; bring it back, or leave"):
        landmarks.search(moved / "index", path, top=1, verify=True)


HOSTILE: dict[str, Callable[[Path, dict[str, Any]], object]] = {
    "parts that are none": lambda folder, record: record.update(parts="x"),
    "no parts": lambda folder, record: record.pop("parts"),
    "more parts than there are": lambda folder, record: record.update(parts=9),
    "codes elsewhere": lambda folder, record: record.update(codes="/etc/passwd"),
    "removed elsewhere": lambda folder, record: record.update(removed="../labels.parquet"),
    "no run": lambda folder, record: record.update(run=None),
    "no network": lambda folder, record: record.pop("model"),
    "datasets that are none": lambda folder, record: record.update(data={"here": 5}),
    "no table of datasets": lambda folder, record: record.update(data="here"),
    "vectors of something": lambda folder, record: (folder / "vectors-0.npy").write_bytes(b"junk"),
    "objects for vectors": lambda folder, record: np.save(folder / "vectors-0.npy", np.array([{}] * 30)),
    "short vectors": lambda folder, record: np.save(folder / "vectors-0.npy", np.zeros((30, 3), np.float16)),
    "no vectors": lambda folder, record: (folder / "vectors-0.npy").unlink(),
    "whitening of something": lambda folder, record: (folder / "whitening.npz").write_bytes(b"junk"),
    "a table of something": lambda folder, record: (folder / "images-0.parquet").write_bytes(b"junk"),
    "codes of something": lambda folder, record: (record.update(codes="c"), (folder / "c").write_bytes(b"root:x:0:0")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_index_that_is_not_sound_is_one_line(kind: str, found: Path, tmp_path: Path) -> None:
    record = json.loads((found / "index.json").read_text())
    HOSTILE[kind](found, record)
    (found / "index.json").write_text(json.dumps(record))
    (tmp_path / "asked.jpg").write_bytes(image(22, 4))
    with pytest.raises(LandmarksError) as raised:
        landmarks.search(found, tmp_path / "asked.jpg")
    assert str(found) in str(raised.value) and "\n" not in str(raised.value)
