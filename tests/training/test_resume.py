"""Killed at any step and run again, a training ends in the same weights, bit for bit."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from landmarks.dataset.manifest import Dataset
from landmarks.training import finetune
from landmarks.training.checkpoint import FILE as CHECKPOINT
from landmarks.training.recipe import Recipe, recipe_named
from landmarks.training.run import Run
from landmarks.training.train import train

STEPS = 4
"""Steps of an epoch: the 48 training images of `stripes`, twelve at a time."""


@pytest.fixture(scope="module")
def recipe(small_weights: Path) -> Recipe:
    return recipe_named(
        "default",
        backbone="test_resnet",
        weights=small_weights,
        image_size=32,
        epochs=2,
        batch_size=12,
        head_epochs=3,
        head_learning_rate=1e-6,  # so poor that the weights which are kept are fine-tuned ones
        tracking="none",
        workers=2,
        device="cpu",
    )


@pytest.fixture(scope="module")
def whole(stripes: Dataset, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The training that is never killed."""
    run = train(stripes.folder, tmp_path_factory.mktemp("runs") / "whole", recipe=recipe)
    assert run.record["best"]["phase"] == "finetune"
    return run


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def train_with_kills(data: Path, out: Path, recipe: Recipe, kills: list[int], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train, dying before the k-th step of each life for k in `kills`, with a checkpoint after every second step."""
    original = finetune.accumulate_gradients
    for kill in [*kills, 10**9]:
        steps = iter(range(1, 10**6))

        def mortal(*arguments: object, kill: int = kill, steps: object = steps) -> object:
            if next(steps) == kill:  # type: ignore[call-overload]
                raise Killed
            return original(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(finetune, "accumulate_gradients", mortal)
        try:
            return train(data, out, recipe=recipe)
        except Killed:
            continue
    raise AssertionError


def comparable(run: Run) -> object:
    return run.history.drop("seconds").rows(), run.record["best"]


def test_killed_at_random_steps_it_ends_in_the_same_weights(
    stripes: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipe, epochs=3, micro_batch=7)
    whole = train(stripes.folder, tmp_path / "whole", recipe=recipe)
    assert whole.record["best"]["phase"] == "finetune"
    monkeypatch.setattr(finetune, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)  # however coarse the clock is
    kills = np.random.default_rng(0).integers(1, 6, 5).tolist()
    broken = train_with_kills(stripes.folder, tmp_path / "broken", recipe, kills, monkeypatch)
    assert broken.digest == whole.digest
    assert comparable(broken) == comparable(whole)


def test_killed_without_checkpoints_between_epochs_it_repeats_the_epoch(
    whole: Run, stripes: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "SECONDS_BETWEEN_CHECKPOINTS", math.inf)
    broken = train_with_kills(stripes.folder, tmp_path / "broken", recipe, [3, 6], monkeypatch)
    assert broken.digest == whole.digest


def test_another_recipe_does_not_go_on_with_a_begun_training(
    stripes: Dataset, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(finetune, "accumulate_gradients", die)
        train(stripes.folder, tmp_path / "run", recipe=small_recipe)
    with pytest.raises(Exception, match="holds another training; received seed 4; expected seed 0"):
        train(stripes.folder, tmp_path / "run", recipe=replace(small_recipe, seed=4))


def test_an_interruption_keeps_every_step_that_was_taken(
    whole: Run, stripes: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "SECONDS_BETWEEN_CHECKPOINTS", math.inf)
    original, calls = finetune.accumulate_gradients, iter(range(1, 100))

    def in_step_three(*arguments: Any) -> Any:
        if next(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line has it
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(finetune, "accumulate_gradients", in_step_three)
            train(stripes.folder, tmp_path / "broken", recipe=recipe)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert kept(tmp_path / "broken") == (0, 3)
    assert train(stripes.folder, tmp_path / "broken", recipe=recipe).digest == whole.digest


def test_an_interruption_during_validation_keeps_the_epoch(
    whole: Run, stripes: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "validate", interrupted)
        train(stripes.folder, tmp_path / "broken", recipe=recipe)
    assert kept(tmp_path / "broken") == (0, STEPS)
    assert train(stripes.folder, tmp_path / "broken", recipe=recipe).digest == whole.digest


def dying(function: Callable[..., Any], *, at: Callable[..., bool], after: bool) -> Callable[..., Any]:
    """Return `function`, but that the first call for whose arguments `at` holds ends in a kill, before or after it."""
    dead = False

    def mortal(*arguments: Any, **named: Any) -> Any:
        nonlocal dead
        now = not dead and at(*arguments, **named)
        dead = dead or now
        if now and not after:
            raise Killed
        result = function(*arguments, **named)
        if now:
            raise Killed
        return result

    return mortal


def kept(out: Path) -> tuple[int, int]:
    """Return the epochs and steps that the checkpoint in `out` has behind it."""
    with safe_open(out / "checkpoint" / CHECKPOINT, framework="np") as file:
        state = json.loads(file.metadata()["state"])
    return state["epoch"], state["step"]


def call(number: int) -> Callable[..., bool]:
    """Hold for the call of that number, from 1."""
    calls = iter(range(1, 10**6))
    return lambda *_, **__: next(calls) == number


def of_last_step(*arguments: Any) -> bool:
    """Hold for the checkpoint of an epoch's last step."""
    state = arguments[-1]
    return bool(state.step == (state.epoch + 1) * STEPS)


@dataclass(frozen=True)
class Instant:
    """A kill around a call, and the epochs and steps that the checkpoint has behind it then."""

    of: str  # module and name of the function
    when: Callable[[], Callable[..., bool]]
    after: bool
    kept: tuple[int, int]


FINETUNE, TRAIN = "landmarks.training.finetune", "landmarks.training.train"

INSTANTS = {
    "after the first checkpoint": Instant(f"{FINETUNE}.save_checkpoint", lambda: call(1), True, (0, 0)),
    "before the first validation": Instant(f"{FINETUNE}.validate", lambda: call(1), False, (0, 4)),
    "after the last validation": Instant(f"{FINETUNE}.validate", lambda: call(2), True, (1, 8)),
    "before an epoch's last checkpoint": Instant(f"{FINETUNE}.save_checkpoint", lambda: of_last_step, False, (0, 3)),
    "after an epoch's last checkpoint": Instant(f"{FINETUNE}.save_checkpoint", lambda: of_last_step, True, (0, 4)),
    "before an epoch ends": Instant(f"{FINETUNE}.finish_epoch", lambda: call(1), False, (0, 4)),
    "before the end of an epoch is kept": Instant(f"{FINETUNE}.epoch_line", lambda: call(1), True, (0, 4)),
    "before the record is made": Instant(f"{TRAIN}.run_record", lambda: call(1), False, (2, 8)),
}


@pytest.mark.parametrize("instant", INSTANTS)
def test_killed_around_what_is_kept_of_an_epoch_it_ends_in_the_same_weights(
    instant: str, *, whole: Run, stripes: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = INSTANTS[instant]
    module, _, name = kill.of.rpartition(".")
    place = sys.modules[module]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(finetune, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
        patch.setattr(place, name, dying(getattr(place, name), at=kill.when(), after=kill.after))
        train(stripes.folder, tmp_path / "run", recipe=recipe)
    assert kept(tmp_path / "run") == kill.kept
    broken = train(stripes.folder, tmp_path / "run", recipe=recipe)
    assert broken.digest == whole.digest
    assert comparable(broken) == comparable(whole)


RUN_FILES = ("labels.parquet", "images.parquet", "history.parquet", "model.safetensors", "model.json", "run.json")


@pytest.mark.parametrize("file", RUN_FILES)
def test_killed_after_any_of_the_run_s_files_it_ends_in_the_same_run(
    file: str, *, whole: Run, stripes: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        appears = dying(Path.replace, at=lambda aside, target: Path(target) == out / file, after=True)
        patch.setattr(Path, "replace", appears)
        train(stripes.folder, out, recipe=recipe)
    assert (out / "run.json").exists() == (file == "run.json")
    monkeypatch.setattr(finetune, "accumulate_gradients", None)  # no step is taken again
    again = train(stripes.folder, out, recipe=recipe)
    assert again.digest == whole.digest
    assert comparable(again) == comparable(whole)
    assert not (out / "checkpoint").exists()


def test_a_checkpoint_that_a_kill_left_half_written_is_cleared(
    stripes: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(finetune, "validate", dying(finetune.validate, at=call(1), after=False))
        train(stripes.folder, out, recipe=recipe)
    half = out / "checkpoint" / f".{CHECKPOINT}.0123abcd.part"  # what SIGKILL leaves, which no `finally` sees
    half.write_bytes(b"half")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(finetune, "load_checkpoint", dying(finetune.load_checkpoint, at=call(1), after=False))
        train(stripes.folder, out, recipe=recipe)
    assert not half.exists()


def test_killed_when_the_time_was_up_it_takes_no_step_more(
    stripes: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(10**6))
    monkeypatch.setattr(finetune, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))  # a second a look
    monkeypatch.setattr(finetune, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    limited = replace(recipe, epochs=50, time_limit=0.1)  # four steps, a validation, one step
    whole = train(stripes.folder, tmp_path / "whole", recipe=limited)
    assert whole.history["step"].to_list()[-2:] == [4, 5]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kept = dying(finetune.save_checkpoint, at=lambda *arguments: arguments[-1].step == 5, after=True)
        patch.setattr(finetune, "save_checkpoint", kept)
        train(stripes.folder, tmp_path / "run", recipe=limited)
    broken = train(stripes.folder, tmp_path / "run", recipe=limited)
    assert broken.digest == whole.digest
    assert comparable(broken) == comparable(whole)
    assert broken.record["ended"] == whole.record["ended"] == "the time limit of 0.1 minutes was reached in epoch 2"


@pytest.mark.slow
def test_killed_around_the_appearance_of_any_file_it_ends_in_the_same_weights(
    whole: Run, stripes: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    appeared: list[str] = []
    fresh = shutil.ignore_patterns("features")
    data = shutil.copytree(stripes.folder, tmp_path / "data", ignore=fresh)
    with monkeypatch.context() as patch:
        listed = dying(Path.replace, at=lambda aside, target: bool(appeared.append(Path(target).name)), after=False)
        patch.setattr(Path, "replace", listed)
        train(data, tmp_path / "listed", recipe=recipe)
    assert appeared.count(CHECKPOINT) == 1 + 2 * (STEPS + 1)
    assert {*RUN_FILES, "features.npy", "features.json"} <= set(appeared)
    for number in range(1, len(appeared) + 1):
        for after in (False, True):
            out = tmp_path / f"run-{number}-{after}"
            data = shutil.copytree(stripes.folder, tmp_path / f"data-{number}-{after}", ignore=fresh)
            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr(Path, "replace", dying(Path.replace, at=call(number), after=after))
                train(data, out, recipe=recipe)
            broken = train(data, out, recipe=recipe)
            assert broken.digest == whole.digest, (number, appeared[number - 1], after)
            assert comparable(broken) == comparable(whole)


PROGRAM = """
import os, signal, sys
from landmarks.training import finetune
from landmarks.training.train import train
kill, data, out, weights = int(sys.argv[1]), *sys.argv[2:]
finetune.SECONDS_BETWEEN_CHECKPOINTS = -1.0
original, steps = finetune.accumulate_gradients, iter(range(1, 10**6))
def mortal(*arguments):
    if next(steps) == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
finetune.accumulate_gradients = mortal
train(data, out, backbone="test_resnet", weights=weights, image_size=32, epochs=3, batch_size=12, head_epochs=3,
      head_learning_rate=1e-6, tracking="none")
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


INSTANT_PROGRAM = """
import os, pathlib, shutil, signal, sys
from landmarks.training import finetune, processes
from landmarks.training.train import train
instant, data, out, weights = sys.argv[1:]
finetune.SECONDS_BETWEEN_CHECKPOINTS = -1.0
steps = 4
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def die_after(function, when=lambda *_, **__: True):
    def mortal(*arguments, **named):
        result = function(*arguments, **named)
        if when(*arguments, **named):
            die()
        return result
    return mortal
def half_written(aside, target):
    if pathlib.Path(target).name == instant:
        die()
    return replaced(aside, target)
replaced = pathlib.Path.replace
if instant == "within validation":
    processes.compute_in_parts = die
elif instant == "after the last step's checkpoint":
    finetune.save_checkpoint = die_after(
        finetune.save_checkpoint, lambda *given: given[-1].step == (given[-1].epoch + 1) * steps
    )
elif instant == "before the epoch is kept":
    finetune.epoch_line = die
elif instant == "while the checkpoint is deleted":
    shutil.rmtree = die_after(lambda folder, **_: (pathlib.Path(folder) / "state.safetensors").unlink())
elif instant != "never":
    pathlib.Path.replace = half_written
train(data, out, backbone="test_resnet", weights=weights, image_size=32, epochs=3, batch_size=12, head_epochs=3,
      head_learning_rate=1e-6, tracking="none")
"""


@pytest.mark.slow
def test_real_kills_around_the_end_of_epochs_and_of_the_training_change_no_bit(
    stripes: Dataset, small_weights: Path, tmp_path: Path
) -> None:
    def life(instant: str, out: Path) -> int:
        command = [sys.executable, "-c", INSTANT_PROGRAM, instant, str(stripes.folder), str(out), str(small_weights)]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode

    assert life("never", tmp_path / "whole") == 0
    out = tmp_path / "killed"
    around = ["within validation", "after the last step's checkpoint", "before the epoch is kept"]
    for instant in ["started.json", CHECKPOINT, *around, *around, *RUN_FILES, "while the checkpoint is deleted"]:
        assert life(instant, out) == -signal.SIGKILL, instant
    assert life("never", out) == 0
    whole, broken = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "whole", out))
    assert whole == broken
    assert not (out / "checkpoint").exists()
    assert not list(out.glob(".*.part"))
