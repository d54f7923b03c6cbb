"""Trainings of a small cosine head in several processes: torchrun split_training.py DATA WEIGHTS FOLDER SCENARIOS.

Each scenario (JSON) is a training in FOLDER/<its name>: with a split head or a whole one, and with a disturbance in the
last process: killed or interrupted in a step, interrupted in the validation, out of memory, or an overflow of float16.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import PartialState

from landmarks.models import heads
from landmarks.training import finetune, processes, split_head
from landmarks.training.machine import Machine
from landmarks.training.train import train

SETTINGS: dict[str, Any] = {
    "backbone": "test_resnet",
    "image_size": 32,
    "head": "arcface",
    "head_settings": {"sub_centres": 2, "embedding": 24},
    "head_epochs": 2,
    "head_learning_rate": 1e-6,  # so poor that the weights which are kept are fine-tuned ones
    "epochs": 2,
    "batch_size": 5,
    "optimizer": "sgd",  # whose steps do not grow with rounding
    "learning_rate": 0.05,
    "backbone_learning_rate": 0.01,
    "balance": 0.5,
    "label_smoothing": 0.1,
    "freeze_bn": True,
    "precision": "float32",
    "device": "cpu",
    "tracking": "none",
    "workers": 2,
}


def is_last() -> bool:
    return int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1


def disturbed_step(scenario: dict[str, Any]) -> Any:
    """Return `accumulate_gradients` with what the scenario has in store for one of its calls."""
    original, numbers = finetune.accumulate_gradients, itertools.count(1)
    before: list[torch.Tensor] = []

    def step(training: Any, *rest: Any) -> Any:
        number, weights = next(numbers), [weight.detach().clone() for weight in training.network.parameters()]
        is_same = [torch.equal(now, then) for now, then in zip(weights, before, strict=False)]
        before[:] = weights
        if "overflow" in scenario and number > 1:  # no process skips another step than this one
            assert all(is_same) == (number == scenario["overflow"] + 1), number
        if is_last() and number == scenario.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if is_last() and number == scenario.get("interrupt"):
            signal.raise_signal(signal.SIGINT)
        result = original(training, *rest)
        if is_last() and number == scenario.get("overflow"):
            training.split.own.grad[-1] = torch.inf
        return result

    return step


def scarce(scenario: dict[str, Any], place: str, function: Any, images_of: Any) -> Any:
    """Return `function`, but that in the last process memory is too short for more than a few images in `place`."""
    wanted, few = scenario.get("scarce", ("", 0))

    def limited(*arguments: Any) -> Any:
        if is_last() and wanted == place and images_of(*arguments) > few:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(*arguments)

    return limited


def scarce_backward(scenario: dict[str, Any], function: Any) -> Any:
    """Return `function`, which computes features, but that their backward pass ends in its last layer."""
    wanted, few = scenario.get("scarce", ("", 0))

    def features(training: Any, part: Any) -> Any:
        found = function(training, part)
        if is_last() and wanted == "backward" and len(part.ids) > few:
            weight = next(training.network.backbone.parameters())

            def fail(gradient: torch.Tensor) -> None:
                handle.remove()
                raise torch.OutOfMemoryError("CUDA out of memory")

            handle = weight.register_hook(fail)
        return found

    return features


def run(data: str, weights: str, folder: Path, scenario: dict[str, Any]) -> None:
    validate = finetune.validate

    def validation(*arguments: Any, **named: Any) -> Any:
        if is_last() and scenario.get("interrupt") == "validation":
            raise KeyboardInterrupt
        return validate(*arguments, **named)

    images = {"softmax": lambda unit, *_: len(unit), "forward": lambda training, part: len(part.ids)}
    with contextlib.ExitStack() as stack:
        for place, name, value in [
            (split_head, "SPLIT_NUMBERS", 1 if scenario["split"] else 10**9),
            (finetune, "SECONDS_BETWEEN_CHECKPOINTS", -1.0),
            (processes, "BUCKET_BYTES", 1000),  # many buckets, some of which a failed pass has sent
            (finetune, "accumulate_gradients", disturbed_step(scenario)),
            (finetune, "validate", validation),
            (torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=64.0)),
            (
                finetune,
                "_features",
                scarce(scenario, "forward", scarce_backward(scenario, finetune._features), images["forward"]),
            ),
            (heads, "_chunks", scarce(scenario, "softmax", heads._chunks, images["softmax"])),
            (heads, "_gradients", scarce(scenario, "gradients", heads._gradients, images["softmax"])),
        ]:
            stack.enter_context(patch.object(place, name, value))
        train(data, folder / scenario["name"], weights=weights, **{**SETTINGS, **scenario.get("settings", {})})


def main() -> None:
    data, weights, folder, scenarios = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, when one process has died: the other tells of it first
    PartialState(cpu=True)
    wanted = json.loads(scenarios)
    for scenario in wanted:
        # The connection between the processes is closed at the end of the last training alone.
        closing = contextlib.nullcontext() if scenario is wanted[-1] else patch.object(Machine, "close", Machine.wait)
        with closing, contextlib.suppress(KeyboardInterrupt) if "interrupt" in scenario else contextlib.nullcontext():
            run(data, weights, Path(folder), scenario)


if __name__ == "__main__":
    main()
