"""An export learns landmarks by itself: as its run would, without PyTorch, and no unknown image is taken for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import LANDMARKS, image, make_dataset, make_run
from scipy.special import logsumexp, softmax

import landmarks
from landmarks.evaluation.evaluate import evaluate
from landmarks.recognition.directions import directions
from landmarks.recognition.export import export
from landmarks.recognition.gallery import open_gallery
from landmarks.recognition.kernel_density import neighbourhood_of
from landmarks.recognition.learned_images import Learned
from landmarks.recognition.portable import open_export, read_export_record
from landmarks.recognition.portable_learning import (
    ACCEPTED,
    learner_of,
    packed,
    read_learned_file,
    read_learning,
    write_learned_file,
)
from landmarks.support.errors import LandmarksError
from landmarks.training.discriminant import moments_of
from landmarks.training.run import Run

FIVE = [image(58, number) for number in range(500, 505)]
SIXTH = image(58, 700)


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An untrained run with a threshold, on short features."""
    folder = tmp_path_factory.mktemp("own")
    shown = [[LANDMARKS[number % 3]] for number in range(30)]
    made = make_dataset(folder / "data", shown, splits=["train"] * 18 + ["val"] * 6 + ["test"] * 6)
    run = make_run(folder / "run", made)
    asked = [[[11], [22, 33], [44], []][number % 4] for number in range(120)]
    usage = ["Public" if number % 8 < 4 else "Private" for number in range(120)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("landmarks.recognition.directions.MAX_WIDTH", 128)
        elsewhere = make_dataset(folder / "elsewhere", asked, usage=usage, first=1000)
        evaluate(run.folder, data=elsewhere.folder, false_acceptance=0.05)
    return run


@pytest.fixture(scope="module")
def exported(own_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("landmarks.recognition.directions.MAX_WIDTH", 128)
        return export(own_run, tmp_path_factory.mktemp("exported") / "run.onnx", images=6, learning=True).path


def test_an_export_learns_in_memory_and_forgets_and_answers_the_trained_ones_as_before(exported: Path) -> None:
    plain = landmarks.load(exported)
    asked = [image(landmark, number) for landmark in (11, 22, 33) for number in range(700, 703)]
    taught = plain.learn(FIVE, " Torre de Bele\u0301m ")
    assert taught.names == [*plain.names, "Torre de Belém"]
    assert taught.landmark_ids[-1] == -2
    assert taught.recognise(SIXTH).answers[0].name == "Torre de Belém"
    before, after = plain.recognise(asked), taught.recognise(asked)
    assert [one.answers[0].name for one in after] == [
        f"Tower {landmark}" for landmark in (11, 22, 33) for _ in range(3)
    ]
    assert sum(answer.probability for answer in after[0].answers) == pytest.approx(1, abs=1e-5)
    assert taught.forget("Torre de Belém").recognise(asked) == before
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
    said = network.outputs([next(landmarks.load(exported).read(SIXTH, 1))[0].pixels])
    near = neighbourhood_of(moments_of(gallery.images, gallery.labels, 3), gallery.images, gallery.labels)
    assert near is not None
    expected = directions(said.features) @ near.axes - near.origin
    assert said.whitened == pytest.approx(expected, abs=float(1e-3 * np.abs(expected).max()))


def test_odds_and_probabilities_are_those_of_the_formula(exported: Path) -> None:
    record = open_export(exported).record.learning
    assert record is not None
    random = np.random.default_rng(0)
    images = random.normal(size=(7, record.width)).astype(np.float32)
    learned = Learned().plus(images[:5], "a").plus(images[5:], "b")
    learner = learner_of(record, learned)
    asked, scores = random.normal(size=(4, record.width)), random.normal(size=(4, 3))
    trained = softmax(random.normal(size=(4, 3)), axis=1)
    odds = np.zeros((4, 2))
    for row, w in enumerate(asked):
        for place, mine in enumerate((images[:5].astype(float), images[5:].astype(float))):
            mean = mine.mean(0)
            discriminant = w @ mean - mean @ mean / 2 + record.excess / len(mine) / 2
            cosines = [w @ one / np.linalg.norm(w) / np.linalg.norm(one) for one in mine]
            density = np.mean([np.exp(record.concentration * (cosine - 1)) for cosine in cosines])
            score = record.discriminant * discriminant + record.density * np.log(density)
            odds[row, place] = np.exp(score - logsumexp(scores[row]) + learner.offset)
    whole = 1 + odds.sum(1, keepdims=True)
    expected = np.concatenate([(trained + softmax(scores, axis=1)) / 2 / whole, odds / whole], axis=1)
    assert learner.probabilities(trained, asked, scores) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_of_the_images_kept_of_other_things_no_more_than_few_are_taken_for_a_learned_landmark(exported: Path) -> None:
    record = open_export(exported).record.learning
    assert record is not None
    random = np.random.default_rng(0)
    told = json.loads(json.dumps(_told(exported)))
    told["others"] = packed(random.normal(size=(200, record.width)))
    record = read_learning(told)
    learner = learner_of(record, Learned().plus(random.normal(size=(5, record.width)).astype(np.float32), "new"))
    fresh = random.normal(size=(400, record.width))
    assert (learner.resemblance(fresh) > learner.threshold).mean() <= 2 * ACCEPTED
    assert (learner.resemblance(learner.learned.images) > learner.threshold).all()


def _told(path: Path) -> dict[str, object]:
    return dict(open_export(path).record.whole["learning"])


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
    told = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    for change, why in (
        ({"learned_with": "another"}, "another network"),
        ({"format": 2}, "another version"),
        ({"landmarks": [{"name": "a", "landmark_id": 1, "images": ["AAAA"]}]}, "holds no learned landmarks"),
        ({"landmarks": [{"name": "a", "landmark_id": 1, "images": []}]}, "holds no learned landmarks"),
        ({"landmarks": {"a": 1}}, "holds no learned landmarks"),
    ):
        (tmp_path / "b.json").write_text(json.dumps({**told, **change}), encoding="utf-8")
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
    whole = dict(open_export(exported).record.whole)
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
