"""One file that answers like its run, or none at all."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from colour_runs import colour_run, striped
from made_up_runs import image, make_dataset
from onnx import numpy_helper

import landmarks
from landmarks.cli.main import run as command
from landmarks.dataset.images import decode
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.compare import compare
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.predictions import read_predictions
from landmarks.models.network import build_network, save_network
from landmarks.models.preprocessing import centre_crop
from landmarks.recognition import export as room
from landmarks.recognition.answers import CONTRAST, KNN, KNN_UNKNOWN
from landmarks.recognition.export import export
from landmarks.recognition.export_graph import joined
from landmarks.recognition.export_verification import EXACT, VerificationImages, require_within, verify
from landmarks.recognition.portable import Outputs
from landmarks.recognition.predict import predict
from landmarks.recognition.quantise import ALL, WEIGHTS
from landmarks.support.errors import DifferentAnswersError, LandmarksError, StaleError, UsageError
from landmarks.support.files import read_record, write_record
from landmarks.training.run import Run, open_run

__all__ = ["colour_run", "striped"]

TOLD = "does not answer like its run and was not written"


@pytest.fixture
def exported(run: Run, tmp_path: Path) -> Path:
    return export(run, tmp_path / "run.onnx", images=6).path


def record_of(path: Path) -> dict[str, Any]:
    return dict(json.loads({one.key: one.value for one in onnx.load(path).metadata_props}["landmarks"]))


def test_images_that_are_gone_are_told_before_anything_is_exported(
    run: Run, own_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "graph_parts", lambda *_, **__: pytest.fail("the work has begun"))
    (own_data.folder / "shards").rename(tmp_path / "elsewhere")
    with pytest.raises(LandmarksError, match=r"the verification of an export reads the images of .*--data DATA verif"):
        export(run, tmp_path / "run.onnx")


@pytest.mark.parametrize("int8", [False, True])
def test_an_export_needs_no_images_of_its_own_if_others_are_named(
    run: Run, own_data: Dataset, tmp_path: Path, int8: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_dataset(tmp_path / "other", [[11], [22], [33], [11]], first=500)
    (own_data.folder / "shards").rename(tmp_path / "elsewhere")
    with contextlib.suppress(DifferentAnswersError):  # on four images and an untrained network
        export(run, tmp_path / "run.onnx", data=other, int8=int8)
    assert ("the images that the run was trained on are gone" in capsys.readouterr().err) == int8


def test_an_export_answers_like_its_run(run: Run, exported: Path) -> None:
    images = [image(11, 1), image(22, 2), decode(image(33, 3))[:, :40], np.zeros((1, 9, 3), np.uint8), b"none"]
    first, second = landmarks.load(run), landmarks.load(exported)
    for wanted, found in zip(first.recognise(images), second.recognise(images), strict=True):
        assert [one.name for one in wanted.answers] == [one.name for one in found.answers]
        assert [one.probability for one in wanted.answers] == pytest.approx(
            [one.probability for one in found.answers], abs=2e-3
        )
        assert wanted.problem == found.problem
    np.testing.assert_allclose(first.embed(images[:4]), second.embed(images[:4]), atol=0.02)
    np.testing.assert_array_equal(first.transform(images[:4]), second.transform(images[:4]))
    assert (second.names, second.landmark_ids) == (first.names, first.landmark_ids)
    assert repr(second) == "Recogniser(baseline, 3 landmarks, export float32)"


def test_answers_that_the_run_hardly_tells_apart_may_be_exchanged_but_no_others(run: Run) -> None:
    recogniser, images = landmarks.load(run, by="classifier"), room._images_to_verify(run, None, 6)
    far = max(
        float(np.diff(np.sort(recogniser.answer([one]).scores[0])[-2:])[0]) for one in squares(recogniser, images)
    )
    recogniser = replace(recogniser, temperature=recogniser.temperature * far / 0.01)  # now about 0.01 apart

    class Exchanging:
        has_maps = False

        def outputs(self, pixels: list[np.ndarray], maps: bool = False) -> Outputs:
            cropped = [centre_crop(one, recogniser.network.preprocessing) for one in pixels]
            features = recogniser.embed(cropped)
            logits = recogniser.trained.classify(torch.from_numpy(features)) / recogniser.temperature
            probabilities = logits.softmax(1).detach().numpy()
            best = np.argsort(-probabilities, axis=1)[:, [1, 0, 2]]
            return Outputs(probabilities, features, probabilities[:, 0], best, None)

    for tie, agreement in ((1e-6, 0), (EXACT.tie, 1)):
        found = verify(Exchanging(), recogniser, images, tie=tie)  # type: ignore[arg-type]
        assert found.agreement == agreement
    require_within(EXACT, found)


def squares(recogniser: landmarks.Recogniser, images: VerificationImages) -> list[np.ndarray]:
    preprocessing = recogniser.network.preprocessing
    return [centre_crop(pixels, preprocessing) for pixels in images.decoded(preprocessing.shorter)]


def test_the_graph_takes_any_number_of_images_of_any_size_and_gives_what_is_promised(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported)
    for count, height, width in [(1, 32, 32), (5, 70, 20), (2, 11, 300)]:
        pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype(np.uint8)
        names = [one.name for one in session.get_outputs()]
        outputs = dict(zip(names, session.run(None, {"image": pixels}), strict=True))
        assert {name: (array.dtype.name, array.shape[:2]) for name, array in outputs.items() if name != "features"} == {
            "probabilities": ("float32", (count, 3)),
            "known_score": ("float32", (count,)),
            "best": ("int64", (count, 3)),
        }
        np.testing.assert_allclose(outputs["probabilities"].sum(1), 1, rtol=1e-5)
        order = np.argsort(-outputs["probabilities"], axis=1, kind="stable")
        np.testing.assert_array_equal(outputs["best"], order)
        np.testing.assert_allclose(outputs["known_score"], outputs["probabilities"].max(1))


def test_the_record_says_what_it_is(run: Run, exported: Path) -> None:
    record = record_of(exported)
    assert [label["landmark_id"] for label in record["labels"]] == run.labels["landmark_id"].to_list()
    assert record["run"]["digest"] == run.digest and record["kind"] == "float32"
    assert record["verification"]["images"] == 6 and record["verification"]["agreement"] == 1
    assert record["credits"]["images"] == 18 and record["decode"]["jpeg_min_side"] >= record["image_size"]
    assert "does not average its last maps" in record["maps"]["note"]


def changed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Have the next export come out with a fault."""

    def wrong(parts: Any) -> onnx.ModelProto:
        model = joined(parts)
        change(model)
        return model

    monkeypatch.setattr(room, "joined", wrong)


def break_a_node(model: onnx.ModelProto) -> None:
    pooling = next(node for node in model.graph.node if node.op_type == "Relu")
    pooling.op_type = "Neg"


def swap_the_normalisation(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if "normalised" in node.output)
    divisor = next(one for one in model.graph.initializer if one.name == last.input[1])
    divisor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(divisor) * np.float32(0.8), divisor.name))


def swap_red_and_blue(model: onnx.ModelProto) -> None:
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    kernel = next(one for one in model.graph.initializer if one.name == first.input[1])
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel)[:, ::-1].copy(), kernel.name))


@pytest.mark.parametrize("change", [break_a_node, swap_the_normalisation, swap_red_and_blue])
def test_a_wrong_export_is_refused_with_both_figures_and_not_written(
    change: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, change)
    with pytest.raises(LandmarksError, match=rf"{TOLD}; received [0-9.]+ % agreement on 6 images, largest difference"):
        export(run, tmp_path / "run.onnx", images=6)
    assert not [path for path in tmp_path.iterdir() if "onnx" in path.name]


@pytest.mark.parametrize("output", ["probabilities", "features", "known_score"])
def test_an_export_that_answers_with_no_number_is_refused(
    output: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if output in node.output)
        node.output[list(node.output).index(output)] = f"{output}.sound"
        model.graph.initializer.append(numpy_helper.from_array(np.float32("nan"), "no_number"))
        model.graph.node.append(onnx.helper.make_node("Add", [f"{output}.sound", "no_number"], [output]))

    changed(monkeypatch, spoil)
    with pytest.raises(LandmarksError, match=r"does not answer as it promised; received [a-z_]+ not finite"):
        export(run, tmp_path / "run.onnx", images=6)
    assert not (tmp_path / "run.onnx").exists()


def test_a_frozen_batch_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def freeze(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    changed(monkeypatch, freeze)
    with pytest.raises(LandmarksError, match="cannot answer 3 images"):
        export(run, tmp_path / "run.onnx", images=6)
    assert not (tmp_path / "run.onnx").exists()


def test_a_network_that_averages_no_maps_says_so_when_asked_for_some(
    colour_run: Run, striped: Dataset, tmp_path: Path
) -> None:
    written = export(colour_run, tmp_path / "run.onnx", data=striped)
    assert not written.maps
    with pytest.raises(LandmarksError, match="draws no heat maps"):
        landmarks.load(written.path).explain(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("head", ["mlp", "linear", "arcface"])
def test_maps_are_those_of_the_run_for_any_number_of_images(run: Run, tmp_path: Path, head: str) -> None:
    network = build_network("test_resnet", classes=3, weights="none", head=head, image_size=64, seed=1)
    save_network(network, run.folder, temperature=1.25)
    written = export(open_run(run.folder), tmp_path / "run.onnx", images=6)
    assert written.maps and written.verification is not None
    assert written.verification.maps_difference is not None and written.verification.maps_difference < 0.01
    pixels = decode(image(22, 2))
    wanted, found = landmarks.load(run.folder).explain(pixels), landmarks.load(written.path).explain(pixels)
    assert [one.name for one in wanted.answers] == [one.name for one in found.answers]
    np.testing.assert_allclose(wanted.maps, found.maps, atol=0.02)
    np.testing.assert_array_equal(wanted.image, found.image)
    assert wanted.method == found.method
    assert len(landmarks.load(written.path).recognise([pixels] * 3)) == 3


def test_an_export_averages_an_image_and_its_flip_as_its_run_does(run: Run, tmp_path: Path) -> None:
    network = build_network(
        "test_resnet", classes=3, weights="none", head="linear", image_size=64, seed=1, average_flip=True
    )
    save_network(network, run.folder, temperature=1.25)
    pixels = decode(image(22, 2))
    for name, kind in (("run", {}), ("small", {"int8": True})):
        written = export(open_run(run.folder), tmp_path / f"{name}.onnx", images=6, **kind)
        assert written.verification is not None and written.verification.agreement == 1
        opened = landmarks.load(written.path)
        own, flipped = opened.embed([pixels]), opened.embed([np.ascontiguousarray(pixels[:, ::-1])])
        assert np.linalg.norm(own - flipped) < 0.02 * np.linalg.norm(own)
    wanted, found = landmarks.load(run.folder).explain(pixels), landmarks.load(tmp_path / "run.onnx").explain(pixels)
    np.testing.assert_allclose(wanted.maps, found.maps, atol=0.02)


def test_eight_bits_say_nearly_the_same_in_less_room(run: Run, tmp_path: Path) -> None:
    network = build_network("test_resnet", classes=3, weights="none", head="linear", image_size=64, seed=1)
    save_network(network, run.folder, temperature=1.0)
    whole = export(open_run(run.folder), tmp_path / "run.onnx", images=4)
    small = export(open_run(run.folder), tmp_path / "small.onnx", images=6, int8=True)
    assert small.kind == "int8" and small.bytes < 0.6 * whole.bytes
    assert small.verification is not None and small.verification.agreement == 1
    record = record_of(small.path)["quantised"]
    assert record["what"] in (ALL, WEIGHTS) and 0 < record["apart"] < 0.1
    images = [image(11, 1), image(22, 2)]
    wanted, found = (landmarks.load(path).embed(images) for path in (whole.path, small.path))
    assert np.linalg.norm(wanted - found) < 0.1 * np.linalg.norm(wanted)


@pytest.mark.slow
def test_half_precision_answers_the_same_in_half_the_room(run: Run, tmp_path: Path) -> None:
    network = build_network("test_resnet", classes=3, weights="none", head="linear", image_size=64, seed=1)
    save_network(network, run.folder, temperature=1.0)
    whole = export(open_run(run.folder), tmp_path / "run.onnx", images=4)
    half = export(open_run(run.folder), tmp_path / "half.onnx", images=4, half=True)
    assert half.kind == "float16" and half.bytes < 0.7 * whole.bytes
    assert half.verification is not None and half.verification.agreement == 1
    with pytest.raises(UsageError, match="eight bits or in half"):
        export(open_run(run.folder), tmp_path / "both.onnx", images=4, half=True, int8=True)


@pytest.mark.slow
def test_the_stored_rule_is_in_the_graph(run: Run, test_data: Dataset, tmp_path: Path) -> None:
    evaluate(run.folder, data=test_data.folder, false_acceptance=0.25)
    gallery_rule = {"rule": {"name": KNN, "weights": {KNN: 1.0}, "constant": 0.0}, "threshold": -1.0}
    with_unknown = {"name": "two", "weights": {KNN_UNKNOWN: 1.0, CONTRAST: 0.1}, "constant": 0.5}
    record = read_record(run.folder / "model.json")
    for rejection in (record["rejection"], gallery_rule, {"rule": with_unknown, "threshold": -1.0}):
        write_record(run.folder / "model.json", {**record, "rejection": rejection}, verb="train")
        written = export(run, tmp_path / "run.onnx", images=6)
        assert written.verification is not None and written.verification.known_agreement == 1
        first, second = landmarks.load(run), landmarks.load(written.path)
        images = [image(11, 1), image(22, 2), image(33, 3)]
        wanted = first.known_scores(first.answer([one.pixels for one in next(first.read(images, 3))]))
        found = second.known_scores(second.answer([one.pixels for one in next(second.read(images, 3))]))
        np.testing.assert_allclose(wanted, found, atol=0.02, rtol=0.02)


def test_an_export_tells_no_place_of_the_machine_it_was_made_on(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    record = read_record(run.folder / "run.json")
    verb, inputs = record.pop("verb"), record.pop("inputs")
    record["network"] = {**(record.get("network") or {}), "weights": str(tmp_path / "start.safetensors")}
    write_record(run.folder / "run.json", record, verb=verb, inputs=inputs)
    other = own_data.folder.rename(tmp_path / "moved")
    left_by_a_kill = tmp_path / ".run.onnx.0123abcd.part"
    left_by_a_kill.touch()
    written = export(open_run(run.folder), tmp_path / "run.onnx", images=4, data=other)
    as_opened = landmarks.load(written.path).network.record  # type: ignore[union-attr]
    text = written.path.read_bytes()
    assert str(tmp_path).encode() not in text and b"start.safetensors" in text and as_opened.names
    assert not left_by_a_kill.exists()


def test_a_learned_landmark_is_in_the_graph(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tower.jpg").write_bytes(image(44, 1))
    landmarks.learn(run.folder, tmp_path / "tower.jpg", name="Tower")
    written = export(open_run(run.folder), tmp_path / "run.onnx", images=6)
    assert written.verification is not None and written.verification.agreement == 1
    first, second = landmarks.load(run.folder), landmarks.load(written.path)
    assert second.names == first.names and "Tower" in second.names
    images = [image(44, 2), image(22, 2), image(33, 3)]
    wanted, found = first.recognise(images), second.recognise(images)
    assert [one.answers[0].name for one in wanted] == [one.answers[0].name for one in found]


def test_evaluate_and_compare_give_the_numbers_of_the_export_itself(
    run: Run, test_data: Dataset, exported: Path
) -> None:
    first = evaluate(run.folder, data=test_data.folder, by="classifier")  # as it answered when it was exported
    second = evaluate(exported, data=test_data.folder)
    assert second.top1.value == first.top1.value and second.known == first.known
    place = exported.with_suffix(".evaluation") / "predictions" / "elsewhere.parquet"
    stored = read_predictions(run.folder / "predictions" / "elsewhere.parquet")
    np.testing.assert_allclose(
        read_predictions(place)["untempered"].to_numpy(), stored["untempered"].to_numpy(), atol=2e-3
    )
    assert compare(run.folder, exported).same_answer == 1


def test_of_all_images_of_its_runs_dataset_an_export_is_judged_on_those_of_test(
    run: Run, own_data: Dataset, exported: Path
) -> None:
    evaluate(exported, data=own_data.folder, split="all")
    answered = read_predictions(exported.with_suffix(".evaluation") / "predictions" / "all.parquet")["image_id"]
    assert set(answered) == set(own_data.split("test")["image_id"])


def test_the_verb_names_the_file_that_an_exports_numbers_are_written_to(
    test_data: Dataset, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["evaluate", str(exported), "--data", str(test_data.folder)]) == 0
    written = capsys.readouterr().out.partition("written to ")[2].split()[0]
    assert Path(written) == exported.with_suffix(".evaluation") / "metrics" / "elsewhere.json"
    assert Path(written).is_file()


def test_predict_takes_an_export_where_it_takes_a_run(run: Run, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(image(22, 2))
    first, second = predict(run.folder, tmp_path / "one.jpg"), predict(exported, tmp_path / "one.jpg")
    assert first.drop("probability").equals(second.drop("probability"))
    assert (first["probability"] - second["probability"]).abs().max() < 2e-3  # type: ignore[operator]


def test_clumsy_calls_are_one_line(
    run: Run, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"ends with \.onnx"):
        export(run, tmp_path / "run")
    with pytest.raises(UsageError, match="--data DATA"):
        evaluate(exported)
    with pytest.raises(UsageError, match="threshold cannot be changed"):
        evaluate(exported, data=tmp_path, false_acceptance=0.1)
    assert command(["export", str(tmp_path / "none"), "-o", str(tmp_path / "x.onnx")]) == 1
    assert "there is no run" in capsys.readouterr().err
    beside = (["--page", "p.html", "-o", "x.onnx"], ["--page", "p.html", "--int8"], ["-o", "x.onnx", "--runtime", "r"])
    for words in (*beside, ["-o", "folder", "--timm", "--half"]):
        assert command(["export", str(run.folder), *words]) == 2
        assert "has no effect with" in capsys.readouterr().err


def test_a_folder_in_the_place_of_an_export_is_told_of_before_the_work(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.onnx").mkdir()
    with pytest.raises(LandmarksError, match="it is a folder"):
        export(run, tmp_path / "there.onnx")
    assert "exporting" not in capsys.readouterr().err


def test_without_the_runs_dataset_any_images_will_do(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", [[77], [88]])
    own_data.folder.rename(tmp_path / "gone")
    with pytest.raises(LandmarksError, match="--data DATA"):
        export(run, tmp_path / "run.onnx")
    found = export(run, tmp_path / "run.onnx", data=other).verification
    assert found is not None and found.images == 2
    assert record_of(tmp_path / "run.onnx")["credits"]["note"].startswith("not known")


def test_an_export_that_is_copied_or_sent_to_a_process_answers_as_it_did(exported: Path) -> None:
    first = landmarks.load(exported)
    for copied in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert copied.recognise(image(22, 2)) == first.recognise(image(22, 2))
    written = pickle.dumps(first)
    model = onnx.load(exported)
    record = {**record_of(exported), "temperature": 2.5}
    model.metadata_props[0].value = json.dumps(record)
    onnx.save(model, exported)
    with pytest.raises(StaleError, match="was replaced by another export"):
        pickle.loads(written)
