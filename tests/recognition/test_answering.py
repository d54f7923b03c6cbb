"""Answers by classifier, neighbours and both against NumPy, and the choice among them that a run keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from made_up_runs import image, make_dataset
from scipy.special import log_softmax, softmax

import landmarks
from landmarks.cli.main import run as program
from landmarks.models.gradcam import has_head_gradient
from landmarks.models.heads import build_head
from landmarks.recognition.answering import (
    AnsweringChoice,
    BothHead,
    NeighbourHead,
    Way,
    answering_by,
    best_of,
    choice_of,
    learned_head,
    trained_head,
)
from landmarks.recognition.closed_form import (
    CONCENTRATION,
    Memory,
    Neighbourhood,
    memory_of,
    neighbourhood_of,
    read_memory,
    write_memory,
)
from landmarks.recognition.learned import Learned
from landmarks.recognition.trained import update_model
from landmarks.recognition.vectors import directions
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import read_record
from landmarks.training.discriminant import Validation, class_moments
from landmarks.training.run import Run

WIDTH, CLASSES = 12, 4


def drawn(seed: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), each)
    centres = np.random.default_rng(7).normal(size=(CLASSES, WIDTH))
    return np.abs(centres[labels] + 0.6 * random.normal(size=(len(labels), WIDTH))).astype(np.float32), labels


def memory_with(logs: np.ndarray) -> Memory:
    features, labels = drawn(0, 25)
    queries, truth = drawn(1, 20)
    images = directions(features)
    validation = Validation(directions(queries).astype(np.float16), truth, logs.astype(np.float16))
    return memory_of(class_moments(images, labels, CLASSES), validation, images, labels)


def remembered(memory: Memory) -> Neighbourhood:
    images, labels = drawn(0, 25)
    near = neighbourhood_of(memory.moments, directions(images), labels)
    assert near is not None
    return near


def a_head_that_is_right_in(share: float) -> np.ndarray:
    truth = drawn(1, 20)[1]
    answers = np.where(np.arange(len(truth)) < share * len(truth), truth, (truth + 1) % CLASSES)
    return np.log(0.85 * np.eye(CLASSES)[answers] + 0.0375)


def densities_by_hand(trained: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int) -> np.ndarray:
    """Return log densities from nothing but NumPy: whiten by the inverse root of the shrunk covariance, and sum."""
    x, q = (np.sign(one) * np.sqrt(np.abs(one)) for one in (trained.astype(float), queries.astype(float)))
    x, q = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (x, q))
    means = np.stack([x[labels == label].mean(0) for label in range(classes)])
    within = (x - means[labels]).T @ (x - means[labels]) / len(x)
    shrunk = within / 2 + np.trace(within) / len(within) / 2 * np.eye(len(within))
    values, axes = np.linalg.eigh(shrunk)
    root = axes / np.sqrt(values)
    x, q = ((one - means.mean(0)) @ root for one in (x, q))
    x, q = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (x, q))
    kernel = np.exp(CONCENTRATION * (q @ x.T - 1))
    return np.log(np.stack([kernel[:, labels == label].mean(1) for label in range(classes)], axis=1))


def test_neighbours_answer_as_densities_that_numpy_sums() -> None:
    memory = memory_with(a_head_that_is_right_in(1.0))
    trained, labels = drawn(0, 25)
    near = remembered(memory)
    queries = drawn(3, 6)[0]
    head = NeighbourHead(build_head("linear", WIDTH, CLASSES), WIDTH, near, classes=CLASSES, factor=0.7)
    with torch.no_grad():
        found = head(torch.from_numpy(queries)).numpy() / 0.7
    assert found == pytest.approx(densities_by_hand(trained, labels, queries, CLASSES), abs=0.02)  # halves of a float


def test_both_is_the_mean_of_two_probabilities_brought_to_the_least_log_loss() -> None:
    memory = memory_with(a_head_that_is_right_in(1.0))
    head, temperature = build_head("linear", WIDTH, CLASSES), 1.7
    mixed = learned_head(head, WIDTH, memory, Learned(), temperature)
    queries = torch.from_numpy(drawn(3, 6)[0])
    with torch.no_grad():
        own = head(queries).double().numpy() / temperature
        logits = BothHead(mixed, scale=0.8)(queries).double().numpy()
    closed = memory.with_learned(Learned()).scores(directions(queries.numpy()))
    mean = (softmax(own, axis=1) + softmax(closed, axis=1)) / 2
    assert softmax(logits / temperature, axis=1) == pytest.approx(softmax(np.log(mean) / 0.8, axis=1), abs=1e-5)
    assert np.exp(logits / temperature).sum(1) == pytest.approx(np.exp(own).sum(1), rel=1e-4)  # so energy stays


def test_the_way_that_is_right_most_often_is_chosen_and_equal_ones_leave_the_classifier() -> None:
    always, never = memory_with(a_head_that_is_right_in(1.0)), memory_with(a_head_that_is_right_in(0.3))
    chosen = choice_of(always, remembered(always))
    assert chosen is not None and chosen.by == "classifier" and chosen.way("classifier").accuracy == 1.0
    other = choice_of(never, remembered(never))
    assert other is not None and other.by != "classifier" and other.images == 80
    assert str(other).startswith(f"answers by {other.by}: right on ") and "by classifier 30.0 %" in str(other)
    queries, truth = drawn(1, 20)
    trained, labels = drawn(0, 25)
    by_hand = densities_by_hand(trained, labels, queries, CLASSES).argmax(1) == truth
    assert other.way("neighbours").accuracy == pytest.approx(by_hand.mean(), abs=0.013)  # one image, by a rounding
    scale = other.way("neighbours").scale
    loss = -log_softmax(densities_by_hand(trained, labels, queries, CLASSES) / scale, axis=1)[
        np.arange(80), truth
    ].mean()
    assert other.way("neighbours").log_loss == pytest.approx(loss, rel=0.05)


@pytest.mark.parametrize(
    ("classifier", "neighbours", "both", "chosen"),
    [
        (0.955, 0.961, 0.959, "both"),  # a fine-tuned mobilenetv2_100: 94.8, 92.3 and 94.4 % of new images
        (0.968, 0.974, 0.968, "classifier"),
        (0.900, 0.960, 0.920, "neighbours"),
        (0.700, 0.700, 0.700, "classifier"),
    ],
)
def test_neighbours_must_be_clearly_better(classifier: float, neighbours: float, both: float, chosen: str) -> None:
    accuracies = {"classifier": classifier, "neighbours": neighbours, "both": both}
    ways = tuple(Way(by, accuracy, 0.1, 1.0) for by, accuracy in accuracies.items())
    assert best_of(ways, 536).by == chosen
    hint = "neighbours must be better by more than a standard error"
    assert (hint in str(AnsweringChoice(chosen, 536, ways))) == (accuracies[chosen] < neighbours)


def test_without_validation_images_or_neighbours_nothing_is_chosen() -> None:
    memory = memory_with(a_head_that_is_right_in(1.0))
    assert choice_of(memory, None) is None
    nothing = Validation(memory.validation.images[:0], memory.validation.labels[:0], memory.validation.logs[:0])
    assert choice_of(replace(memory, validation=nothing), remembered(memory)) is None


def test_a_memory_without_validation_images_is_read_as_it_was_written(tmp_path: Path) -> None:
    memory = memory_with(a_head_that_is_right_in(1.0))
    images, labels, logs = (getattr(memory.validation, name)[:0] for name in ("images", "labels", "logs"))
    write_memory(tmp_path, replace(memory, validation=Validation(images, labels, logs)), "weights")
    found = read_memory(tmp_path, "weights")
    assert found is not None and not len(found.validation.labels) and found.weights == memory.weights


# ── A run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def keep(run: Run, *, by: str) -> None:
    """Have the run's validation images speak for another way than they do."""
    update_model(run, answers_by={**read_record(run.folder / "model.json")["answers_by"], "by": by})


def strangers(tmp_path: Path) -> Path:
    shown = [[97]] * 12
    return make_dataset(tmp_path / "unknown", shown, first=5000).folder


def test_evaluate_by_neighbours_answers_as_numpy_does_and_keeps_other_numbers(run: Run) -> None:
    before = landmarks.evaluate(run.folder, split="test")
    landmarks.evaluate(run.folder, split="test", by="both")
    keep(run, by="both")
    by = landmarks.evaluate(run.folder, split="test", by="neighbours")
    assert (before.name, by.name) == ("test", "test-by-neighbours")
    assert (before.record["by"], by.record["by"]) == ("classifier", "neighbours")
    recogniser = landmarks.load(run.folder)
    own = landmarks.open_dataset(run.folder.parent / "data")
    images = {part: own.split(part).sort("image_id") for part in ("train", "test")}
    # The images are what `image` makes of their number.
    pixels = {
        part: [image(row["landmark_id"], int(row["image_id"], 16)) for row in table.iter_rows(named=True)]
        for part, table in images.items()
    }
    labels = {part: table["label"].to_numpy().astype(int) for part, table in images.items()}
    x, q = (directions(recogniser.embed(pixels[part])) for part in ("train", "test"))
    by_hand = densities_by_hand(x * np.abs(x), labels["train"], q * np.abs(q), 3)  # whose roots are the directions
    answers = pl.read_parquet(run.folder / "predictions" / "test-by-neighbours.parquet").sort("image_id")
    best = answers["label"].list.first().to_numpy()
    margin = np.sort(by_hand, axis=1)
    sure = margin[:, -1] - margin[:, -2] > 0.05
    assert sure.any() and (best[sure] == by_hand.argmax(1)[sure]).all()


def test_a_run_that_is_evaluated_beside_strangers_chooses_once_says_so_and_answers_so(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = strangers(tmp_path)
    judged = landmarks.evaluate(run.folder, split="test", unknown=unknown)
    stderr = capsys.readouterr().err
    kept = read_record(run.folder / "model.json")["answers_by"]
    assert kept["by"] == "both" or kept["by"] == "neighbours"  # the classifier was never trained
    assert f"answers by {kept['by']}: right on " in stderr and "by classifier " in stderr
    recogniser = landmarks.load(run.folder)
    assert recogniser.by == kept["by"] == judged.record["by"] and recogniser.choice is not None
    again = landmarks.evaluate(run.folder, split="test", unknown=unknown)
    assert "answers by" not in capsys.readouterr().err and again.top1 == judged.top1
    images = [image(landmark, number) for landmark in (11, 22, 33) for number in range(300, 304)]
    right = [one.answers[0].landmark_id for one in recogniser.recognise(images)]
    assert np.mean(np.array(right) == np.repeat([11, 22, 33], 4)) > 0.9
    assert landmarks.load(run.folder, by="classifier").by == "classifier"
    assert recogniser.digest != landmarks.load(run.folder, by="classifier").digest
    assert isinstance(trained_head(recogniser.trained.head), type(run.network().head))


def test_a_run_with_a_threshold_answers_as_before_until_the_threshold_is_chosen_anew(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown, model = strangers(tmp_path), run.folder / "model.json"
    by_energy = {"name": "energy", "weights": {"energy": 1.0}, "constant": 0.0}
    update_model(run, rejection={"rule": by_energy, "threshold": 0.0})  # as an earlier version wrote it
    judged = landmarks.evaluate(run.folder, split="test", unknown=unknown)
    assert "by both once evaluate --false-acceptance chooses another" in capsys.readouterr().err
    assert judged.record["by"] == landmarks.load(run.folder).by == "classifier"
    assert landmarks.load(run.folder).rule is not None
    by_both = landmarks.load(run.folder, by="both")
    assert by_both.rule is None and by_both.recognise(image(11, 1)).known is None
    assert "the threshold was chosen for answers by classifier" in capsys.readouterr().err
    landmarks.evaluate(run.folder, split="test", unknown=unknown, false_acceptance=0.5)
    chosen = read_record(model)
    assert chosen["rejection"]["by"] == chosen["answers_by"]["by"] == landmarks.load(run.folder).by == "both"
    assert landmarks.load(run.folder).rule is not None


def test_learned_landmarks_are_found_by_neighbours_too(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(image(58, 500 + number))
    landmarks.learn(run.folder, folder, name="New")
    answers = landmarks.predict(run.folder, folder, top=1, by="neighbours")
    assert answers["name"].unique().to_list() == ["New"]
    taught = landmarks.load(run.folder, by="classifier")
    assert taught.by == "both"  # the trained head does not know what was learned
    assert answering_by(taught, "neighbours").names[-1] == "New"
    assert landmarks.load(run.folder, by="neighbours").forget("New").names == ["Tower 11", "Tower 22", "Tower 33"]


@pytest.mark.parametrize("by", ["both", "neighbours"])
def test_heat_maps_are_drawn_of_the_answers_that_predict_gives(run: Run, tmp_path: Path, by: str) -> None:
    landmarks.evaluate(run.folder, split="test", by="both")
    path = tmp_path / "asked.jpg"
    path.write_bytes(image(22, 900))
    keep(run, by="classifier")
    landmarks.explain(run.folder, [path])
    keep(run, by=by)
    drawn = landmarks.explain(run.folder, count=1)["panels"]
    [panel] = landmarks.explain(run.folder, [path])["made"]
    answers = landmarks.predict(run.folder, path, top=3)
    assert panel["by"] == by and [one["name"] for one in panel["answers"]] == answers["name"].to_list()
    probabilities = [one["probability"] for one in panel["answers"]]
    assert probabilities == pytest.approx(answers["probability"].to_list(), abs=1e-4)
    assert {one["by"] for one in drawn} == {by}  # panels of other answers are not shown beside them


def test_what_cannot_answer_is_told_in_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "1.jpg").write_bytes(image(11, 1))
    assert program(["predict", str(run.folder), str(tmp_path / "1.jpg"), "--by", "neighbors"]) == 2
    assert 'did you mean "neighbours"' in capsys.readouterr().err
    with pytest.raises(LandmarksError, match="cannot answer by both"):
        landmarks.load(run.folder, by="both")
    with pytest.raises(UsageError, match="leave out --by"):
        landmarks.evaluate(run.folder, by="both", false_acceptance=0.1)
    assert program(["predict", str(run.folder), str(tmp_path / "1.jpg"), "--by", "both", "--json"]) == 0
    (tmp_path / "data").rename(tmp_path / "gone")
    (run.folder / "memory.safetensors").unlink()
    with pytest.raises(LandmarksError, match=r"is not at .* any more"):
        landmarks.predict(run.folder, tmp_path / "1.jpg", by="both")


@pytest.mark.slow
def test_an_export_answers_as_a_run_by_both_whose_heat_maps_have_a_formula(run: Run, tmp_path: Path) -> None:
    landmarks.evaluate(run.folder, split="test", by="both")
    keep(run, by="both")
    written = landmarks.export(run.folder, tmp_path / "run.onnx")
    assert has_head_gradient(landmarks.load(run.folder, by="both").trained.head)  # so maps need no backward pass
    one = image(22, 900)
    assert landmarks.load(written.path).recognise(one).answers[0].probability == pytest.approx(
        landmarks.load(run.folder, by="both").recognise(one).answers[0].probability, abs=1e-3
    )
    with pytest.raises(UsageError, match="answers as its run did"):
        landmarks.load(written.path, by="classifier")
