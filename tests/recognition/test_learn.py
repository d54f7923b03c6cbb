"""New landmarks from a few images: the closed form against scikit-learn, and a run that learns and forgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from made_up_runs import image
from PIL import Image
from safetensors.numpy import load, save
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import landmarks
from landmarks.cli.main import run as program
from landmarks.dataset.images import decode
from landmarks.models.heads import build_head
from landmarks.recognition.answering import LearnedHead, learned_head
from landmarks.recognition.closed_form import LEARNED, MEMORY, ClosedForm, Memory, Weights, memory_of
from landmarks.recognition.learned import Learned
from landmarks.recognition.vectors import directions
from landmarks.support.errors import BusyError, LandmarksError
from landmarks.support.files import held
from landmarks.training.discriminant import (
    MAX_LOST_SHARE,
    Validation,
    class_moments,
    discriminant_of,
    mean_log_probabilities,
)
from landmarks.training.run import Run

WIDTH = 12


def drawn(seed: int, per_landmark: list[int]) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(per_landmark)), per_landmark)
    centres = np.random.default_rng(7).normal(size=(20, WIDTH))
    return np.abs(centres[labels] + 0.6 * random.normal(size=(len(labels), WIDTH))).astype(np.float32), labels


@pytest.fixture
def memory() -> Memory:
    features, labels = drawn(0, [30, 20, 25, 40])
    queries, truth = drawn(1, [50, 50, 50, 50])
    images = directions(features)
    logs = np.log(0.85 * np.eye(4)[truth] + 0.0375).astype(np.float16)  # a head that is always right
    validation = Validation(directions(queries).astype(np.float16), truth, logs)
    return memory_of(class_moments(images, labels, 4), validation, images, labels)


def of_landmark(number: int, count: int, seed: int) -> np.ndarray:
    counts = [0] * number + [count]
    return directions(drawn(seed, counts)[0])


@pytest.mark.parametrize("shrinkage", [0.1, 0.3, 1.0])
def test_the_closed_form_is_scikit_learns_discriminant_but_for_what_a_mean_of_few_images_is_off(
    shrinkage: float,
) -> None:
    features, labels = drawn(0, [30, 20, 25, 40])
    counts = np.bincount(labels)
    priors = counts / len(labels)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=priors).fit(features, labels)
    expected = oracle.decision_function(features) - np.log(priors)
    found = discriminant_of(class_moments(features, labels, 4), shrinkage)
    excess = np.trace(np.linalg.solve(_shrunk(oracle.covariance_, shrinkage), _within(features, labels)))
    scores = found.scores(features) - excess / counts / 2
    differences = scores - expected
    assert differences == pytest.approx(np.repeat(differences[:, :1], 4, axis=1), abs=1e-4)


def _within(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    centred = features - np.stack([features[labels == label].mean(0) for label in range(4)])[labels]
    return centred.T.astype(float) @ centred / len(labels)


def _shrunk(covariance: np.ndarray, shrinkage: float) -> np.ndarray:
    del shrinkage  # scikit-learn's covariance is the shrunk one already
    return covariance


def test_learning_one_by_one_in_any_order_and_all_at_once_gives_the_same_weights(memory: Memory) -> None:
    head = build_head("linear", WIDTH, 4)
    given = {f"new {number}": of_landmark(number, 5, number) for number in (4, 5, 6)}
    at_once = Learned()
    for name, images in given.items():
        at_once = at_once.plus(images, name)
    step_by_step = Learned().plus(np.ones((2, WIDTH), np.float32), "a mistake")
    for place in (3, 1, 4, 0, 2):
        for name in ("new 6", "new 4", "new 5"):
            step_by_step = step_by_step.plus(given[name][place : place + 1], name)
    step_by_step = step_by_step.without("a mistake").plus(given["new 4"], "new 4")  # nothing new in these
    first, second = (learned_head(head, WIDTH, memory, one, 1.5) for one in (at_once, step_by_step))
    order = [0, 1, 2, 3, *(4 + step_by_step.names.index(name) for name in at_once.names)]
    assert step_by_step.counts() == at_once.counts() == [5, 5, 5]
    torch.testing.assert_close(second.weights[:, order], first.weights, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second.bias[order], first.bias, rtol=1e-6, atol=1e-6)
    queries = torch.from_numpy(drawn(8, [4] * 7)[0])
    torch.testing.assert_close(second.scores(queries)[:, order], first.scores(queries), rtol=1e-5, atol=1e-5)
    assert second.offset == pytest.approx(first.offset, abs=1e-6)
    assert sorted(at_once.landmark_ids) == [-4, -3, -2]


def test_probabilities_are_the_mean_of_both_for_old_landmarks_and_odds_for_new_ones(memory: Memory) -> None:
    head = build_head("linear", WIDTH, 4)
    learned = Learned().plus(of_landmark(5, 5, 3), "new")
    made = learned_head(head, WIDTH, memory, learned, temperature=1.5)
    features = torch.from_numpy(drawn(9, [3, 3, 3, 3, 0, 6])[0])
    with torch.no_grad():
        logits, own = made(features).double() / 1.5, head(features).double() / 1.5
        scores = made.scores(features).double()
    closed = memory.with_learned(learned)
    assert scores.numpy() == pytest.approx(closed.scores(directions(features.numpy())), abs=1e-4)
    odds = torch.exp(scores[:, 4:]) / torch.exp(scores[:, :4]).sum(1, keepdim=True) * np.exp(made.offset)
    mean = (torch.softmax(own, 1) + torch.softmax(scores[:, :4], 1)) / 2
    expected = torch.cat([mean, odds], 1) / (1 + odds)
    torch.testing.assert_close(torch.softmax(logits, 1), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.logsumexp(logits[:, :4], 1), torch.logsumexp(own, 1), atol=1e-4, rtol=1e-5)
    assert expected[-6:, 4].mean() > 5 * expected[:-6, 4].mean()


@pytest.mark.parametrize("width", [12, 300])
def test_directions_in_torch_are_those_of_the_gallery(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmarks.recognition.vectors.MAX_WIDTH", 128)
    features = np.random.default_rng(0).normal(size=(5, width)).astype(np.float32)
    features[0, :4] = 0
    moments = class_moments(directions(features), np.arange(5) % 2, 2)
    closed = ClosedForm(discriminant_of(moments), None, Weights(1.0, 0.0))
    head = LearnedHead(build_head("linear", width, 1), width, closed, temperature=1, offset=0)
    tensor = torch.from_numpy(features).requires_grad_()
    found = head.directions(tensor)
    assert found.detach().numpy() == pytest.approx(directions(features), abs=1e-5)
    found.sum().backward()
    assert bool(tensor.grad.isfinite().all())


def test_old_landmarks_lose_next_to_nothing_to_one_that_looks_like_them(memory: Memory) -> None:
    imitation = directions(drawn(5, [0, 0, 8])[0])  # looks as the third landmark does
    made = learned_head(build_head("linear", WIDTH, 4), WIDTH, memory, Learned().plus(imitation, "imitation"), 1.0)
    kept = memory.validation
    scores = memory.with_learned(Learned().plus(imitation, "imitation")).scores(kept.images)
    odds = scores[:, 4] - np.log(np.exp(scores[:, :4]).sum(1))
    answers = mean_log_probabilities(kept.logs.astype(np.float64), scores[:, :4])
    right = answers.argmax(1) == kept.labels
    assert (right & (odds > answers.max(1))).mean() > 0.05  # as many would be lost
    assert (right & (odds + made.offset > answers.max(1))).mean() <= MAX_LOST_SHARE


# ── A run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def files_of(folder: Path, landmark: int, count: int, first: int = 500) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{landmark}-{number}.jpg" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        path.write_bytes(image(landmark, number))
    return paths


def test_a_run_learns_a_landmark_and_forgets_it_again(run: Run, tmp_path: Path) -> None:
    images = [image(landmark, number) for landmark in (11, 22, 33, 58) for number in range(700, 704)]
    table = landmarks.learn(run.folder, files_of(tmp_path / "new", 58, 5), name="Torre de Belém")
    assert table.rows() == [(3, -2, "Torre de Belém", 5)]
    taught = landmarks.load(run.folder)
    after = taught.recognise(images)
    assert [one.answers[0].name for one in after[12:]] == ["Torre de Belém"] * 4
    assert [one.answers[0].name for one in after[:12:4]] == ["Tower 11", "Tower 22", "Tower 33"]
    assert taught.explain(images[-1]).answers[0].landmark_id == -2
    again = landmarks.learn(run.folder, files_of(tmp_path / "new", 58, 6), name=" Torre de Bele\u0301m ")
    assert again["images"].to_list() == [6]  # the five are known already
    assert landmarks.forget(run.folder, "Torre de Belém").is_empty()
    assert landmarks.load(run.folder).recognise(images) == landmarks.load(run).recognise(images)


def test_a_name_that_is_hardly_another_is_told_of(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "1.jpg"
    file.write_bytes(image(44, 900))
    landmarks.learn(run.folder, [file], name="TOWER 11")
    assert '"TOWER 11" is a landmark of its own beside "Tower 11"' in capsys.readouterr().err
    landmarks.forget(run.folder, "TOWER 11")
    landmarks.learn(run.folder, [file], name="Chapel")
    assert "of its own" not in capsys.readouterr().err
    landmarks.forget(run.folder, "Chapel")


def test_images_that_are_known_as_another_landmark_are_told_of(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, trained = files_of(tmp_path / "new", 58, 2), tmp_path / "trained.jpg"
    trained.write_bytes(image(11, 0))  # the run's first training image
    landmarks.learn(run.folder, [trained, *new], name="One")
    assert '1 of the 3 images of "One" is known as "Tower 11" already' in capsys.readouterr().err
    landmarks.learn(run.folder, new, name="One")
    assert "already" not in capsys.readouterr().err
    landmarks.learn(run.folder, new, name="Another")
    assert '2 of the 2 images of "Another" are known as "One" already' in capsys.readouterr().err
    landmarks.learn(run.folder, [*new, tmp_path / "new"], name="Third")
    told = capsys.readouterr().err
    assert '2 of the 2 images of "Third" are known as' in told and "2 images are named more than once" in told
    landmarks.forget(run.folder, "One")
    landmarks.forget(run.folder, "Another")
    landmarks.forget(run.folder, "Third")


def test_a_recogniser_learns_in_memory_what_the_verb_keeps(run: Run, tmp_path: Path) -> None:
    files = files_of(tmp_path / "new", 58, 4)
    landmarks.learn(run.folder, files_of(tmp_path / "other", 44, 2), name="Other")
    recogniser = landmarks.load(run.folder).forget("Other")
    in_memory = recogniser.learn(files, "New", 400)
    landmarks.forget(run.folder, "Other")
    given = [files[0].read_bytes(), *files[1:]]  # a file and its bytes are one image
    landmarks.learn(run.folder, given, name="New", landmark_id=400)
    kept = landmarks.load(run.folder)
    assert in_memory.recognise(files) == kept.recognise(files)
    assert in_memory.landmark_ids == kept.landmark_ids == [11, 22, 33, 400]
    assert recogniser.names == in_memory.forget("New").names == ["Tower 11", "Tower 22", "Tower 33"]
    assert repr(recogniser).startswith("Recogniser(baseline, 3 landmarks")


def test_a_landmark_after_one_of_the_smallest_id_gets_a_free_one(run: Run, tmp_path: Path) -> None:
    files = files_of(tmp_path / "new", 58, 1)
    landmarks.learn(run.folder, files, name="Smallest", landmark_id=-(2**63))
    landmarks.learn(run.folder, files, name="Next")
    table = landmarks.learn(run.folder, files, name="Third")
    assert table["landmark_id"].to_list() == [-(2**63), -2, -3]
    assert landmarks.load(run.folder).recognise(files[0]).problem is None
    for name in ("Smallest", "Next", "Third"):
        landmarks.forget(run.folder, name)


def test_what_cannot_be_learned_is_told_in_one_line(run: Run, tmp_path: Path) -> None:
    files = files_of(tmp_path / "new", 58, 2)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(LandmarksError, match="keeps nothing of its own images"):
        landmarks.load(run).learn(files, "New")
    with pytest.raises(LandmarksError, match='none of the 1 images of "New" can be read'):
        landmarks.learn(run.folder, broken, name="New")
    with pytest.raises(LandmarksError, match='"Tower 11" is a landmark that this recogniser was trained for'):
        landmarks.learn(run.folder, files, name="Tower 11")
    with pytest.raises(LandmarksError, match="the landmark id 22 is taken"):
        landmarks.learn(run.folder, files, name="New", landmark_id=22)
    for id in (2**63, -(2**63) - 1, "5", 5.0):
        with pytest.raises(LandmarksError, match=r"no landmark has such an id; received .*; expected a whole number"):
            landmarks.learn(run.folder, files, name="New", landmark_id=id)  # type: ignore[arg-type]
    with pytest.raises(LandmarksError, match="no landmark has the id -1, which stands for"):
        landmarks.learn(run.folder, files, name="New", landmark_id=-1)
    with pytest.raises(LandmarksError, match='no landmark has the name "_unknown", which stands for'):
        landmarks.learn(run.folder, files, name=" _unknown")
    with pytest.raises(LandmarksError, match="learned from a name and at least one image"):
        landmarks.learn(run.folder, files, name=5)  # type: ignore[arg-type]
    assert not (run.folder / LEARNED).exists()
    landmarks.learn(run.folder, [*files, broken], name="New")
    with pytest.raises(LandmarksError, match='expected New; did you mean "New"'):
        landmarks.forget(run.folder, "Nev")
    with pytest.raises(LandmarksError, match='"New" was learned with another landmark id; received 7; expected -2'):
        landmarks.learn(run.folder, files, name="New", landmark_id=7)
    with held(run.folder), pytest.raises(BusyError):
        landmarks.learn(run.folder, files, name="Later")


def test_a_write_that_does_not_end_leaves_what_was_learned_before(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(tmp_path / "new", 58, 3)
    landmarks.learn(run.folder, files, name="First")
    before = (run.folder / LEARNED).read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        landmarks.learn(run.folder, files, name="Second")
    monkeypatch.undo()
    assert (run.folder / LEARNED).read_bytes() == before
    assert landmarks.load(run.folder).names[-1] == "First"


def test_learned_landmarks_of_other_weights_are_refused(run: Run, tmp_path: Path) -> None:
    landmarks.learn(run.folder, files_of(tmp_path / "new", 58, 2), name="New")
    (run.folder / LEARNED).write_bytes((run.folder / LEARNED).read_bytes()[:-40])
    with pytest.raises(LandmarksError, match=r"cannot be read .* delete it, and learn again"):
        landmarks.load(run.folder)


@pytest.mark.parametrize("file", ["gallery.safetensors", MEMORY, LEARNED])
def test_what_a_run_remembers_is_refused_when_damaged(run: Run, tmp_path: Path, file: str) -> None:
    landmarks.learn(run.folder, files_of(tmp_path / "new", 58, 2), name="New")
    path = run.folder / file
    whole = path.read_bytes()
    arrays = load(whole)
    largest = max(arrays, key=lambda name: arrays[name].size)
    narrower = {**arrays, largest: np.ascontiguousarray(arrays[largest][..., :-1])}
    for damaged in (
        b"",
        whole[: len(whole) // 2],
        b"{}",
        save({name: array for name, array in arrays.items() if name != largest}),
        save({**arrays, largest: arrays[largest].astype(np.int32)}),
        *([save(narrower)] if file != LEARNED else []),  # it is as wide as its images
    ):
        path.write_bytes(damaged)
        with pytest.raises(LandmarksError, match=rf"{file} cannot be read .*delete it"):
            landmarks.load(run.folder)


def test_the_program_learns_predicts_and_forgets(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    paths = files_of(folder, 58, 4)
    assert program(["learn", str(run.folder), str(folder), "--name", "Torre de Belém"]) == 0
    assert "Torre de Belém" in capsys.readouterr().out
    answers = landmarks.predict(run.folder, paths, top=1)
    assert answers["name"].unique().to_list() == ["Torre de Belém"] and answers["probability"].dtype == pl.Float32
    assert program(["forget", str(run.folder), "Torre de Belém", "--json"]) == 0
    assert capsys.readouterr().out.strip() == "[]"


def test_images_in_memory_are_learned_from_as_files_are(run: Run, tmp_path: Path) -> None:
    files = files_of(tmp_path / "new", 58, 2)
    pixels = [decode(file.read_bytes()) for file in files]
    landmarks.learn(run.folder, [pixels[0], Image.open(files[1])], name="New")
    assert [one.answers[0].name for one in landmarks.load(run.folder).recognise(files)] == ["New", "New"]
    assert landmarks.learn(run.folder, pixels[0], name="New")["images"].to_list() == [2]  # known already
