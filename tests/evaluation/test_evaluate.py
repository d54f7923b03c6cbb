from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from made_up_runs import image, make_dataset, make_run
from scipy.stats import binomtest

import landmarks
import landmarks.evaluation.predictions as predictions_file
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.predictions import PREDICTIONS, read_predictions, with_truth
from landmarks.evaluation.results import StoredThreshold
from landmarks.models.network import save_network
from landmarks.recognition.answers import KnownRule, best_answers
from landmarks.recognition.gallery import open_gallery
from landmarks.recognition.recogniser import Recogniser
from landmarks.support.errors import BusyError, LandmarksError, StaleError, UsageError
from landmarks.support.files import held, read_record
from landmarks.support.tables import read_metadata
from landmarks.training.run import Run


def test_the_predictions_are_what_the_network_says_one_image_at_a_time(run: Run, own_data: Dataset) -> None:
    from landmarks.dataset.shards import ImageReader
    from landmarks.models.preprocessing import evaluation_image
    from landmarks.training.loader import normalised

    numbers = evaluate(run.folder).record
    table = read_predictions(run.folder / "predictions" / "test.parquet")
    network, reader = run.network(), ImageReader(own_data)
    assert table["image_id"].to_list() == sorted(own_data.split("test")["image_id"].to_list())
    for row, shown in zip(table.rows(named=True), own_data.split("test").rows(named=True), strict=True):
        data = reader.read(shown["shard"], shown["offset"], shown["length"])
        image = torch.from_numpy(evaluation_image(data, network.preprocessing).copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = network(normalised(image, network.preprocessing))[0]
        expected = torch.softmax(logits / numbers["temperature"], dim=0)
        assert row["label"] == torch.argsort(-expected, stable=True).tolist()
        assert row["score"] == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-5)
        assert row["truth"] == [shown["label"]]
        assert row["truth_score"] == pytest.approx(float(expected[shown["label"]].log()), abs=1e-4)
        assert row["untempered"] == pytest.approx(float(torch.softmax(logits, dim=0).max()), abs=1e-5)


def test_numbers_and_tables_agree_with_the_predictions_file(run: Run) -> None:
    numbers = evaluate(run.folder).record
    table = read_predictions(run.folder / "predictions" / "test.parquet")
    right = [row["label"][0] in row["truth"] for row in table.rows(named=True)]
    assert numbers["top1"]["value"] == pytest.approx(np.mean(right))
    assert numbers["known"] == 6
    stored = read_record(run.folder / "metrics" / "test.json")
    assert stored["top1"] == numbers["top1"]
    assert set(numbers["definitions"]) >= {"top1", "gap", "ece", "macro", "risk_coverage"}
    landmarks = pl.read_parquet(run.folder / "metrics" / "test.landmarks.parquet")
    assert landmarks["name"].to_list() == ["Tower 11", "Tower 22", "Tower 33"]
    assert landmarks["correct"].sum() == sum(right)
    confusion = pl.read_parquet(run.folder / "metrics" / "test.confusion.parquet")
    assert confusion["count"].sum() == 6
    json.dumps(numbers, allow_nan=False)


def test_the_temperature_is_fitted_once_and_stored_with_the_model(run: Run) -> None:
    before = read_record(run.folder / "model.json")
    numbers = evaluate(run.folder, split="val").record
    after = read_record(run.folder / "model.json")
    assert after["temperature"] == numbers["temperature"] != 1.0
    assert {key: after[key] for key in before} == before


@pytest.mark.parametrize(
    ("wrong", "words"), [(0, "none of 6 validation images are"), (2, "2 of 6 validation images are")]
)
def test_with_too_few_wrong_answers_the_temperature_stays_1_and_is_told(
    wrong: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = [[landmark] for landmark in (11, 22, 33)] * 6 + [[22]] * wrong + [[11]] * (12 - wrong)
    data = make_dataset(tmp_path / "data", shown, splits=["train"] * 18 + ["val"] * 6 + ["test"] * 6)
    run = make_run(tmp_path / "run", data)
    network = run.network()
    with torch.no_grad():  # it answers 11 to everything, nearly sure
        network.head.output.weight.zero_()
        network.head.output.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    save_network(network, run.folder)
    numbers = evaluate(run.folder)
    assert numbers.record["temperature"] == read_record(run.folder / "model.json")["temperature"] == 1.0
    assert f"the temperature stays 1: {words} answered wrong" in capsys.readouterr().err
    assert numbers.top1.value == 1.0
    assert numbers.top1.low is not None and 0.4 < numbers.top1.low < 0.5  # three groups of two
    assert numbers.top1.low == numbers.macro.low
    assert "Wilson" in numbers.top1.method


def test_a_threshold_that_lets_more_pass_than_was_asked_for_says_so() -> None:
    chosen = StoredThreshold("knn", 0.5, 0.05, 0.081, 0.1, "Public", "Private", 260)
    assert "more pass than the 5.0 % asked for, which was met on Public" in str(chosen)
    expected = binomtest(21, 260).proportion_ci(method="wilson")
    assert f"{100 * expected.low:.1f} % to {100 * expected.high:.1f} %" in str(chosen)
    assert "asked for" not in str(replace(chosen, accepted_unknown=0.03))


@pytest.mark.parametrize("apart", [False, True])
def test_near_duplicates_of_training_images_are_told_where_the_split_parts_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], apart: bool
) -> None:
    shown = [[11], [11], [22], [22], [11], [11], [22], [22]]  # two and two are of one group
    parted = ["train", "test", "train", "test", "val", "val", "test", "train"]
    whole = ["train", "train", "test", "test", "val", "val", "train", "train"]
    data = make_dataset(tmp_path / "data", shown, splits=parted if apart else whole)
    evaluate(make_run(tmp_path / "run", data).folder)
    stderr = capfd.readouterr().err
    assert ("3 of the 3 images are near-duplicates of ones that run was trained on" in stderr) == apart
    assert "run answers 2 landmarks, which are all among the best five: top5 says nothing" in stderr
    assert ("not judged, as no image here shows any: 1 landmark of the 2 that run answers" in stderr) != apart


def test_landmarks_of_another_dataset_are_found_by_their_ids(run: Run, test_data: Dataset) -> None:
    numbers = evaluate(run.folder, data=test_data.folder).record
    table = read_predictions(run.folder / "predictions" / "elsewhere.parquet")
    assert table["truth"].to_list()[:4] == [[0], [1, 2], [], []]
    assert (numbers["images"], numbers["known"], numbers["unknown"]) == (60, 30, 30)
    assert {"energy", "knn", "mahalanobis"} <= set(table.columns)
    assert {row["score"] for row in numbers["rejection"]} >= {"msp", "energy", "knn", "mahalanobis", "combined"}
    assert numbers["rejection_parts"] == {"chosen_on": "Public", "reported_on": "Private"}


def test_a_run_that_does_not_fit_the_data_is_one_line(run: Run, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", [[77], [88]])
    with pytest.raises(LandmarksError, match="does not fit the data"):
        evaluate(run.folder, data=other.folder)


def test_landmarks_that_were_learned_are_said_not_to_be_judged(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = evaluate(run.folder, retrieval=True).record  # which remembers the training images, as learn does
    (tmp_path / "new.jpg").write_bytes(image(44, 1))
    landmarks.learn(run.folder, tmp_path / "new.jpg", name="Torre de Belém")
    capsys.readouterr()
    again = evaluate(run.folder).record
    assert "without the 1 landmark that run has learned (Torre de Belém)" in capsys.readouterr().err
    assert again["top1"] == numbers["top1"]
    landmarks.forget(run.folder, "Torre de Belém")
    evaluate(run.folder)
    assert "has learned" not in capsys.readouterr().err


def test_the_main_landmark_comes_first_in_the_truth(run: Run) -> None:
    images = pl.DataFrame(
        {"image_id": ["a", "b", "c"], "landmark_id": [33, None, 99], "landmarks": [[11, 33, 99], None, [99, 22]]},
        schema_overrides={"landmarks": pl.List(pl.Int64)},
    )
    assert with_truth(images, run.labels)["truth"].to_list() == [[2, 0], [], [1]]


def test_a_second_evaluation_answers_nothing_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(run.folder).record
    monkeypatch.setattr(Recogniser, "answer", None)
    second = evaluate(run.folder).record
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_killed_evaluation_goes_on_where_it_was(
    run: Run, test_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(run.folder, data=test_data.folder, batch_size=8)
    path = run.folder / "predictions" / "elsewhere.parquet"
    whole = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(predictions_file, "CHUNK", 16)
    answered: list[int] = []
    answer = Recogniser.answer

    def dies_at_the_third_chunk(self: Recogniser, images: torch.Tensor, *rest: object) -> object:
        if sum(answered) >= 32 and not path.with_name("again").exists():
            raise KeyboardInterrupt
        answered.append(len(images))
        return answer(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Recogniser, "answer", dies_at_the_third_chunk)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run.folder, data=test_data.folder, batch_size=8)
    assert not path.exists()
    path.with_name("again").touch()
    evaluate(run.folder, data=test_data.folder, batch_size=8)
    assert sum(answered) == 60
    assert read_predictions(path).equals(pl.read_parquet(whole))
    assert not path.with_name(".elsewhere.chunks").exists()


def test_the_predictions_say_what_they_were_made_of(run: Run, own_data: Dataset) -> None:
    evaluate(run.folder)
    path = run.folder / "predictions" / "test.parquet"
    metadata = read_metadata(path)
    assert (metadata["run"], metadata["split"], metadata["data_digest"]) == ("run", "test", own_data.digest)
    assert list(pl.read_parquet(path).columns)[: len(PREDICTIONS)] == list(PREDICTIONS)


def test_of_damaged_predictions_is_told_how_to_get_others(run: Run) -> None:
    evaluate(run.folder)
    (run.folder / "predictions" / "test.parquet").write_text("junk")
    with pytest.raises(LandmarksError, match=r"test\.parquet cannot be read .*; delete it and evaluate again"):
        evaluate(run.folder)
    with pytest.raises(LandmarksError, match=r"test\.parquet cannot be read"):
        run.predictions("test")


def test_a_run_in_use_is_left_alone(run: Run) -> None:
    with held(run.folder), pytest.raises(BusyError):
        evaluate(run.folder)
    assert not (run.folder / "predictions").exists()


def test_a_threshold_is_chosen_on_public_and_stored_with_the_model(run: Run, test_data: Dataset) -> None:
    numbers = evaluate(run.folder, data=test_data.folder, false_acceptance=0.25).record
    stored = read_record(run.folder / "model.json")["rejection"]
    assert stored == numbers["threshold"]
    assert (stored["chosen_on"], stored["reported_on"], stored["false_acceptance"]) == ("Public", "Private", 0.25)


def test_the_unknown_images_that_a_threshold_is_chosen_on_are_remembered_and_no_others(
    run: Run, test_data: Dataset
) -> None:
    before = evaluate(run.folder, data=test_data.folder).record
    assert not {row["score"] for row in before["rejection"]} & {"knn_unknown", "contrast"}
    numbers = evaluate(run.folder, data=test_data.folder, false_acceptance=0.25).record
    assert {row["score"] for row in numbers["rejection"]} >= {"knn_unknown", "contrast"}
    gallery = open_gallery(run)
    assert gallery is not None and gallery.unknown is not None
    table = read_predictions(next((run.folder / "predictions").glob("*.parquet")))
    public = table.filter((pl.col("usage") == "Public") & (pl.col("truth").list.len() == 0))["image_id"].to_list()
    assert [key.split()[1] for key in gallery.unknown.keys] == public
    places = gallery.unknown.places_of(gallery.unknown.keys)
    assert places.tolist() == list(range(len(public)))
    recogniser = landmarks.load(run.folder)
    assert recogniser.gallery is not None and recogniser.gallery.digest == gallery.digest
    rule = KnownRule("against", {"contrast": 1.0})
    forgetful = replace(recogniser, rule=rule, gallery=replace(gallery, unknown=None))
    with pytest.raises(StaleError, match="not the images that it compares with"):
        forgetful.recognise(image(11, 1))
    assert replace(recogniser, rule=rule).recognise(image(11, 1)).known is not None


def test_a_folder_of_other_images_serves_as_unknown(run: Run, tmp_path: Path) -> None:
    others = make_dataset(tmp_path / "street", [[]] * 40, first=500)
    images = others.images.with_columns(id="other" + pl.col("image_id")).sort("image_id")
    images.write_parquet(others.folder / "images.parquet")
    numbers = evaluate(run.folder, unknown=others.folder, false_acceptance=0.2).record
    assert (numbers["known"], numbers["unknown"]) == (6, 40)
    assert numbers["threshold"]["chosen_on"] == "one half of the groups"
    assert len(read_predictions(run.folder / "predictions" / "test.parquet")) == 6
    assert len(read_predictions(run.folder / "predictions" / "street.parquet")) == 40


def test_another_dataset_called_test_does_not_replace_the_runs_own_test_part(run: Run, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "test", [[11], [22]], first=500)
    assert evaluate(run.folder).record["name"] == "test"
    numbers = evaluate(run.folder, data=other.folder).record
    assert (numbers["name"], numbers["known"]) == ("data-test", 2)
    assert read_record(run.folder / "metrics" / "test.json")["known"] == 6


def test_a_dataset_that_went_away_still_allows_another_to_be_evaluated(
    run: Run, own_data: Dataset, test_data: Dataset
) -> None:
    own_data.folder.rename(own_data.folder.with_name("gone"))
    numbers = evaluate(run.folder, data=test_data.folder).record
    assert numbers["temperature"] == 1.0
    assert {row["score"] for row in numbers["rejection"]} == {"msp", "energy"}


def test_images_that_are_gone_are_told_before_the_gallery_is_made(
    run: Run, own_data: Dataset, test_data: Dataset, tmp_path: Path
) -> None:
    shutil.rmtree(test_data.folder / "shards")
    with pytest.raises(LandmarksError, match=r"evaluate reads the images of .*received 1 of 1 shard missing, such as"):
        evaluate(run, data=test_data)
    assert not (run.folder / "gallery").exists()
    with pytest.raises(LandmarksError, match=r"evaluate --references reads the images of .*received 1 of 1 shard"):
        evaluate(run, references=test_data)
    assert not (run.folder / "predictions").exists()


def test_a_run_whose_own_images_are_gone_is_evaluated_on_others_with_a_note(
    run: Run, own_data: Dataset, test_data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(own_data.folder / "shards")
    evaluate(run, data=test_data)
    told = capsys.readouterr().err
    assert "the validation images are not there any more, such as " in told
    assert f"the training images of {run.name} are not there any more, such as " in told


def test_unknown_images_that_are_all_judged_already_are_told_before_any_is_answered(
    run: Run, test_data: Dataset
) -> None:
    with pytest.raises(LandmarksError, match=r"every image of .* is judged already; name images of other things"):
        evaluate(run, data=test_data, unknown=test_data)
    assert not (run.folder / "predictions").exists()


def test_a_misspelt_split_is_told_of_a_dataset_without_splits_too(run: Run, test_data: Dataset) -> None:
    with pytest.raises(UsageError, match='no split "tets"; expected one of train, val, test, all; did you mean "test"'):
        evaluate(run, data=test_data, split="tets")


def test_of_equal_scores_the_smaller_label_is_the_better() -> None:
    probabilities = np.array([[0.1, 0.2, 0.2, 0.2, 0.1, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], dtype=np.float32)
    labels, scores = best_answers(probabilities, 3)
    assert labels.tolist() == [[1, 2, 3], [5, 0, 1]]
    assert scores.tolist() == probabilities[[[0], [1]], labels].tolist()


def test_best_answers_agree_with_a_stable_sort() -> None:
    random = np.random.default_rng(0)
    probabilities = random.integers(0, 6, size=(200, 9)).astype(np.float32) / 6
    labels, _ = best_answers(probabilities, 5)
    assert (labels == np.argsort(-probabilities, axis=1, kind="stable")[:, :5]).all()


def test_what_is_needed_last_is_looked_at_first(run: Run, tmp_path: Path) -> None:
    nowhere, table = tmp_path / "nowhere", tmp_path / "a.csv"
    for rate in (0.0, 1.0, -0.1, 5, float("nan")):
        with pytest.raises(UsageError, match="no such false-acceptance rate"):
            evaluate(run.folder, false_acceptance=rate)
    with pytest.raises(UsageError, match=r"two tables cannot be one file; received .*a\.csv twice"):
        evaluate(run.folder, submission=table, wrong=tmp_path / "." / "a.csv")
    (tmp_path / "train.csv").write_text("id,url,landmark_id\n")
    for wanted in ("submission", "wrong"):
        with pytest.raises(UsageError, match=r"train\.csv is there already and is another table"):
            evaluate(run.folder, **{wanted: tmp_path / "train.csv"})  # type: ignore[arg-type]
    for named in ({"unknown": nowhere}, {"references": nowhere}):
        with pytest.raises(LandmarksError, match="there is no folder"):
            evaluate(run.folder, **named)  # type: ignore[arg-type]
    assert not (run.folder / "predictions").exists() and not table.exists()
