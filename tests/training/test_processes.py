"""Two processes train as one does, and a training may go on with another number of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from striped import make_dataset

from landmarks.dataset.manifest import Dataset
from landmarks.training.recipe import recipe_named
from landmarks.training.run import Run, open_run

pytestmark = pytest.mark.slow

PROGRAM = """
import os, signal, sys
from landmarks.training import finetune
from landmarks.training.train import train
data, out, weights, kill, epochs, micro_batch = sys.argv[1:]
original, steps = finetune.accumulate_gradients, iter(range(1, 10**6))
def mortal(training, batch, *rest):
    with open(out + f".seen.{training.machine.rank}", "a") as file:
        file.write("\\n".join(batch.ids) + "\\n")
    if next(steps) == int(kill) and training.machine.rank == training.machine.processes - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(training, batch, *rest)
finetune.accumulate_gradients = mortal
train(data, out, backbone="test_resnet", weights=weights, image_size=32, epochs=int(epochs), batch_size=14,
      micro_batch=int(micro_batch), head_epochs=2, precision="float32", device="cpu", tracking="none",
      backbone_learning_rate=1e-4)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def launch(program: Path, data: Dataset, out: Path, weights: Path, **settings: int) -> subprocess.CompletedProcess[str]:
    settings = {"processes": 1, "kill": 0, "epochs": 3, "micro_batch": 14, **settings}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(settings["processes"])]
    numbers = [str(settings[name]) for name in ("kill", "epochs", "micro_batch")]
    command = [sys.executable, *launcher, str(program), str(data.folder), str(out), str(weights), *numbers]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def seen(out: Path) -> list[str]:
    return [line for path in out.parent.glob(f"{out.name}.seen.*") for line in path.read_text().split()]


def losses(run: Run) -> list[float]:
    return run.history.filter(run.history["phase"] == "finetune")["train_loss"].to_list()


def test_two_processes_see_each_image_once_and_learn_what_one_does(
    program: Path, stripes: Dataset, small_weights: Path, tmp_path: Path
) -> None:
    one = launch(program, stripes, tmp_path / "one", small_weights, processes=1, micro_batch=7)
    two = launch(program, stripes, tmp_path / "two", small_weights, processes=2)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    ids = stripes.split("train")["image_id"].to_list()
    assert sorted(seen(tmp_path / "two")) == sorted(ids * 3)  # 48 images do not divide by 14 or by 2 × 7
    first, second = open_run(tmp_path / "one"), open_run(tmp_path / "two")
    assert losses(second) == pytest.approx(losses(first), abs=1e-3)
    assert second.record["machine"]["processes"] == 2
    statistics = [
        {name: tensor for name, tensor in run.network().state_dict().items() if "running" in name}
        for run in (first, second)
    ]
    for name, tensor in statistics[0].items():
        assert (statistics[1][name] - tensor).abs().max() < 0.2 * tensor.abs().max() + 1e-2, name


def test_a_process_that_dies_ends_the_training_which_goes_on_with_one(
    program: Path, stripes: Dataset, small_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed = launch(program, stripes, out, small_weights, processes=2, kill=6)
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr or str(-signal.SIGKILL) in killed.stderr
    again = launch(program, stripes, out, small_weights, processes=1)
    assert again.returncode == 0, again.stderr
    assert "going on from a checkpoint: 1 epoch and" in again.stderr
    assert open_run(out).record["best"]["val_accuracy"] >= 0
    assert recipe_named("default").name == open_run(out).record["recipe"]["name"]


WATCHED = """
import itertools, os, sys, torch
from types import SimpleNamespace
from landmarks.support.files import digest_of
from landmarks.training import finetune
from landmarks.training.train import train
data, out, weights, limit = sys.argv[1:]
validate = finetune.validate
def watched(network, *arguments, machine, **named):
    numbers = [tensor.detach().sum(dtype=torch.float64).item().hex() for tensor in network.parameters()]
    with open(out + f".weights.{machine.rank}", "a") as file:
        file.write(digest_of(numbers) + "\\n")
    return validate(network, *arguments, machine=machine, **named)
finetune.validate = watched
if limit:  # a second for each look at the clock, two in the second process
    ticks = itertools.count(0.0, 1.0 + float(os.environ["RANK"]))
    finetune.time = SimpleNamespace(monotonic=lambda: next(ticks))
train(data, out, backbone="test_resnet", weights=weights, image_size=64, epochs=4, patience=4, batch_size=14,
      head_epochs=2, precision="float32", device="cpu", tracking="none",
      time_limit=float(limit) if limit else None)
"""


def watched(processes: int, data: Dataset, out: Path, weights: Path, limit: str) -> list[list[str]]:
    """Train in so many processes; return a digest of each one's weights after each epoch."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    program = out.with_suffix(".py")
    program.write_text(WATCHED)
    command = [sys.executable, *launcher, str(program), str(data.folder), str(out), str(weights), limit]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return [out.with_name(f"{out.name}.weights.{rank}").read_text().split() for rank in range(processes)]


def test_processes_without_a_image_of_their_own_take_part(small_weights: Path, tmp_path: Path) -> None:
    few = make_dataset(tmp_path / "few", landmarks=2, train=1, val=1, test=0)
    first, *others = watched(3, few, tmp_path / "run", small_weights, "")
    assert len(first) == 4
    assert others == [first, first]
    rows = open_run(tmp_path / "run").history
    assert set(rows["val_accuracy"]) <= {0.0, 0.5, 1.0}  # of two images, each measured once
    assert rows.filter(rows["phase"] == "finetune")["step"].to_list() == [1, 2, 3, 4]


def test_under_a_time_limit_all_processes_keep_the_same_weights(
    stripes: Dataset, small_weights: Path, tmp_path: Path
) -> None:
    first, second = watched(2, stripes, tmp_path / "run", small_weights, "0.2")
    assert len(first) == 3  # four steps and a validation, the same again, and two steps: twelve seconds
    assert first == second
