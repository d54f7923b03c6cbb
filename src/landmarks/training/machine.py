"""The machine that a training runs on: its processes, devices and threads, through accelerate."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import math
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from landmarks.support.console import note, plural
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.systems import keep_freed_memory, return_freed_memory
from landmarks.training.choices import Choice, choose_device, choose_precision, choose_threads, processor_name
from landmarks.training.loader import default_workers
from landmarks.training.readers import Readers
from landmarks.training.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from landmarks.models.network import Network

PACKAGES = ("landmarks", "torch", "timm", "accelerate", "numpy", "pillow", "simplejpeg", "polars", "safetensors")
"""Packages that affect the numbers; a run's record holds their versions."""

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precisions in which products use fewer bits than the weights."""

STEPS_BETWEEN_FETCHES = 20
"""Steps on a GPU after which their results are fetched."""

FEW_IMAGES = 16
"""Images per batch below which errors grow with batch normalisation (Wu and He 2018, figure 1)."""

MANY_STEPS = 10_000
"""Steps from which a minute of trying convolution algorithms is assumed to pay; chosen, not measured."""


@dataclass(frozen=True)
class FetchedSteps:
    """The results of some steps, fetched from the device."""

    steps: list[list[float]]  # per step: sum of losses, correct answers, gradient norm
    clock: tuple[float, float]  # seconds of fine-tuning, and seconds since the last checkpoint
    interrupted: bool  # whether any process was interrupted


@dataclass(frozen=True)
class Machine:
    """Where a training runs: its processes, device, precision, and the threads or processes that read images."""

    accelerator: Accelerator
    precision: str = "float32"
    workers: int | Readers | None = None

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def processes(self) -> int:
        """The number of processes that train together."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def computing(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products and convolutions use this machine's precision."""
        if self.precision in AUTOCAST:
            return torch.autocast(self.device.type, dtype=AUTOCAST[self.precision])
        return nullcontext()

    @property
    def steps_between_fetches(self) -> int:
        """Steps after which results are fetched; 1 on a CPU, where fetching costs nothing."""
        return 1 if self.device.type == "cpu" else STEPS_BETWEEN_FETCHES

    @property
    def images_at_once(self) -> int:
        """Images per forward pass without training; a GPU is faster with many."""
        return 32 if self.device.type == "cpu" else 256

    def synchronize(self) -> None:
        """Wait until the device has finished all its work; needed before reading a clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def wait(self) -> None:
        """Wait until every process has reached this point."""
        with exchanging():
            self.accelerator.wait_for_everyone()

    def summed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of `tensor` over all processes; every process must call it.

        A single process gets its own tensor back, on the same device: MPS, for example, has no float64.
        """
        if self.processes == 1:
            return tensor
        with exchanging():
            total: torch.Tensor = self.accelerator.reduce(tensor.to(self.device), "sum")
        return total

    def fetch_steps(self, steps: torch.Tensor, clock: tuple[float, float], *, interrupted: bool) -> FetchedSteps:
        """Fetch the results (n, 3) of n steps from the device; every process must call it.

        Losses and correct answers are summed over processes; the gradient norm is the same in all of them. Every
        process gets the main process's `clock`, and learns whether any process was interrupted.
        """
        if self.processes == 1:
            return FetchedSteps(steps.tolist(), clock, interrupted)
        rest = torch.tensor([*(clock if self.is_main else (0.0, 0.0)), interrupted], dtype=torch.float64)
        flat = torch.cat([steps[:, :2].double().flatten(), rest.to(self.device)])
        *sums, seconds, since_checkpoint, interruptions = self.summed(flat).tolist()
        norms = steps[:, 2].tolist()
        summed = [[*sums[2 * n : 2 * n + 2], norm] for n, norm in enumerate(norms)]
        return FetchedSteps(summed, (seconds, since_checkpoint), interruptions > 0)

    def close(self) -> None:
        """Return freed memory, and close the connection between the processes, at the end of a training."""
        return_freed_memory()
        if self.processes > 1:
            self.wait()
            torch.distributed.destroy_process_group()

    def from_main(self, value: Any) -> Any:
        """Return the main process's `value` in every process."""
        if self.processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        with exchanging():
            return broadcast_object_list([value])[0]

    def say(self, text: str) -> None:
        """Print one line, once for all processes."""
        if self.is_main:
            note(text)


def set_up_cuda(*, deterministic: bool, precision: str) -> list[Choice]:
    """Set how CUDA's libraries compute, and return the settings with their reasons.

    With `deterministic`, convolutions and sums give the same bits each time. Without it, the last digits of two
    trainings differ; images, their order, crops and dropout are the same in either case.
    """
    torch.backends.cudnn.benchmark = False  # see `benchmark_convolutions`
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)  # a few layers have no such algorithm
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    why = "asked for: the same bits each time, by slower algorithms"
    chosen = Choice("deterministic", "yes", why)
    if not deterministic:
        why = "quick algorithms, whose last digits differ each time; --deterministic gives the same bits"
        chosen = Choice("deterministic", "no", why)
    products = "10 bits of each number (TF32)" if precision == "tf32" else "all 23 bits of each number, without TF32"
    return [chosen, Choice("products in float32", products, "TF32 only where it is asked for: --precision tf32")]


def benchmark_convolutions(machine: Machine, recipe: Recipe, steps: int) -> None:
    """Let cuDNN time its algorithms for each convolution and batch size, if that pays within `steps`.

    Judging by the durations of trainings on one card, it takes about a tenth of a second for each convolution, pass
    and size (`docs/engine.md`); it was not timed by itself.
    """
    if machine.device.type == "cuda" and not recipe.deterministic and steps >= MANY_STEPS:
        torch.backends.cudnn.benchmark = True
        machine.say(f"convolutions: the quickest algorithm is tried out for each, which pays in {steps:,} steps")


@contextlib.contextmanager
def exchanging() -> Iterator[None]:
    """Raise `LandmarksError` for an exchange between processes that fails (gloo: "Connection closed by peer")."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise LandmarksError(
            f"another process of this training is gone ({str(error).splitlines()[0]})",
            way_out="run the same command again to go on, with any number of processes",
        ) from error


def open_machine(recipe: Recipe, out: Path) -> tuple[Machine, list[Choice]]:
    """Return the machine for `recipe`, and every choice that was made with its reason.

    Trackers write to the folder `out`.
    """
    from accelerate import Accelerator  # takes half a second, which answering an image does not need

    device, tracker = choose_device(recipe.device), _tracker(recipe.tracking)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`log_with=.* no supported trackers")  # reported below
            accelerator = Accelerator(cpu=device.value == "cpu", log_with=tracker, project_dir=out)
    except ValueError as error:  # an unknown tracker, or accelerate already runs on another device
        raise UsageError(f"the training cannot begin: {error}") from error
    if tracker and not accelerator.log_with:
        raise UsageError(
            f'the training cannot be followed with "{tracker}", whose package is not installed',
            way_out='pip install "landmarks[tracking]" brings TensorBoard; --tracking none does without',
        )
    precision = choose_precision(recipe.precision, device.value)
    choices = [device, precision, choose_threads(recipe.threads)]
    if accelerator.num_processes > 1:
        choices.append(
            Choice("processes", str(accelerator.num_processes), images_per_process(recipe, accelerator.num_processes))
        )
    if device.value == "cpu":
        keep_freed_memory()
    if device.value == "cuda":
        choices += set_up_cuda(deterministic=recipe.deterministic, precision=precision.value)
    return Machine(accelerator, precision.value, recipe.workers), choices


@contextlib.contextmanager
def with_readers(machine: Machine) -> Iterator[Machine]:
    """Yield `machine` with processes that read its images, if it has a CUDA device; otherwise yield it unchanged."""
    if machine.device.type != "cuda" or isinstance(machine.workers, Readers):
        yield machine
        return
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    readers = Readers(machine.workers or max(1, default_workers() // processes_here))
    try:
        yield replace(machine, workers=readers)
    finally:
        readers.close()


def images_per_process(recipe: Recipe, processes: int) -> str:
    """Return the line about the images each of several processes sees in a step, with a warning if they are few."""
    images = recipe.batch_size // processes
    line = f"each sees its share of every {recipe.batch_size} images"
    if recipe.freeze_bn or images >= FEW_IMAGES:
        return line
    return (
        f"{line}; batch normalisation, where the network has it, goes by {images} images at a time, which is few: "
        f"--batch-size {FEW_IMAGES * processes} or --set freeze_bn=true makes it steadier"
    )


def _tracker(tracking: str) -> str | None:
    if tracking == "auto":
        return "tensorboard" if importlib.util.find_spec("tensorboard") else None
    return None if tracking == "none" else tracking


def describe_machine(machine: Machine) -> dict[str, Any]:
    """Return the description of the machine in a run's record."""
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
    """Return the versions of Python and of `PACKAGES`."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


# ── Memory: how much was used, and recovery after it ran out ────────────────────────────────────────────────────────


_OUT_OF_MEMORY = (
    "can't allocate memory",  # CPU, on Linux and macOS
    "not enough memory",  # CPU, on Windows
    "MPS backend out of memory",
    "Invalid buffer size",  # MPS, for a single allocation beyond its limit
)
"""What PyTorch's plain `RuntimeError`s say when memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that the memory of a device or of the CPU ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def compute_in_parts(
    compute: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, at_once: int
) -> tuple[torch.Tensor, int]:
    """Return `compute(images)` (N, …), computed for at most `at_once` images at a time, and how many fitted.

    When memory runs out, the failed pass is freed and half as many are tried, down to one.
    """
    while True:
        try:
            return torch.cat([compute(part) for part in torch.split(images, at_once)]), at_once
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or min(at_once, len(images)) <= 1:
                raise
        free_memory()
        at_once = math.ceil(min(at_once, len(images)) / 2)
        note(f"out of memory: going on with {at_once} images at a time")


def out_of_memory_error(network: Network) -> LandmarksError:
    """Return the error for a network that has no memory to train on even a single image."""
    return LandmarksError(
        f"{network.backbone_name} at {network.preprocessing.image_size} pixels does not fit into memory",
        received="no room for a single image",
        way_out="--set gradient_checkpointing=true, smaller images (--image-size), or a smaller network",
    )


def too_few_values_error(network: Network, images: int) -> LandmarksError:
    """Return the error for batch normalisation that sees one value per channel: one image, and maps of one position."""
    return LandmarksError(
        f"batch normalisation has nothing to average in {network.backbone_name} at "
        f"{network.preprocessing.image_size} pixels",
        received=f"passes of {plural(images, 'image')}, whose maps have a single position",
        way_out="more images a pass (--batch-size, fewer processes), larger ones (--image-size), "
        "or --set freeze_bn=true",
    )


def free_memory() -> None:
    """Free unreferenced memory; call it when the out-of-memory error itself is no longer referenced."""
    gc.collect()
    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def peak_memory_mb() -> float:
    """Return the peak memory of this process in MB: of the GPU if one was used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    memory = psutil.Process().memory_info()
    return float(getattr(memory, "peak_wset", memory.rss)) / 1e6  # peak_wset: the peak on Windows
