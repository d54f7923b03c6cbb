from __future__ import annotations

import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from made_up_runs import make_dataset
from safetensors.torch import load_file, save_file
from scipy.spatial.distance import mahalanobis
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import landmarks.recognition.gallery as remembering
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation import measure as choice
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.intervals import group_places
from landmarks.evaluation.measure import (
    ThresholdParts,
    candidate_rules,
    choose_threshold,
    combined_rule,
    compare_rules,
    threshold_parts,
)
from landmarks.recognition import trained as tempering
from landmarks.recognition import vectors as compared
from landmarks.recognition.answers import KnownRule
from landmarks.recognition.gallery import (
    UnknownImages,
    make_gallery,
    read_unknown,
    rejection_scores,
    sample,
    with_unknown_images,
    write_unknown,
)
from landmarks.recognition.vectors import directions
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record, write_record
from landmarks.training.recipe import Recipe, recipe_named
from landmarks.training.run import Run, open_run
from landmarks.training.train import train

_MADE_UP = np.random.default_rng(0)
CENTRES = _MADE_UP.gamma(1.0, size=(4, 12))
TRAIN_LABELS = np.repeat(np.arange(4), 30)
TRAIN = np.abs(CENTRES[TRAIN_LABELS] + _MADE_UP.normal(0, 0.2, (120, 12)))
KNOWN = np.abs(CENTRES[np.arange(40) % 4] + _MADE_UP.normal(0, 0.2, (40, 12)))
UNKNOWN = _MADE_UP.gamma(1.0, size=(40, 12))


@pytest.fixture
def random() -> np.random.Generator:
    """A generator of this test's own: what it draws does not depend on the tests before."""
    return np.random.default_rng(1)


def scores_of(features: np.ndarray) -> dict[str, np.ndarray]:
    gallery = make_gallery(directions(TRAIN), TRAIN_LABELS, "digest")
    return rejection_scores(features.astype(np.float32), features[:, :4].astype(np.float32), gallery)


def test_energy_is_the_log_sum_of_exponentials(random: np.random.Generator) -> None:
    logits = random.normal(size=(5, 7)).astype(np.float32)
    assert rejection_scores(logits, logits, None)["energy"] == pytest.approx(logsumexp(logits, axis=1), rel=1e-5)


def test_the_nearest_images_vote_as_a_plain_loop_says() -> None:
    roots = np.sign(TRAIN) * np.sqrt(np.abs(TRAIN))
    roots /= np.linalg.norm(roots, axis=1, keepdims=True)
    expected = []
    for row in KNOWN[:10]:
        image = np.sqrt(row) / np.linalg.norm(np.sqrt(row))
        cosines = roots @ image
        votes = dict.fromkeys(range(4), 0.0)
        for place in np.argsort(-cosines)[:10]:
            votes[int(TRAIN_LABELS[place])] += float(np.exp((cosines[place] - 1) / 0.05))
        expected.append(np.log(max(votes.values())))
    assert scores_of(KNOWN[:10])["knn"] == pytest.approx(expected, abs=0.02)  # images in half precision


def test_the_distance_to_centres_is_scipys_mahalanobis() -> None:
    images, queries = directions(TRAIN).astype(np.float64), directions(KNOWN[:8]).astype(np.float64)
    means = np.stack([images[label == TRAIN_LABELS].mean(axis=0) for label in range(4)])

    def inverse(deviations: np.ndarray) -> np.ndarray:
        covariance = deviations.T @ deviations / len(deviations)
        return np.linalg.inv(0.9 * covariance + 0.1 * np.trace(covariance) / 12 * np.eye(12))

    within, overall = inverse(images - means[TRAIN_LABELS]), inverse(images - images.mean(axis=0))
    expected = [
        mahalanobis(row, images.mean(axis=0), overall) ** 2 - min(mahalanobis(row, mean, within) ** 2 for mean in means)
        for row in queries
    ]
    assert scores_of(KNOWN[:8])["mahalanobis"] == pytest.approx(expected, rel=1e-3)


def test_unknown_images_vote_against_but_never_on_themselves() -> None:
    gallery = make_gallery(directions(TRAIN), TRAIN_LABELS, "digest")
    remembered = directions(UNKNOWN[:20]).astype(np.float16)
    gallery = with_unknown_images(gallery, UnknownImages(remembered, tuple(map(str, range(20)))))
    queries = np.concatenate([UNKNOWN[:20], KNOWN[:8]]).astype(np.float32)
    itself = np.array([*range(20), *[-1] * 8])
    found = rejection_scores(queries, queries[:, :4], gallery, itself)
    exact = remembered.astype(np.float64)
    for row in (0, 7, 19, 20, 27):
        image = directions(queries[row : row + 1])[0].astype(np.float64)
        others = exact[np.arange(20) != itself[row]]
        votes = np.sort(np.exp((others @ image - 1) / 0.05))[-10:].sum()
        assert found["knn_unknown"][row] == pytest.approx(-np.log(votes), abs=0.02)
        within = gallery.within.astype(np.float64) @ gallery.within.astype(np.float64).T
        means = [directions(TRAIN[label == TRAIN_LABELS]).mean(0) for label in range(4)]
        expected = mahalanobis(image, others.mean(0), within) ** 2
        expected -= min(mahalanobis(image, mean, within) ** 2 for mean in means)
        assert found["contrast"][row] == pytest.approx(expected, rel=0.02, abs=0.05)


def test_remembered_unknown_images_are_read_as_written_and_refused_when_damaged(tmp_path: Path) -> None:
    kept = UnknownImages(directions(UNKNOWN[:3]).astype(np.float16), ("a 1", "a 2", "b 1"))
    assert read_unknown(tmp_path, "weights", 12) is None
    write_unknown(tmp_path, kept, "weights")
    found = read_unknown(tmp_path, "weights", 12)
    assert found is not None and found.keys == kept.keys and (found.images == kept.images).all()
    assert found.places_of(["b 1", "c", "a 1"]).tolist() == [2, -1, 0]
    assert read_unknown(tmp_path, "other weights", 12) is None
    with pytest.raises(LandmarksError, match="images does not fit"):
        read_unknown(tmp_path, "weights", 13)
    path = tmp_path / "unknown.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(LandmarksError, match=r"cannot be read .* choose again"):
        read_unknown(tmp_path, "weights", 12)


def test_landmarks_score_higher_than_anything_else() -> None:
    known, unknown = scores_of(KNOWN), scores_of(UNKNOWN)
    for name in ("knn", "mahalanobis"):
        assert np.median(known[name]) > np.quantile(unknown[name], 0.9)


def test_wide_features_are_folded_and_keep_their_cosines(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = random.gamma(1.0, size=(6, 20_000))
    monkeypatch.setattr(compared, "MAX_WIDTH", 20_000)
    exact = directions(wide)
    monkeypatch.setattr(compared, "MAX_WIDTH", 2048)
    folded = directions(wide)
    assert folded.shape == (6, 2048)
    assert folded @ folded.T == pytest.approx(exact @ exact.T, abs=0.08)


def test_long_features_become_directions_a_block_at_a_time(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = random.normal(size=(1500, 20_000)).astype(np.float16)
    tracemalloc.start()
    blocked = directions(features)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6  # as 32-bit numbers all features are 120 MB, several times over
    monkeypatch.setattr(compared, "BLOCK_BYTES", 1 << 40)
    assert (blocked == directions(features)).all()


def test_one_image_per_landmark_is_enough_for_a_reference() -> None:
    gallery = make_gallery(directions(TRAIN[::30]), np.arange(4), "digest")
    assert np.isfinite(rejection_scores(KNOWN, KNOWN, gallery)["mahalanobis"]).all()


def test_the_combined_rule_is_scikit_learns_logistic_regression(random: np.random.Generator) -> None:
    scores = {"a": random.normal(size=60).astype(np.float32), "b": random.normal(5, 3, size=60).astype(np.float32)}
    known = scores["a"] + random.normal(size=60) > 0
    matrix = np.stack([scores["a"], scores["b"]], axis=1).astype(np.float64)
    scaled = StandardScaler().fit_transform(matrix)
    expected = LogisticRegression(class_weight="balanced").fit(scaled, known).decision_function(scaled)
    assert combined_rule(scores, known).apply(scores) == pytest.approx(expected, abs=1e-5)


def some_scores() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    known = np.arange(400) % 2 == 0
    good = known * 2.0 + random.normal(size=400)
    scores = {"msp": random.random(400), "energy": good, "knn": good + random.normal(size=400)}
    usage = np.array(["Public", "Private"], dtype=object)[np.arange(400) // 2 % 2]
    return {name: values.astype(np.float32) for name, values in scores.items()}, known, usage


def test_rule_and_threshold_are_chosen_without_the_private_part() -> None:
    scores, known, usage = some_scores()
    parts = threshold_parts(usage, np.full(400, -1))
    stored = choose_threshold(scores, known, parts, 0.1)
    blind = {name: np.where(usage == "Private", 0, values) for name, values in scores.items()}
    told_nothing = choose_threshold(blind, known, parts, 0.1)
    assert (stored["rule"], stored["threshold"]) == (told_nothing["rule"], told_nothing["threshold"])
    values = KnownRule(**stored["rule"]).apply(scores)
    public_others = values[(usage == "Public") & ~known]
    assert np.mean(public_others >= stored["threshold"]) <= 0.1
    assert 0.03 < stored["accepted_unknown"] < 0.25


def test_rules_are_compared_with_thresholds_from_the_chosen_part() -> None:
    scores, known, usage = some_scores()
    parts = threshold_parts(usage, np.full(400, -1))
    rules = candidate_rules(scores, known, parts)
    rows = compare_rules(rules, scores, known, parts)
    assert {row["score"] for row in rows} == {"msp", "energy", "knn", "combined"}
    assert rows[-1]["score"] == "msp"
    assert rows[0]["auroc"] > 0.85
    assert all(row["lost"] < 0.12 for row in rows)


def test_the_combined_rule_is_judged_on_groups_it_was_not_fitted_to(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = random.integers(1, 6, 60)
    groups = np.repeat(np.arange(60), sizes)
    known = groups % 2 == 0
    scores = {"energy": groups.astype(np.float32), "knn": random.normal(size=len(groups)).astype(np.float32)}
    fitted = []

    def spied(splits: dict[str, np.ndarray], flags: np.ndarray) -> KnownRule:
        fitted.append(np.bincount(splits["energy"].astype(int), minlength=60))
        return combined_rule(splits, flags)

    monkeypatch.setattr(choice, "combined_rule", spied)
    whole = np.ones(len(groups), dtype=bool)
    candidate_rules(scores, known, ThresholdParts(whole, ~whole, group_places(groups, len(groups)), "all", "none"))
    assert (fitted[0] == sizes).all() and len(fitted) == 1 + 5
    left_out = np.stack([counts == 0 for counts in fitted[1:]])
    assert all(((counts == 0) | (counts == sizes)).all() for counts in fitted[1:])
    assert (left_out.sum(axis=0) == 1).all()  # every group is judged once
    assert (left_out[:, ::2].sum(axis=1) == 6).all() and (left_out[:, 1::2].sum(axis=1) == 6).all()


def test_a_handful_of_images_many_times_over_is_too_little_to_judge_a_combined_rule() -> None:
    scores, known, usage = some_scores()
    groups = np.where(known, 0, 1) + 2 * (np.arange(400) // 2 % 4)
    assert "combined" in {
        rule.name for rule, _ in candidate_rules(scores, known, threshold_parts(usage, np.full(400, -1)))
    }
    assert "combined" not in {rule.name for rule, _ in candidate_rules(scores, known, threshold_parts(usage, groups))}


def test_without_public_and_private_whole_groups_are_set_aside() -> None:
    groups = np.repeat(np.arange(50), 4)
    parts = threshold_parts(np.full(200, None, dtype=object), groups)
    assert not (set(groups[parts.chosen]) & set(groups[parts.reported]))
    assert 0.3 < parts.chosen.mean() < 0.7


def test_too_few_others_for_a_rate_is_said() -> None:
    scores, known, usage = some_scores()
    with pytest.raises(LandmarksError, match="too few images of anything else"):
        choose_threshold(scores, known, threshold_parts(usage, np.full(400, -1)), 0.001)


def test_remembered_images_are_as_even_over_landmarks_as_can_be() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 10)
    kept = sample(labels, 20)
    counts = np.bincount(labels[kept])
    assert counts.tolist() == [8, 3, 8]
    assert sample(labels, 63).all()


# ── After a head training alone the backbone is what it was: nothing passes through it again that training kept
# ──────────────


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    shown = [[(11, 22, 33)[number % 3]] for number in range(36)]
    splits = ["train"] * 24 + ["val"] * 6 + ["test"] * 6
    return make_dataset(tmp_path_factory.mktemp("kept") / "data", shown, splits=splits)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "small.safetensors"
    backbone = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    save_file({name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}, weights)
    settings: dict[str, Any] = {"backbone": "test_resnet", "weights": weights, "image_size": 32, "batch_size": 8}
    return recipe_named("default", **settings, epochs=0, head_epochs=3, tracking="none", device="cpu")


@pytest.fixture(scope="module")
def warm(data: Dataset, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(data.folder, tmp_path_factory.mktemp("runs") / "warm", recipe=recipe)


@pytest.fixture
def others(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "street", [[]] * 12, first=500)


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder)
    return open_run(folder)


def passed_through(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the images that pass through the network beside those that are answered, by what for."""
    counts: dict[str, int] = {}
    for module in (remembering, tempering):
        original = module.batches

        def counted(*arguments: Any, name: str = module.__name__, original: Any = original, **named: Any) -> Any:
            counts[name.rpartition(".")[2]] = len(arguments[1])
            return original(*arguments, **named)

        monkeypatch.setattr(module, "batches", counted)
    return counts


def test_a_run_without_fine_tuning_is_remembered_from_what_warm_up_kept(
    warm: Run, others: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(warm, tmp_path / "run")
    counts = passed_through(monkeypatch)
    numbers = evaluate(run.folder, unknown=others.folder).record
    assert numbers["unknown"] == 12 and {row["score"] for row in numbers["rejection"]} >= {"knn", "mahalanobis"}
    assert not counts


def test_what_was_kept_and_what_passes_through_again_say_the_same(
    warm: Run, data: Dataset, others: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, anew = copy_of(warm, tmp_path / "kept"), copy_of(warm, tmp_path / "anew")
    first = evaluate(kept.folder, unknown=others.folder).record
    (data.folder / "features").rename(data.folder / "features.away")
    try:
        counts = passed_through(monkeypatch)
        second = evaluate(anew.folder, unknown=others.folder).record
    finally:
        (data.folder / "features.away").rename(data.folder / "features")
    assert (counts["gallery"], counts["trained"]) == (24, 6)
    assert first["temperature"] == pytest.approx(second["temperature"], rel=0.02)
    remembered = [load_file(run.folder / "gallery.safetensors") for run in (kept, anew)]
    assert torch.equal(remembered[0]["labels"], remembered[1]["labels"])
    cosines = (remembered[0]["images"].float() * remembered[1]["images"].float()).sum(dim=1)
    assert cosines.numpy() == pytest.approx(np.ones(24), abs=2e-3)


def test_a_fine_tuned_backbone_does_not_take_them(
    data: Dataset, recipe: Recipe, others: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(data.folder, tmp_path / "tuned", recipe=replace(recipe, epochs=1, head_epochs=0))
    assert run.record["best"]["phase"] == "finetune"
    counts = passed_through(monkeypatch)
    evaluate(run.folder, unknown=others.folder)
    assert (counts["gallery"], counts["trained"]) == (24, 6)


def test_features_kept_in_another_precision_are_those_of_the_training(
    data: Dataset, recipe: Recipe, others: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data.folder, tmp_path / "data", ignore=shutil.ignore_patterns("features"))
    run = train(tmp_path / "data", tmp_path / "half", recipe=replace(recipe, precision="bfloat16"))
    counts = passed_through(monkeypatch)
    evaluate(run.folder, unknown=others.folder)
    assert not counts


def test_damaged_features_are_passed_by(
    warm: Run, data: Dataset, others: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data.folder, tmp_path / "data")
    run = copy_of(warm, tmp_path / "run")
    record = read_record(run.folder / "run.json")
    record["data"] |= {"folder": str(tmp_path / "data"), "relative": "../data"}
    write_record(run.folder / "run.json", record, verb="train")
    for features in (tmp_path / "data" / "features").glob("*/features.npy"):
        features.write_bytes(features.read_bytes()[:64])
    counts = passed_through(monkeypatch)
    evaluate(run.folder, unknown=others.folder)
    assert (counts["gallery"], counts["trained"]) == (24, 6)
