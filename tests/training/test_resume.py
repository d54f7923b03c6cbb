"""Killed at any step and run again, a training ends in the same weights, bit for bit."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from landmarks.dataset.manifest import Dataset
from landmarks.training import finetune
from landmarks.training.recipe import Recipe
from landmarks.training.run import Run
from landmarks.training.train import train


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def train_with_kills(data: Path, out: Path, recipe: Recipe, kills: list[int], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train, dying before the k-th step of each life for k in `kills`, with a checkpoint after every second step."""
    original = finetune.add_gradients
    for kill in [*kills, 10**9]:
        steps = iter(range(1, 10**6))

        def mortal(*arguments: object, kill: int = kill, steps: object = steps) -> object:
            if next(steps) == kill:  # type: ignore[call-overload]
                raise Killed
            return original(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(finetune, "add_gradients", mortal)
        try:
            return train(data, out, recipe=recipe)
        except Killed:
            continue
    raise AssertionError


def comparable(run: Run) -> object:
    return run.history.drop("seconds").rows(), run.record["best"]


def test_killed_at_random_steps_it_ends_in_the_same_weights(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(small_recipe, epochs=3, micro_batch=7)
    whole = train(stripes.folder, tmp_path / "whole", recipe=recipe)
    monkeypatch.setattr(finetune, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)  # however coarse the clock is
    kills = np.random.default_rng(0).integers(1, 6, 5).tolist()
    broken = train_with_kills(stripes.folder, tmp_path / "broken", recipe, kills, monkeypatch)
    assert broken.digest == whole.digest
    assert comparable(broken) == comparable(whole)


def test_killed_without_checkpoints_between_epochs_it_repeats_the_epoch(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "SECONDS_BETWEEN_CHECKPOINTS", math.inf)
    whole = train(stripes.folder, tmp_path / "whole", recipe=small_recipe)
    broken = train_with_kills(stripes.folder, tmp_path / "broken", small_recipe, [3, 6], monkeypatch)
    assert broken.digest == whole.digest


def test_another_recipe_does_not_go_on_with_a_begun_training(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(finetune, "add_gradients", die)
        train(stripes.folder, tmp_path / "run", recipe=small_recipe)
    with pytest.raises(Exception, match="holds another training; received seed 4; expected seed 0"):
        train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, seed=4))


PROGRAM = """
import os, signal, sys
from landmarks.training import finetune
from landmarks.training.train import train
kill, data, out, weights = int(sys.argv[1]), *sys.argv[2:]
finetune.SECONDS_BETWEEN_CHECKPOINTS = -1.0
original, steps = finetune.add_gradients, iter(range(1, 10**6))
def mortal(*arguments):
    if next(steps) == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
finetune.add_gradients = mortal
train(data, out, backbone="test_resnet", weights=weights, image_size=32, epochs=3, batch_size=12, warmup_epochs=3,
      tracking="none")
"""


@pytest.mark.slow
def test_ten_real_kills_change_no_bit(stripes: Dataset, small_weights: Path, tmp_path: Path) -> None:
    def life(kill: int, out: Path) -> int:
        command = [sys.executable, "-c", PROGRAM, str(kill), str(stripes.folder), str(out), str(small_weights)]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode

    assert life(0, tmp_path / "whole") == 0
    for kill in np.random.default_rng(1).integers(1, 12, 10).tolist():
        out = tmp_path / f"killed-{kill}"
        assert life(kill, out) in (-signal.SIGKILL, 0)
        assert life(0, out) == 0
        whole, broken = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "whole", out))
        assert whole == broken
