"""The machine a training runs on: its processes, devices and threads, by way of accelerate."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.training.precision import Choice, choose_device, choose_precision, processor_name
from landmarks.training.recipe import Recipe

PACKAGES = ("landmarks", "torch", "timm", "accelerate", "numpy", "pillow", "simplejpeg", "polars", "safetensors")
"""What a run's record names the versions of: everything that numbers pass through."""


@dataclass(frozen=True)
class Machine:
    """Where a training computes: its processes, its device, its precision, its threads that read photographs."""

    accelerator: Accelerator
    precision: str = "float32"
    workers: int | None = None

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """Which of the processes this is, from 0."""
        return int(self.accelerator.process_index)

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def computing(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products and convolutions are computed in this machine's precision."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def wait(self) -> None:
        """Wait until every process has come here."""
        self.accelerator.wait_for_everyone()

    def summed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of every process's `tensor`; each process must call it.

        One process gets back what it gave, where it lay: Apple's graphics processor, say, holds no float64.
        """
        if self.processes == 1:
            return tensor
        try:
            total: torch.Tensor = self.accelerator.reduce(tensor.to(self.device), "sum")
        except RuntimeError as error:  # gloo: "Connection closed by peer"; NCCL: DistBackendError
            raise LandmarksError(
                f"another process of this training is gone ({str(error).splitlines()[0]})",
                way_out="run the same command again to go on, with any number of processes",
            ) from error
        return total

    def part(self) -> None:
        """End the connection between the processes; the last thing a training does."""
        if self.processes > 1:
            self.wait()
            torch.distributed.destroy_process_group()

    def from_main(self, value: Any) -> Any:
        """Return the main process's `value` in every process."""
        return broadcast_object_list([value])[0] if self.processes > 1 else value

    def say(self, text: str) -> None:
        """Print one line, once for all processes."""
        if self.is_main:
            note(text)


def open_machine(recipe: Recipe, out: Path) -> tuple[Machine, list[Choice]]:
    """Return the machine as `recipe` wants it, with every choice that was made and its reason; `out` holds trackers."""
    device = choose_device(recipe.device)
    try:
        accelerator = Accelerator(cpu=device.value == "cpu", log_with=_tracker(recipe.tracking), project_dir=out)
    except ValueError as error:  # accelerate knows no such tracker, or this process already computes elsewhere
        raise UsageError(f"the training cannot begin: {error}") from error
    precision = choose_precision(recipe.precision, device.value)
    choices = [device, precision]
    if accelerator.num_processes > 1:
        share = f"each sees its share of every {recipe.batch_size} photographs"
        choices.append(Choice("processes", str(accelerator.num_processes), share))
    if device.value == "cuda":
        torch.backends.cudnn.benchmark = False  # the fastest algorithm of the day would change the last digits
        torch.backends.cudnn.deterministic = True
    return Machine(accelerator, precision.value, recipe.workers), choices


def _tracker(tracking: str) -> str | None:
    if tracking == "auto":
        return "tensorboard" if importlib.util.find_spec("tensorboard") else None
    return None if tracking == "none" else tracking


def describe_machine(machine: Machine) -> dict[str, Any]:
    """Return what a run's record says about the machine."""
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "device": torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else machine.device.type,
        "processes": machine.processes,
        "cores": os.cpu_count(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of every package that numbers pass through."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
