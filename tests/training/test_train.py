"""From a dataset to a run, and the errors a clumsy user meets."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from striped import SMALL, make_dataset

from landmarks.cli.main import run as landmarks
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.recognition.recogniser import load
from landmarks.support.errors import BusyError, LandmarksError, UsageError
from landmarks.support.files import held
from landmarks.support.tables import write_table
from landmarks.training import finetune as finetuning
from landmarks.training.finetune import Training, learning_rate_factor
from landmarks.training.loader import batches, normalised
from landmarks.training.machine import Machine
from landmarks.training.recipe import Recipe
from landmarks.training.run import HISTORY, Run, open_run
from landmarks.training.train import train


@pytest.fixture(scope="module")
def scratch(stripes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "scratch"
    return train(stripes.folder, out, backbone="baseline", image_size=32, epochs=4, batch_size=12, tracking="none")


@pytest.fixture(scope="module")
def warm(stripes: Dataset, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "warm"
    return train(
        stripes.folder,
        out,
        backbone=SMALL,
        weights=small_weights,
        image_size=32,
        epochs=2,
        head_views=2,
        head="linear",
    )


@pytest.fixture(scope="module")
def plain(stripes: Dataset, small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing happened to."""
    return train(stripes.folder, tmp_path_factory.mktemp("runs") / "plain", recipe=small_recipe)


def test_a_run_may_average_each_image_with_its_flip(
    stripes: Dataset, small_recipe: Recipe, plain: Run, tmp_path: Path
) -> None:
    run = train(stripes.folder, tmp_path / "run", recipe=small_recipe, average_flip=True)
    assert run.record["recipe"]["average_flip"] is True and run.network().preprocessing.average_flip
    assert run.record["head"] != plain.record["head"]  # its features are not those that are cached for the other
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    own, flipped = (load(run).embed([view]) for view in (pixels, np.ascontiguousarray(pixels[:, ::-1])))
    assert np.linalg.norm(own - flipped) < 0.01 * np.linalg.norm(own)  # resizing rounds from left to right


def test_a_finished_run_from_before_a_setting_existed_went_by_its_default(
    stripes: Dataset, small_recipe: Recipe, plain: Run, tmp_path: Path
) -> None:
    earlier = shutil.copytree(plain.folder, tmp_path / "earlier")
    record = json.loads((earlier / "run.json").read_text())
    del record["identity"]["average_flip"]
    (earlier / "run.json").write_text(json.dumps(record))
    assert train(stripes.folder, earlier, recipe=small_recipe).record["best"] == plain.record["best"]
    with pytest.raises(LandmarksError, match="average_flip True; expected average_flip False"):
        train(stripes.folder, earlier, recipe=small_recipe, average_flip=True)


def test_a_network_from_scratch_learns_the_stripes(scratch: Run) -> None:
    assert scratch.record["best"]["val_accuracy"] >= 0.9
    assert set(scratch.history["phase"]) == {"finetune"}


def test_the_saved_network_answers_as_the_record_says(scratch: Run, stripes: Dataset) -> None:
    network, val = scratch.network(), stripes.split("val")
    batch = next(iter(batches(stripes, val, network.preprocessing, batch_size=len(val))))
    with torch.no_grad():
        answers = network(normalised(batch.pixels, network.preprocessing)).argmax(1)
    accuracy = float((answers == batch.labels).float().mean())
    assert accuracy == pytest.approx(scratch.record["best"]["val_accuracy"], abs=0.06)  # bfloat16 may turn one of 18


def test_a_run_holds_everything_later_verbs_read(warm: Run) -> None:
    assert warm.history.schema == HISTORY
    assert warm.history["phase"].unique(maintain_order=True).to_list() == ["head", "finetune"]
    assert warm.name_of([2, 0]) == ["landmark 2", "landmark 0"]
    record = warm.record
    assert {"recipe", "data", "network", "machine", "versions", "choices", "seconds", "head", "best"} <= set(record)
    assert record["data"]["images"] == {"train": 48, "val": 18, "test": 6}
    assert record["network"]["head"] == "linear"
    assert 0 <= record["head"]["probe"]["val_accuracy"] <= 1
    assert all(choice["why"] for choice in record["choices"])
    assert record["peak_memory_mb"] > 0
    assert not (warm.folder / "checkpoint").exists()
    assert (warm.folder / "tensorboard").is_dir()


def test_the_start_says_why_and_the_end_says_what_next(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, epochs=0))
    stderr = capsys.readouterr().err
    for words in ("device: cpu", "precision:", "a linear probe", "95 % interval", "next: landmarks evaluate"):
        assert words in stderr


def without_images(stripes: Dataset, folder: Path) -> Path:
    """Copy the dataset with its cached features, but without the shards: they lie on a disk that is not mounted."""
    data = folder / "data"
    shutil.copytree(stripes.folder, data)
    shutil.rmtree(data / "shards")
    return data


def test_images_that_are_gone_are_told_before_the_head_is_trained_on_cached_features(
    stripes: Dataset, small_recipe: Recipe, plain: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = without_images(stripes, tmp_path)
    assert any((data / "features").iterdir()), f"{plain} has cached them"
    with pytest.raises(LandmarksError) as raised:
        train(data, tmp_path / "run", recipe=small_recipe)
    assert str(raised.value) == (
        f"fine-tuning reads the images of {data}, which are not there; received 2 of 2 shards missing, such as"
        f" {data / 'shards' / 'a.tar'}; put them back (is their disk mounted?), or make the dataset again;"
        " --epochs 0 trains the head alone, on features that are cached"
    )
    assert "head training" not in capsys.readouterr().err


def test_without_fine_tuning_cached_features_are_enough(
    stripes: Dataset, small_recipe: Recipe, plain: Run, tmp_path: Path
) -> None:
    run = train(without_images(stripes, tmp_path), tmp_path / "run", recipe=replace(small_recipe, epochs=0))
    assert run.record["best"]["phase"] == "head"


def test_a_single_epoch_is_told_as_one(stripes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(stripes.folder, tmp_path / "run", backbone="baseline", image_size=32, epochs=1, tracking="none")
    assert "its only epoch); " in capsys.readouterr().err


def test_a_network_that_the_last_steps_ruined_is_no_run(
    stripes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("landmarks.training.finetune.validate", lambda *_, **__: (0.9, math.nan))
    with pytest.raises(LandmarksError, match="training broke down in epoch 1; received a validation loss of nan"):
        train(stripes.folder, tmp_path / "run", backbone="baseline", image_size=32, epochs=1, tracking="none")
    assert not (tmp_path / "run" / "run.json").exists()


def test_epochs_zero_keeps_the_warm_up(stripes: Dataset, small_recipe: Recipe, tmp_path: Path) -> None:
    run = train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, epochs=0))
    assert run.record["best"]["phase"] == "head"
    assert run.record["best"]["val_accuracy"] == run.record["head"]["val_accuracy"]
    seconds = run.record["seconds"]
    assert seconds["head"] > 0
    assert seconds["total"] == pytest.approx(seconds["features"] + seconds["head"] + seconds["finetune"])


def test_a_finished_run_is_returned_and_nothing_is_done_again(
    scratch: Run, stripes: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in scratch.folder.rglob("*") if path.name != ".lock"}
    again = train(
        stripes.folder, scratch.folder, backbone="baseline", image_size=32, epochs=4, batch_size=12, tracking="none"
    )
    assert again.record == scratch.record
    assert before == {path: path.stat().st_mtime_ns for path in scratch.folder.rglob("*") if path.name != ".lock"}
    assert "trained already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_finished_run_whose_network_is_gone_is_not_called_trained(
    name: str, scratch: Run, stripes: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(scratch.folder, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(LandmarksError, match=f"there is no {name} in .*; take the run's folder anew"):
        train(
            stripes.folder, tmp_path / "run", backbone="baseline", image_size=32, epochs=4, batch_size=12,
            tracking="none",
        )  # fmt: skip


def test_landmarks_without_validation_images_and_a_batch_of_all_images_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data", landmarks=3, train=4, val=2, test=0)
    assert data.splits is not None
    moved = pl.when(pl.col("image_id").str.starts_with("00000002")).then(pl.lit("train")).otherwise("split")
    write_table(data.folder / "splits.parquet", data.splits.with_columns(split=moved))
    train(
        data.folder, tmp_path / "run", backbone="baseline", image_size=32, epochs=1, batch_size=500, tracking="none"
    )  # fmt: skip
    stderr = capsys.readouterr().err
    assert "1 of 3 landmarks have no validation image: validation says nothing of them" in stderr
    assert "a batch is all 14 images of train; 500 were asked for" in stderr


def test_a_run_folder_of_another_recipe_is_refused(scratch: Run, stripes: Dataset) -> None:
    with pytest.raises(LandmarksError, match=r"holds another training; received epochs 7; expected epochs 4"):
        train(stripes.folder, scratch.folder, backbone="baseline", image_size=32, epochs=7, batch_size=12)


def test_a_run_folder_of_another_dataset_is_refused(scratch: Run, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", landmarks=2, train=2, val=2, test=0)
    with pytest.raises(LandmarksError, match="holds another training; received data whose images, labels or"):
        train(other.folder, scratch.folder, backbone="baseline", image_size=32, epochs=4, batch_size=12)


def test_two_trainings_in_one_folder_are_not_possible(stripes: Dataset, tmp_path: Path) -> None:
    with held(tmp_path / "run"), pytest.raises(BusyError, match="another process"):
        train(stripes.folder, tmp_path / "run", backbone="baseline", image_size=32)


def test_the_best_epoch_is_saved_not_the_last(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter([(0.5, 1.0), (0.9, 0.9), (0.9, 0.5), (0.9, 0.7), (0.2, 0.1)])
    monkeypatch.setattr(finetuning, "validate", lambda *_, **__: next(numbers))
    run = train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, head_epochs=0, epochs=5, patience=9))
    assert run.record["best"] == {"phase": "finetune", "epoch": 3, "val_accuracy": 0.9, "val_loss": 0.5}


def test_without_improvement_it_stops_early(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter([(0.5, 1.0), (0.4, 0.9), (0.4, 0.9)])
    monkeypatch.setattr(finetuning, "validate", lambda *_, **__: next(numbers))
    run = train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, head_epochs=0, epochs=50, patience=2))
    assert len(run.history) == 3
    assert "no better epoch in 2" in run.record["ended"]


def test_the_time_limit_ends_a_training_that_can_be_used(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, original = [0.0], finetuning.accumulate_gradients

    def one_second(*arguments: object) -> object:
        now[0] += 1.0
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(finetuning, "accumulate_gradients", one_second)
    monkeypatch.setattr(finetuning, "time", SimpleNamespace(monotonic=lambda: now[0]))
    recipe = replace(small_recipe, epochs=10_000, patience=10_000, time_limit=0.3)
    run = train(stripes.folder, tmp_path / "run", recipe=recipe)
    assert "the time limit of 0.3 minutes was reached in epoch 5" in run.record["ended"]
    fine = run.history.filter(pl.col("phase") == "finetune")
    assert fine["step"].to_list() == [4, 8, 12, 16, 18]  # of four steps each, and a second each
    share = learning_rate_factor(17 / 18, recipe.lr_warmup, recipe.min_lr_ratio)  # the cosine ends with the time
    assert fine["learning_rate"][-1] == pytest.approx(recipe.learning_rate * share)


@pytest.mark.parametrize("between", [1, 20])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_no_number_stops_names_the_step_and_harms_nothing(
    what: str,
    between: int,
    *,
    plain: Run,
    stripes: Dataset,
    small_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = finetuning.accumulate_gradients, iter(range(1000))

    def broken(training: Training, *rest: object) -> tuple[torch.Tensor, torch.Tensor, int]:
        loss, correct, micro_batch = original(training, *rest)  # type: ignore[arg-type]
        if next(calls) == 4:
            if what == "loss":
                loss = loss * math.nan
            else:
                next(training.network.parameters()).grad[0] = math.inf  # type: ignore[index]
        return loss, correct, micro_batch

    monkeypatch.setattr(Machine, "steps_between_fetches", between)
    monkeypatch.setattr(finetuning, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "accumulate_gradients", broken)
        received = "loss of nan" if what == "loss" else "gradient of norm (inf|nan)"
        with pytest.raises(LandmarksError, match=rf"step 5 \(epoch 2\); received a.*{received}.*--learning-rate"):
            train(stripes.folder, tmp_path / "run", recipe=small_recipe)
    again = train(stripes.folder, tmp_path / "run", recipe=small_recipe)  # from the last checkpoint, which is sound
    assert again.digest == plain.digest


def test_steps_that_are_looked_at_later_are_the_same_steps(
    plain: Run, stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "steps_between_fetches", 3)
    second = train(stripes.folder, tmp_path / "second", recipe=small_recipe)
    assert second.digest == plain.digest
    assert second.history.drop("seconds").equals(plain.history.drop("seconds"))


def test_frozen_statistics_do_not_move(stripes: Dataset, small_recipe: Recipe, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, freeze_bn=True, epochs=1))
    trained, start = run.network().backbone.state_dict(), load_file(small_recipe.weights)
    statistics = [name for name in start if name.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(torch.equal(trained[name], start[name]) for name in statistics)


# ── Clumsy users ──


def test_a_dataset_that_is_not_divided(stripes: Dataset, tmp_path: Path) -> None:
    shutil.copytree(stripes.folder, tmp_path / "data", ignore=shutil.ignore_patterns("splits.parquet", "features"))
    with pytest.raises(LandmarksError, match="landmarks split"):
        train(tmp_path / "data", tmp_path / "run", backbone="baseline")
    assert not (tmp_path / "run").exists()


def test_a_single_landmark(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", landmarks=1, train=2, val=1, test=0)
    with pytest.raises(LandmarksError, match="received 1 landmark; expected 2 or more"):
        train(dataset.folder, tmp_path / "run", backbone="baseline")


def test_an_empty_validation_part(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", landmarks=2, train=2, val=0, test=1)
    with pytest.raises(LandmarksError, match=r"val split .* --val 0\.5 --keep-test"):
        train(dataset.folder, tmp_path / "run", backbone="baseline")


def test_a_landmark_without_training_images_is_named_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make_dataset(tmp_path / "data", landmarks=3, train=4, val=2, test=0)
    assert dataset.splits is not None
    lost = dataset.splits.filter(~(pl.col("image_id").str.starts_with("00000002") & (pl.col("split") == "train")))
    write_table(dataset.folder / "splits.parquet", lost)
    train(dataset.folder, tmp_path / "run", backbone="baseline", image_size=32, epochs=1, tracking="none")
    assert "1 of 3 landmarks have no image to train on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"backbone": "resnet5O"}, UsageError, 'did you mean "resnet50"'),
        ({"recipe": "studdy"}, UsageError, 'did you mean "study"'),
        ({"backbone": "baseline", "head": "lineal"}, UsageError, 'did you mean "linear"'),
        ({"backbone": SMALL, "weights": "nowhere.safetensors"}, UsageError, "no weights"),
        ({"backbone": "baseline", "weights": "imagenet"}, UsageError, "from scratch"),
        ({"backbone": "baseline", "tracking": "tensorbored"}, UsageError, "tensorbored"),
        ({"backbone": "baseline", "image_size": 0}, UsageError, "image_size"),
    ],
)
def test_wrong_names(settings: dict, error: type[Exception], words: str, stripes: Dataset, tmp_path: Path) -> None:
    with pytest.raises(error, match=words) as caught:
        train(stripes.folder, tmp_path / "run", **settings)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network(stripes: Dataset, small_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="does not fit the network resnet18"):
        train(stripes.folder, tmp_path / "run", backbone="resnet18", weights=small_weights, image_size=32)


def test_a_folder_that_holds_something_else(stripes: Dataset, tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("sea")
    with pytest.raises(LandmarksError, match=r"is not empty and holds no run; received holiday\.txt"):
        train(stripes.folder, tmp_path, backbone="baseline")
    with pytest.raises(LandmarksError, match="is not empty and holds no run"):
        train(stripes.folder, stripes.folder, backbone="baseline")


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="no folder"):
        train(tmp_path / "nothing", tmp_path / "run")


def test_opening_what_is_no_run(stripes: Dataset, tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="landmarks train DATA"):
        open_run(tmp_path / "nothing")
    with pytest.raises(LandmarksError, match="is a dataset, and no run"):
        open_run(stripes.folder)
    (tmp_path / "half" / "checkpoint").mkdir(parents=True)
    with pytest.raises(LandmarksError, match="not trained to its end"):
        open_run(tmp_path / "half")


def test_a_full_disk_is_one_line(
    stripes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_recipe: Recipe
) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("landmarks.training.checkpoint.save_file", full)
    with pytest.raises(LandmarksError, match="No space left on device"):
        train(stripes.folder, tmp_path / "run", recipe=small_recipe)
    assert open_dataset(stripes.folder)


def test_gradient_checkpointing_trains_the_same_and_says_so(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = replace(small_recipe, precision="float32")
    plain = train(stripes.folder, tmp_path / "plain", recipe=recipe)
    short = train(stripes.folder, tmp_path / "short", recipe=replace(recipe, gradient_checkpointing=True))
    losses = [run.history["train_loss"].to_list() for run in (plain, short)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert "gradient checkpointing" in {choice["what"] for choice in short.record["choices"]}


def test_a_cosine_head_is_told_its_centres_and_the_images_of_each_landmark(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = replace(small_recipe, head="arcface", head_settings={"sub_centres": 2, "margin": 0.1}, epochs=1)
    head = train(stripes.folder, tmp_path / "run", recipe=recipe).network().head
    assert head.settings["sub_centres"] == 2
    assert head.margins.tolist() == pytest.approx([0.1] * 3)  # all landmarks have equally many images


def test_a_setting_that_the_head_does_not_have(stripes: Dataset, small_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sub_centres"):
        train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, head_settings={"sub_centres": 2}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_backbone_learns_the_same(stripes: Dataset, small_recipe: Recipe, tmp_path: Path) -> None:
    plain = train(stripes.folder, tmp_path / "plain", recipe=replace(small_recipe, precision="float32"))
    compiled = train(
        stripes.folder, tmp_path / "compiled", recipe=replace(small_recipe, precision="float32", compile=True)
    )
    losses = [run.history["train_loss"].to_list() for run in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-2)


def test_what_a_kill_after_the_last_file_leaves_is_cleared(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path
) -> None:
    run = train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, epochs=0))
    (run.folder / "checkpoint").mkdir()
    train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, epochs=0))
    assert not (run.folder / "checkpoint").exists()


def test_a_run_that_does_not_say_how_it_was_trained_is_another(scratch: Run, stripes: Dataset, tmp_path: Path) -> None:
    shutil.copytree(scratch.folder, tmp_path / "run")
    record = {name: value for name, value in scratch.record.items() if name != "identity"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(LandmarksError, match="holds another training"):
        train(stripes.folder, tmp_path / "run", backbone="baseline", image_size=32, epochs=4, batch_size=12)


# ── The last moments ──


@pytest.mark.parametrize("step", ["run_record", "result_sentence", "write_run"])
def test_a_run_whose_last_steps_fail_does_not_look_finished_and_goes_on_from_there(
    step: str, stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("nobody foresaw this")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(f"landmarks.training.train.{step}", fails)
        train(stripes.folder, tmp_path / "run", recipe=small_recipe)
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(LandmarksError, match="not trained to its end"):
        open_run(tmp_path / "run")
    monkeypatch.setattr(finetuning, "accumulate_gradients", None)  # no step is taken again
    assert train(stripes.folder, tmp_path / "run", recipe=small_recipe).history["step"][-1] == 8


def test_a_checkpoint_that_cannot_be_deleted_does_not_spoil_a_finished_run(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def stuck(path: str, **named: int) -> None:
        if Path(path).name == "state.safetensors":
            raise PermissionError("in use by another program")
        unlink(path, **named)

    recipe = replace(small_recipe, epochs=0)
    with monkeypatch.context() as patch:
        patch.setattr("os.unlink", stuck)
        run = train(stripes.folder, tmp_path / "run", recipe=recipe)
    assert (run.folder / "checkpoint").exists()
    assert open_run(run.folder).record == run.record
    train(stripes.folder, tmp_path / "run", recipe=recipe)
    assert not (run.folder / "checkpoint").exists()


# ── Trainings of nothing, and very short ones ──


@pytest.mark.parametrize(
    "words",
    [
        ["--backbone", SMALL, "--weights", "none", "--epochs", "0"],
        ["--backbone", "baseline", "--epochs", "0"],
        ["--backbone", SMALL, "--weights", "WEIGHTS", "--epochs", "0", "--set", "head_epochs=0"],
    ],
)
def test_a_training_of_nothing_is_refused_before_anything_is_written(
    words: list[str], stripes: Dataset, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(small_weights) if word == "WEIGHTS" else word for word in words]
    assert landmarks(["train", str(stripes.folder), "-o", str(tmp_path / "run"), *words]) == 2
    stderr = capsys.readouterr().err.strip()
    assert "trains nothing" in stderr
    assert "\n" not in stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weights", ["none", "pretrained"])
def test_the_shortest_time_limit_leaves_a_run_of_one_step(
    weights: str, stripes: Dataset, small_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = replace(small_recipe, time_limit=5e-324, head_epochs=0)
    recipe = replace(recipe, weights="none") if weights == "none" else recipe
    run = train(stripes.folder, tmp_path / "run", recipe=recipe)
    assert run.history["step"].to_list() == [1]
    assert run.record["ended"] == "the time limit of 4.94066e-324 minutes was reached in epoch 1"
    assert run.network().classes == 3


# ── Settings, all the way ──


def test_an_explicit_learning_rate_of_the_backbone_stays(stripes: Dataset, small_weights: Path, tmp_path: Path) -> None:
    small = ["--backbone", SMALL, "--weights", str(small_weights), "--image-size", "32", "--epochs", "0"]
    small += ["--set", "head_epochs=1", "--set", "tracking=none"]
    rates = ["--learning-rate", "0.002", "--set", "backbone_learning_rate=0.0001"]
    assert landmarks(["train", str(stripes.folder), "-o", str(tmp_path / "run"), *small, *rates]) == 0
    recipe = open_run(tmp_path / "run").record["recipe"]
    assert (recipe["learning_rate"], recipe["backbone_learning_rate"]) == (0.002, 0.0001)
    alone = train(
        stripes.folder,
        tmp_path / "alone",
        backbone=SMALL,
        weights=small_weights,
        image_size=32,
        epochs=0,
        head_epochs=1,
        tracking="none",
        learning_rate=0.002,
    )
    assert alone.record["recipe"]["backbone_learning_rate"] == pytest.approx(0.0006)  # keeps its ratio


@pytest.mark.parametrize("way", ["command line", "python"])
def test_the_gradient_can_be_left_unclipped(
    way: str, stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def spied(parameters: object, max_norm: float) -> torch.Tensor:
        seen.append(max_norm)
        return clip(parameters, max_norm)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spied)
    if way == "python":
        train(stripes.folder, tmp_path / "run", recipe=small_recipe, max_grad_norm=None, epochs=1, head_epochs=1)
    else:
        words = ["--backbone", "baseline", "--image-size", "32", "--epochs", "1", "--set", "max_grad_norm=null"]
        words += ["--set", "tracking=none"]
        assert landmarks(["train", str(stripes.folder), "-o", str(tmp_path / "run"), *words]) == 0
    assert set(seen) == {math.inf}
    assert open_run(tmp_path / "run").record["recipe"]["max_grad_norm"] is None


def test_the_instant_recipe_takes_no_gradient_step_and_makes_a_run_like_any_other(
    stripes: Dataset, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a gradient was asked for")

    monkeypatch.setattr(torch.autograd, "backward", forbidden)
    options = {"backbone": SMALL, "weights": small_weights, "image_size": 32, "tracking": "none", "device": "cpu"}
    run = train(stripes.folder, tmp_path / "run", recipe="instant", **options)
    assert run.record["best"]["phase"] == "head"
    assert run.record["best"]["val_accuracy"] == run.record["head"]["val_accuracy"] > 1 / 3
    assert {"phases": "head in closed form alone"}.items() <= {
        choice["what"]: choice["value"] for choice in run.record["choices"]
    }.items()
    assert run.history.rows() == train(stripes.folder, tmp_path / "run", recipe="instant", **options).history.rows()
