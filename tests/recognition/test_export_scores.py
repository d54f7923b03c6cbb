"""An export scores by remembered images, in full and in a quarter of the room, and learns landmarks as its run does."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_runs import LANDMARKS, image, make_dataset, make_run
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

import landmarks
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.evaluate import evaluate
from landmarks.models.network import build_network, save_network
from landmarks.recognition.answers import COMPARING, KNN, MAHALANOBIS
from landmarks.recognition.closed_form import neighbourhood_of
from landmarks.recognition.export import export
from landmarks.recognition.export_scores import KEPT_SHARE, GalleryScores, LearningScores, main_axes
from landmarks.recognition.gallery import (
    Gallery,
    UnknownImages,
    make_gallery,
    open_gallery,
    rejection_scores,
    with_unknown_images,
)
from landmarks.recognition.learned import (
    ACCEPTED,
    Learned,
    learned_file,
    learner_of,
    packed,
    read_learned_file,
    read_learning,
    write_learned_file,
)
from landmarks.recognition.portable import ExportedNetwork, open_export
from landmarks.recognition.portable_record import read_export_record
from landmarks.recognition.vectors import directions
from landmarks.support.errors import BusyError, LandmarksError, UsageError
from landmarks.support.files import held_beside
from landmarks.training.discriminant import class_moments
from landmarks.training.run import Run, open_run

WIDTH = 256


def made_up(images: int, noise: float, landmarks: int = 6) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features that go together, as a network's do, of so many images of a few landmarks."""
    random = np.random.default_rng(0)
    mixing = random.normal(0, 0.05, (WIDTH, WIDTH)) * np.logspace(0.5, -1.5, WIDTH) + np.eye(WIDTH) * 0.05
    labels = np.arange(images) % landmarks
    centres = 3 * random.normal(size=(landmarks, WIDTH))
    features = (centres[labels] + random.normal(0, noise, (images, WIDTH))) @ mixing
    return np.maximum(features, 0).astype(np.float32), labels


def gallery_with_unknown(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Gallery:
    unknown = directions(np.random.default_rng(1).gamma(1, size=(40, WIDTH)).astype(np.float32)).astype(np.float16)
    gallery = make_gallery(directions(features), labels, "digest")
    return with_unknown_images(gallery, UnknownImages(unknown, tuple(map(str, range(len(unknown))))))


def room_of(module: GalleryScores) -> int:
    return sum(one.numel() * one.element_size() for one in module.buffers())


def scores_of(module: GalleryScores, features: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return {name: one.numpy() for name, one in module(torch.from_numpy(features)).items()}


def test_in_full_and_in_little_room_it_scores_as_the_gallery_does() -> None:
    features, labels = made_up(900, 1.0)
    gallery = gallery_with_unknown(features[:600], labels[:600])
    wanted = rejection_scores(features[600:], np.zeros((300, 6), dtype=np.float32), gallery)
    whole, compact = (GalleryScores(gallery, COMPARING, WIDTH, compact=one) for one in (False, True))
    assert room_of(compact) < 0.35 * room_of(whole)
    for module, correlation, off in ((whole, 0.9999, 0.01), (compact, 0.9, 0.3)):
        found = scores_of(module, features[600:])
        assert set(found) == COMPARING
        for name in COMPARING:
            assert np.corrcoef(wanted[name], found[name])[0, 1] > correlation, name
            assert abs(np.mean(wanted[name] - found[name])) < off * wanted[name].std(), name


@pytest.mark.parametrize("images", [3, 8])
def test_few_images_are_compared_too(images: int) -> None:
    features, labels = made_up(images, 1.0, landmarks=2)
    gallery = gallery_with_unknown(features, labels)
    queries, _ = made_up(100, 2.0)
    wanted = rejection_scores(queries, np.zeros((100, 2), dtype=np.float32), gallery)
    found = scores_of(GalleryScores(gallery, COMPARING, WIDTH, compact=True), queries)
    for name in COMPARING:
        assert np.corrcoef(wanted[name], found[name])[0, 1] > 0.95, name


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("landmarks", [1, 20])
def test_distances_too_large_for_half_precision_are_compared_too(landmarks: int, compact: bool) -> None:
    """Where every landmark has a single image, the covariance within landmarks is almost nothing."""
    features, labels = made_up(landmarks, 1.0, landmarks)
    gallery = gallery_with_unknown(features, labels)
    queries, _ = made_up(100, 2.0)
    expected = rejection_scores(queries, np.zeros((100, landmarks), dtype=np.float32), gallery)
    found = scores_of(GalleryScores(gallery, COMPARING, WIDTH, compact=compact), queries)
    for name in COMPARING - {MAHALANOBIS} if landmarks == 1 else COMPARING:  # of one image it is 0
        assert np.isfinite(found[name]).all(), name
        assert np.corrcoef(expected[name], found[name])[0, 1] > 0.9, name
    assert np.isfinite(found[MAHALANOBIS]).all()


def test_only_what_a_score_needs_is_kept() -> None:
    features, labels = made_up(60, 1.0)
    nearest = GalleryScores(make_gallery(directions(features), labels, "digest"), {KNN}, WIDTH, compact=True)
    assert {name.partition(".")[0] for name in nearest.state_dict()} <= {"axes", "images", "labels", "directions"}


def test_scores_that_need_unknown_images_are_refused_without_them() -> None:
    features, labels = made_up(60, 1.0)
    with pytest.raises(LandmarksError, match="not the images that it compares with; choose it again"):
        GalleryScores(make_gallery(directions(features), labels, "digest"), COMPARING, WIDTH, compact=True)


def test_main_axes_hold_what_they_promise_and_no_more() -> None:
    images = torch.randn(300, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images *= torch.logspace(0, -2, 40, dtype=torch.float64)
    axes = main_axes(images)
    torch.testing.assert_close(axes.T @ axes, torch.eye(axes.shape[1], dtype=torch.float64))
    squares = (images @ axes).square().sum(0) / images.square().sum()
    assert squares.sum() >= KEPT_SHARE > squares[:-1].sum()


# ── Learning with an export ─────────────────────────────────────────────────────────────────────────────────────────


FIVE = [image(58, number) for number in range(500, 505)]
SIXTH = image(58, 700)


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An untrained run with a threshold, on short features."""
    folder = tmp_path_factory.mktemp("own")
    shown = [[LANDMARKS[number % 3]] for number in range(30)]
    made = make_dataset(folder / "data", shown, splits=["train"] * 18 + ["val"] * 6 + ["test"] * 6)
    run = make_run(folder / "run", made)
    landmarks_shown = [[[11], [22, 33], [44], []][number % 4] for number in range(120)]
    usage = ["Public" if number % 8 < 4 else "Private" for number in range(120)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("landmarks.recognition.vectors.MAX_WIDTH", 128)
        elsewhere = make_dataset(folder / "elsewhere", landmarks_shown, usage=usage, first=1000)
        evaluate(run.folder, data=elsewhere.folder, false_acceptance=0.05)
    return run


@pytest.fixture(scope="module")
def exported(own_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("landmarks.recognition.vectors.MAX_WIDTH", 128)
        return export(own_run, tmp_path_factory.mktemp("exported") / "run.onnx", images=6, learning=True).path


def test_an_export_learns_in_memory_and_forgets_and_answers_the_trained_ones_as_before(exported: Path) -> None:
    plain = landmarks.load(exported)
    images = [image(landmark, number) for landmark in (11, 22, 33) for number in range(700, 703)]
    taught = plain.learn(FIVE, " Torre de Bele\u0301m ")
    assert taught.names == [*plain.names, "Torre de Belém"]
    assert taught.landmark_ids[-1] == -2
    assert taught.recognise(SIXTH).answers[0].name == "Torre de Belém"
    before, after = plain.recognise(images), taught.recognise(images)
    assert [one.answers[0].name for one in after] == [
        f"Tower {landmark}" for landmark in (11, 22, 33) for _ in range(3)
    ]
    assert sum(answer.probability for answer in after[0].answers) == pytest.approx(1, abs=1e-5)
    assert taught.forget("Torre de Belém").recognise(images) == before
    with pytest.raises(LandmarksError, match='"Tower 11" is a landmark that this recogniser was trained for'):
        plain.learn(FIVE, "Tower 11")
    with pytest.raises(LandmarksError, match="the landmark id 22 is taken"):
        plain.learn(FIVE, "New", 22)


def test_an_export_made_without_it_says_how_to_make_one_that_learns(run: Run, tmp_path: Path) -> None:
    bare = landmarks.load(export(run, tmp_path / "bare.onnx", images=6).path)
    with pytest.raises(LandmarksError, match=r"cannot learn landmarks.*--learning"):
        bare.learn(FIVE, "New")


def test_what_the_graph_says_is_what_the_runs_own_images_give_along_its_axes(own_run: Run, exported: Path) -> None:
    network, gallery = open_export(exported), open_gallery(own_run)
    assert gallery is not None
    outputs = network.outputs([next(landmarks.load(exported).read(SIXTH, 1))[0].pixels])
    near = neighbourhood_of(class_moments(gallery.images, gallery.labels, 3), gallery.images, gallery.labels)
    assert near is not None
    expected = directions(outputs.features) @ near.axes - near.origin
    assert outputs.whitened == pytest.approx(expected, abs=float(1e-3 * np.abs(expected).max()))


def test_odds_and_probabilities_are_those_of_the_formula(exported: Path) -> None:
    record = open_export(exported).record.learning
    assert record is not None
    random = np.random.default_rng(0)
    images = random.normal(size=(7, record.width)).astype(np.float32)
    learned = Learned().plus(images[:5], "a").plus(images[5:], "b")
    learner = learner_of(record, learned)
    whitened, scores = random.normal(size=(4, record.width)), random.normal(size=(4, 3))
    trained = softmax(random.normal(size=(4, 3)), axis=1)
    odds = np.zeros((4, 2))
    for row, w in enumerate(whitened):
        for place, mine in enumerate((images[:5].astype(float), images[5:].astype(float))):
            mean = mine.mean(0)
            discriminant = w @ mean - mean @ mean / 2 + record.excess / len(mine) / 2
            cosines = [w @ one / np.linalg.norm(w) / np.linalg.norm(one) for one in mine]
            density = np.mean([np.exp(record.concentration * (cosine - 1)) for cosine in cosines])
            score = record.discriminant * discriminant + record.density * np.log(density)
            odds[row, place] = np.exp(score - logsumexp(scores[row]) + learner.offset)
    whole = 1 + odds.sum(1, keepdims=True)
    expected = np.concatenate([(trained + softmax(scores, axis=1)) / 2 / whole, odds / whole], axis=1)
    assert learner.probabilities(trained, whitened, scores) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_of_the_images_kept_of_other_things_no_more_than_few_are_taken_for_a_learned_landmark(exported: Path) -> None:
    record = open_export(exported).record.learning
    assert record is not None
    random = np.random.default_rng(0)
    raw = json.loads(json.dumps(_told(exported)))
    raw["others"] = packed(random.normal(size=(200, record.width)))
    record = read_learning(raw)
    learner = learner_of(record, Learned().plus(random.normal(size=(5, record.width)).astype(np.float32), "new"))
    fresh = random.normal(size=(400, record.width))
    assert (learner.resemblance(fresh) > learner.threshold).mean() <= 2 * ACCEPTED
    assert (learner.resemblance(learner.learned.images) > learner.threshold).all()


def _told(path: Path) -> dict[str, object]:
    return dict(open_export(path).record.raw["learning"])


def test_an_unknown_image_is_still_said_to_be_unknown_and_the_sixth_is_known(exported: Path) -> None:
    taught = landmarks.load(exported).learn(FIVE, "New")
    record = taught.network.record.learning  # type: ignore[union-attr]
    assert record is not None
    assert len(record.others) > 10
    unknown = [image(1 + number % 3, number) for number in range(5000, 5040)]
    before, after = (sum(bool(one.known) for one in it.recognise(unknown)) for it in (landmarks.load(exported), taught))
    assert before <= 6
    assert after <= before + 1
    assert landmarks.load(exported).recognise(SIXTH).known is False
    sixth = taught.recognise(SIXTH)
    assert (sixth.answers[0].name, sixth.known) == ("New", True)


def test_what_was_learned_goes_through_a_file_and_another_networks_is_refused(exported: Path, tmp_path: Path) -> None:
    taught = landmarks.load(exported).learn(FIVE, "a").learn(FIVE[:2], "b <&>", 400)
    record = taught.network.record.learning  # type: ignore[union-attr]
    assert record is not None
    write_learned_file(tmp_path / "a.json", taught.learned, record.digest)
    back = read_learned_file(tmp_path / "a.json", record)
    assert (back.names, back.landmark_ids) == (("a", "b <&>"), (-2, 400))
    assert (back.images == taught.learned.images).all()
    saved = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    for change, why in (
        ({"learned_with": "another"}, "another network"),
        ({"format": 2}, "another version"),
        ({"landmarks": [{"name": "a", "landmark_id": 1, "images": ["AAAA"]}]}, "holds no learned landmarks"),
        ({"landmarks": [{"name": "a", "landmark_id": 1, "images": []}]}, "holds no learned landmarks"),
        ({"landmarks": {"a": 1}}, "holds no learned landmarks"),
    ):
        (tmp_path / "b.json").write_text(json.dumps({**saved, **change}), encoding="utf-8")
        with pytest.raises(LandmarksError, match=why):
            read_learned_file(tmp_path / "b.json", record)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 10**9}, {"width": "4"}, {"spare": -1}, {"discriminant": float("inf")}, {"evidence": "AAAA"},
        {"best": "!!"}, {"others": {"images": "AAAA", "scales": ""}}, {"digest": 3}, {"validation": None},
    ],
)  # fmt: skip
def test_a_record_of_a_stranger_is_refused_before_anything_is_made_of_it(
    exported: Path, change: dict[str, object]
) -> None:
    whole = dict(open_export(exported).record.raw)
    whole["learning"] = {**_told(exported), **change}
    with pytest.raises(LandmarksError, match="no export that can be read"):
        read_export_record(json.dumps(whole), "x.onnx")


def test_it_learns_without_pytorch(exported: Path, tmp_path: Path) -> None:
    for number, data in enumerate([*FIVE, SIXTH]):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    program = f"""
import sys
sys.modules["torch"] = None
import landmarks
taught = landmarks.load({str(exported)!r}).learn([{str(tmp_path)!r} + f"/{{n}}.jpg" for n in range(5)], "New")
print(taught.recognise({str(tmp_path / "5.jpg")!r}).answers[0].name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "New"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "half"])
def test_a_small_export_learns_too(run: Run, tmp_path: Path, kind: str) -> None:
    network = build_network("test_resnet", classes=3, weights="none", head="linear", image_size=64, seed=1)
    save_network(network, run.folder, temperature=1.0)
    written = export(open_run(run.folder), tmp_path / "small.onnx", images=6, learning=True, **{kind: True})
    assert written.kind == ("int8" if kind == "int8" else "float16")
    assert written.verification is not None and written.verification.learning is not None
    assert 0 < written.verification.learning.whitened_difference < (0.2 if kind == "int8" else 0.05)
    images = [image(landmark, 700) for landmark in LANDMARKS]
    before = landmarks.load(written.path).recognise(images)
    landmarks.learn(written.path, FIVE, name="New")
    kept = landmarks.load(written.path)
    assert [one.answers[0].name for one in kept.recognise([image(58, number) for number in range(700, 705)])] == [
        "New"
    ] * 5
    assert "New" not in {one.answers[0].name for one in kept.recognise(images)}
    assert len(before) == 3


def test_an_export_that_does_not_learn_like_its_run_is_not_written(
    own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LearningScores.forward

    def turned(self: LearningScores, features: Any) -> Any:
        whitened, scores = right(self, features)
        return whitened.flip(1), scores

    monkeypatch.setattr(LearningScores, "forward", turned)
    with pytest.raises(LandmarksError, match="does not learn like its run and was not written"):
        export(own_run, tmp_path / "run.onnx", images=6, learning=True)
    monkeypatch.setattr(
        LearningScores, "forward", lambda self, features: (right(self, features)[0], -right(self, features)[1])
    )
    with pytest.raises(LandmarksError, match="does not learn like its run and was not written"):
        export(own_run, tmp_path / "run.onnx", images=6, learning=True)
    assert not list(tmp_path.iterdir())


# ── The verbs: kept in the file beside the export ───────────────────────────────────────────────────────────────────


@pytest.fixture
def own_export(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(exported, tmp_path / "mine.onnx"))


def files_of(folder: Path, images: list[bytes]) -> Path:
    folder.mkdir()
    for number, data in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(data)
    return folder


def test_the_verb_keeps_what_an_export_learns_and_whoever_opens_it_answers_so(own_export: Path, tmp_path: Path) -> None:
    in_memory = landmarks.load(own_export).learn(FIVE, "Torre de Belém")
    table = landmarks.learn(own_export, files_of(tmp_path / "new", FIVE), name=" Torre de Bele\u0301m ")
    assert table.rows() == [(3, -2, "Torre de Belém", 5)]
    assert learned_file(own_export) == tmp_path / "mine.learned.json"
    kept = landmarks.load(own_export)
    images = [SIXTH, *(image(landmark, 700) for landmark in LANDMARKS)]
    assert kept.recognise(images) == in_memory.recognise(images)
    assert landmarks.predict(own_export, tmp_path / "new", top=1)["name"].unique().to_list() == ["Torre de Belém"]
    assert landmarks.learn(own_export, [*FIVE, SIXTH], name="Torre de Belém")["images"].to_list() == [6]
    assert landmarks.forget(own_export, "Torre de Belém").is_empty()
    assert not learned_file(own_export).exists()
    assert landmarks.load(own_export).names == kept.names[:3]


def test_images_that_an_export_learned_under_another_name_are_told_of(
    own_export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("Torre", "Torre", "Belém"):
        assert "already" not in capsys.readouterr().err
        landmarks.learn(own_export, FIVE[:3], name=name)
    assert '3 of the 3 images of "Belém" are known as "Torre" already' in capsys.readouterr().err


def test_evaluate_measures_an_export_with_what_it_learned(own_export: Path, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "asked", [[58]] * 4 + [[11]] * 4, first=3000)
    before = evaluate(own_export, data=dataset.folder)
    landmarks.learn(own_export, FIVE, name="Tower 58", landmark_id=58)
    after = evaluate(own_export, data=dataset.folder)
    assert (before.top1.value, after.top1.value) == (1.0, 1.0)
    assert (before.known, after.known) == (4, 8)


def test_a_file_of_the_page_is_read_in_memory_and_by_the_verb(own_export: Path, tmp_path: Path) -> None:
    taught = landmarks.load(own_export).learn(FIVE, "From the page").learn(FIVE[:2], "Also", 400)
    record = taught.network.record.learning  # type: ignore[union-attr]
    assert record is not None
    saved = tmp_path / "learned.json"
    write_learned_file(saved, taught.learned, record.digest)
    in_memory = landmarks.load(own_export).read_learned(saved)
    assert in_memory.recognise(SIXTH) == taught.recognise(SIXTH)
    landmarks.learn(own_export, FIVE[:1], name="Mine")  # which has the id -2 here
    table = landmarks.learn(own_export, from_=saved)
    assert table.select("name", "landmark_id", "images").rows() == [
        ("Mine", -2, 1),
        ("From the page", -3, 5),
        ("Also", 400, 2),
    ]
    assert landmarks.learn(own_export, from_=saved).equals(table)  # nothing new in it
    trained = Learned().plus(taught.learned.images[:1], "Tower 11")
    write_learned_file(saved, trained, record.digest)
    with pytest.raises(LandmarksError, match='"Tower 11" is a landmark that this recogniser was trained for'):
        landmarks.learn(own_export, from_=saved)
    write_learned_file(learned_file(own_export), trained, record.digest)
    with pytest.raises(LandmarksError, match='"Tower 11" is a landmark that this recogniser was trained for'):
        landmarks.load(own_export)


def test_an_export_of_a_run_that_has_learned_gives_other_ids(own_export: Path) -> None:
    plain = landmarks.load(own_export)
    assert isinstance(plain.network, ExportedNetwork)
    record = replace(plain.network.record, landmark_ids=[11, -2, 33])
    learned_before = replace(plain, network=replace(plain.network, record=record), landmark_ids=[11, -2, 33])
    assert learned_before.learn(FIVE, "New").landmark_ids == [11, -2, 33, -3]


def test_what_an_export_cannot_learn_is_told_in_one_line_and_nothing_is_written(
    run: Run, own_export: Path, tmp_path: Path
) -> None:
    bare = export(run, tmp_path / "bare.onnx", images=6).path
    with pytest.raises(LandmarksError, match=r"cannot learn landmarks.*--learning"):
        landmarks.learn(bare, FIVE, name="New")
    with pytest.raises(LandmarksError, match='none of the 1 images of "New" can be read'):
        landmarks.learn(own_export, b"no image", name="New")
    with pytest.raises(LandmarksError, match="the landmark id 22 is taken"):
        landmarks.learn(own_export, FIVE, name="New", landmark_id=22)
    for id in (2**63, "5"):
        with pytest.raises(LandmarksError, match="no landmark has such an id"):
            landmarks.learn(own_export, FIVE, name="New", landmark_id=id)  # type: ignore[arg-type]
    with pytest.raises(LandmarksError, match='no landmark "New" was learned'):
        landmarks.forget(own_export, "New")
    with pytest.raises(LandmarksError, match="cannot be read"):
        landmarks.learn(own_export, from_=tmp_path / "none.json")
    with pytest.raises(UsageError, match="from images of it, or from a file"):
        landmarks.learn(own_export, FIVE, name="New", from_=tmp_path / "none.json")
    with pytest.raises(UsageError, match="a name"):
        landmarks.learn(own_export, FIVE)
    with pytest.raises(UsageError, match="only an export"):
        landmarks.learn(run.folder, from_=tmp_path / "none.json")
    with pytest.raises(LandmarksError, match="there is no export"):
        landmarks.learn(tmp_path / "none.onnx", FIVE, name="New")
    assert not list(tmp_path.glob("*.json"))
    landmarks.learn(own_export, [*FIVE, b"no image"], name="New")
    with held_beside(learned_file(own_export)), pytest.raises(BusyError):
        landmarks.learn(own_export, FIVE, name="Later")
    learned_file(bare).write_bytes(learned_file(own_export).read_bytes())
    with pytest.raises(LandmarksError, match=r"cannot learn landmarks.*bare.learned.json"):
        landmarks.load(bare)


def test_a_write_that_does_not_end_leaves_what_an_export_learned_before(
    own_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landmarks.learn(own_export, FIVE, name="First")
    before = learned_file(own_export).read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        landmarks.learn(own_export, FIVE, name="Second")
    monkeypatch.undo()
    assert learned_file(own_export).read_bytes() == before
    assert landmarks.load(own_export).names[-1] == "First"


def test_the_program_teaches_an_export_without_pytorch(own_export: Path, tmp_path: Path) -> None:
    folder, saved = files_of(tmp_path / "new", FIVE), tmp_path / "saved.json"
    program = f"""
import sys
sys.modules["torch"] = None
from landmarks.cli.main import run
export = {str(own_export)!r}
assert run(["learn", export, {str(folder)!r}, "--name", "New"]) == 0
assert run(["predict", export, {str(folder / "0.jpg")!r}, "--json"]) == 0
import pathlib
pathlib.Path({str(learned_file(own_export))!r}).rename({str(saved)!r})
assert run(["learn", export, "--from", {str(saved)!r}]) == 0
assert run(["forget", export, "--name", "New", "--json"]) == 0
assert run(["learn", export]) == 2
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"name": "New"' in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_what_an_export_has_learned_is_not_made_useless_by_another_in_its_place(
    run: Run, own_data: Dataset, own_export: Path, tmp_path: Path
) -> None:
    landmarks.learn(own_export, FIVE, name="New")
    before = own_export.read_bytes()
    with pytest.raises(LandmarksError, match=r"cannot learn landmarks, but .*\.learned\.json beside it holds some"):
        export(run, own_export, images=6)
    with pytest.raises(LandmarksError, match="was learned with another network"):
        export(make_run(tmp_path / "second", own_data, seed=5), own_export, images=6, learning=True)
    assert own_export.read_bytes() == before and landmarks.load(own_export).names[-1] == "New"
    assert pickle.loads(pickle.dumps(landmarks.load(own_export))).names[-1] == "New"
