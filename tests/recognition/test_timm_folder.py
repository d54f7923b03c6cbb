"""A run as a folder that timm reads: the run's own logits, and a card that says what they are worth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from torch.nn.modules.batchnorm import _BatchNorm

from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.evaluate import evaluate
from landmarks.models.network import build_network, save_network
from landmarks.models.weights import set_epsilon
from landmarks.recognition.export import export
from landmarks.recognition.timm_folder import logits_difference
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.training.run import Run, open_run


def with_network(run: Run, name: str, head: str = "linear", size: int = 32, epsilon: float | None = None) -> Run:
    network = build_network(name, classes=3, weights="none", head=head, image_size=size, seed=1)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.running_var is not None:
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    if epsilon is not None:
        set_epsilon(network.backbone, epsilon)
    save_network(network, run.folder, temperature=1.25)
    return open_run(run.folder)


@pytest.mark.parametrize(
    ("name", "size", "epsilon"),
    [("test_resnet", 32, None), ("test_resnet", 32, 1e-2), ("test_vit", 160, None), ("test_efficientnet", 64, 1e-3)],
)
def test_timm_gives_the_logits_of_the_run(
    name: str, size: int, epsilon: float | None, run: Run, tmp_path: Path
) -> None:
    changed = with_network(run, name, size=size, epsilon=epsilon)
    written = export(changed, tmp_path / "folder", timm=True)
    assert {path.name for path in written.path.iterdir()} >= {"README.md", "config.json", "model.safetensors"}
    assert logits_difference(changed.network(), written.path) < 1e-5
    config = json.loads((written.path / "config.json").read_text(encoding="utf-8"))
    assert config["label_names"] == changed.labels["name"].to_list()
    model = timm.create_model(f"local-dir:{written.path}", pretrained=True)
    preparation = timm.data.resolve_data_config(model=model)
    preprocessing = changed.network().preprocessing
    assert tuple(preparation["input_size"]) == (3, size, size) and preparation["crop_pct"] == preprocessing.crop
    assert (tuple(preparation["mean"]), preparation["interpolation"]) == (
        preprocessing.mean,
        preprocessing.interpolation,
    )


@pytest.mark.parametrize("head", ["mlp", "arcface"])
def test_other_heads_are_refused_by_name(head: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match=f"timm has no place for this network: the head is {head}"):
        export(with_network(run, "test_resnet", head), tmp_path / "folder", timm=True)
    assert not (tmp_path / "folder").exists()


def test_a_run_that_averages_flips_is_refused_as_timm_does_not(run: Run, tmp_path: Path) -> None:
    network = build_network("test_resnet", classes=3, weights="none", head="linear", image_size=32, average_flip=True)
    save_network(network, run.folder)
    with pytest.raises(LandmarksError, match="timm answers an image without its flip"):
        export(open_run(run.folder), tmp_path / "folder", timm=True)


def test_what_timm_has_no_place_for_is_one_line(run: Run, tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="baseline is no network of timm's"):
        export(run, tmp_path / "folder", timm=True)
    with pytest.raises(UsageError, match="-o FOLDER, without --int8"):
        export(run, tmp_path / "run.onnx", timm=True)


def test_a_run_is_not_written_over_by_weights_of_the_same_name(run: Run, tmp_path: Path) -> None:
    changed = with_network(run, "test_resnet")
    weights = (changed.folder / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="is not empty and holds no folder for timm"):
        export(changed, changed.folder, timm=True)
    assert (changed.folder / "model.safetensors").read_bytes() == weights
    export(changed, tmp_path / "folder", timm=True)
    assert export(changed, tmp_path / "folder", timm=True).path == tmp_path / "folder"  # its own is written anew


def test_the_card_has_numbers_with_intervals_and_no_markup_of_strangers(
    run: Run, own_data: Dataset, tmp_path: Path
) -> None:
    changed = with_network(run, "test_resnet")
    numbers = evaluate(changed.folder)
    text = (export(changed, tmp_path / "folder", timm=True).path / "README.md").read_text(encoding="utf-8")
    assert numbers.top1.value is not None and f"| test | 6 | {100 * numbers.top1.value:.1f} %" in text
    assert "Divide the logits by 1.2500" in text and "18 images by 0 authors" in text and "## Limits" in text
    from landmarks.recognition.timm_folder import _plain

    assert _plain("<b>\n| `x` [y](z)") == "\\<b\\> \\| \\`x\\` \\[y\\](z)"


def test_a_folder_that_timm_reads_otherwise_is_not_left(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("landmarks.recognition.timm_folder.logits_difference", lambda *_: 0.5)
    with pytest.raises(LandmarksError, match="timm does not answer like run"):
        export(with_network(run, "test_resnet"), tmp_path / "folder", timm=True)
    assert not (tmp_path / "folder" / "config.json").exists()
