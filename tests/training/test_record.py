"""What a run's record says."""

from __future__ import annotations

from pathlib import Path

from landmarks.dataset.manifest import Dataset
from landmarks.models.catalogue import networks
from landmarks.models.network import build_network
from landmarks.training.checkpoint import State
from landmarks.training.machine import Machine
from landmarks.training.recipe import Recipe
from landmarks.training.record import result_sentence, run_record
from landmarks.training.run import Epoch


def test_a_networks_cost_is_the_same_number_in_its_record_and_in_the_table_of_networks(
    stripes: Dataset, small_recipe: Recipe, machine: Machine, tmp_path: Path
) -> None:
    network = build_network("vit_tiny_patch16_224", classes=3, weights="none", image_size=32)
    about = {"recipe": small_recipe, "machine": machine, "state": State(micro_batch=1)}
    record = run_record(network, stripes, choices=[], out=tmp_path / "run", **about)
    table = networks("vit_tiny_patch16_224", classes=3, image_size=32)
    assert record["network"]["gmacs"] == table["gmacs"][0] > 0
    assert "gflops" not in record["network"]


def test_a_training_whose_fine_tuning_was_in_vain_says_so_and_what_to_try() -> None:
    record = {"best": {"phase": "head", "epoch": 9, "val_accuracy": 0.864}, "validated_on": 59, "ended": "all epochs"}
    rows = [
        Epoch(phase, 9, 90, 1.0, 1e-3, 0.5, 0.9, 0.5, accuracy)
        for phase, accuracy in (("head", 0.864), ("finetune", 0.763))
    ]
    sentence = result_sentence(Path("run"), record, rows)
    assert "fine-tuning did no better (76.3 % at best)" in sentence
    assert "--learning-rate" in sentence
    assert "fine-tuning" not in result_sentence(Path("run"), record, rows[:1])
    assert sentence.endswith("next: landmarks evaluate run")
    assert result_sentence(Path("my run"), record).endswith("next: landmarks evaluate 'my run'")
    record["best"] = {"phase": "finetune", "epoch": 1, "val_accuracy": 0.9}
    assert "no better" not in result_sentence(Path("run"), record, rows)
