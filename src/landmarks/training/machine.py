"""The machine a training runs on: its processes, devices and threads, by way of accelerate."""

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

from landmarks.support.console import note
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.training.choices import Choice, choose_device, choose_precision, choose_threads, processor_name
from landmarks.training.loader import default_workers
from landmarks.training.readers import Readers
from landmarks.training.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from landmarks.models.network import Network

PACKAGES = ("landmarks", "torch", "timm", "accelerate", "numpy", "pillow", "simplejpeg", "polars", "safetensors")
"""What a run's record names the versions of: everything that numbers pass through."""


AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precisions in which products are computed in fewer bits than the weights are kept in."""

STEPS_BETWEEN_FETCHES = 20
"""Steps of a graphics processor between two looks at what it has computed."""


FEW_IMAGES = 16
"""Images that batch normalisation needs to go by; with fewer errors grow (Wu and He 2018, figure 1)."""

MANY_STEPS = 10_000
"""Steps from which a minute spent on finding the quickest algorithms is taken to come back; chosen, not measured."""


@dataclass(frozen=True)
class FetchedSteps:
    """What was fetched from the device about some steps."""

    steps: list[list[float]]  # sum of losses, right answers, norm of the gradient
    clock: tuple[float, float]  # seconds of fine-tuning, and since the last checkpoint
    interrupted: bool  # whether any process was asked to end


@dataclass(frozen=True)
class Machine:
    """Where a training computes: its processes, its device, its precision, its threads that read images."""

    accelerator: Accelerator
    precision: str = "float32"
    workers: int | Readers | None = None

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
        if self.precision in AUTOCAST:
            return torch.autocast(self.device.type, dtype=AUTOCAST[self.precision])
        return nullcontext()

    @property
    def steps_between_fetches(self) -> int:
        """After how many steps numbers are fetched: on the processor nothing is ever waited for."""
        return 1 if self.device.type == "cpu" else STEPS_BETWEEN_FETCHES

    @property
    def images_at_once(self) -> int:
        """Images per pass where nothing is trained: a graphics processor is faster with many."""
        return 32 if self.device.type == "cpu" else 256

    def synchronize(self) -> None:
        """Wait until the device has done all that it was asked for; what is timed ends with this."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

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
        except RuntimeError as error:
            raise lost_process_error(error) from error
        return total

    def fetch_steps(self, steps: torch.Tensor, clock: tuple[float, float], *, interrupted: bool) -> FetchedSteps:
        """Fetch the numbers (n, 3) of n steps: sums of losses and of right answers, which are added over all processes,
        and the gradient's norm, which is the same in each. Every process gets the main one's `clock`, and hears when
        any was interrupted.
        """
        if self.processes == 1:
            return FetchedSteps(steps.tolist(), clock, interrupted)
        counted = torch.tensor([*(clock if self.is_main else (0.0, 0.0)), interrupted], dtype=torch.float64)
        flat = torch.cat([steps[:, :2].double().flatten(), counted.to(self.device)])
        *sums, first, second, interruptions = self.summed(flat).tolist()
        norms = steps[:, 2].tolist()
        added = [[*sums[2 * n : 2 * n + 2], norm] for n, norm in enumerate(norms)]
        return FetchedSteps(added, (first, second), interruptions > 0)

    def close(self) -> None:
        """End the connection between the processes; the last thing a training does."""
        if self.processes > 1:
            self.wait()
            torch.distributed.destroy_process_group()

    def from_main(self, value: Any) -> Any:
        """Return the main process's `value` in every process."""
        if self.processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def say(self, text: str) -> None:
        """Print one line, once for all processes."""
        if self.is_main:
            note(text)


def set_up_cuda(*, deterministic: bool, precision: str) -> list[Choice]:
    """Tell CUDA's libraries how to compute, and return what was told with its reason.

    With `deterministic`, convolutions and sums give the same bits each time. Without it the last digits of two
    trainings differ; images, their order, crops and dropout are the same in either case.
    """
    torch.backends.cudnn.benchmark = False  # see `benchmark_convolutions`
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)  # a few layers have no such algorithm
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
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
    """Let cuDNN try its algorithms for each convolution and size of batch before it takes one, if that pays in `steps`.

    To try them takes about a tenth of a second for each convolution, way and size, as far as the durations of trainings
    on one card tell (`docs/engine.md`); nobody has timed it by itself.
    """
    if machine.device.type == "cuda" and not recipe.deterministic and steps >= MANY_STEPS:
        torch.backends.cudnn.benchmark = True
        machine.say(f"convolutions: the quickest algorithm is tried out for each, which pays in {steps:,} steps")


def lost_process_error(error: RuntimeError) -> LandmarksError:
    """Return what to tell when an exchange fails: gloo says "Connection closed by peer", NCCL raises an error of its
    own."""
    return LandmarksError(
        f"another process of this training is gone ({str(error).splitlines()[0]})",
        way_out="run the same command again to go on, with any number of processes",
    )


def open_machine(recipe: Recipe, out: Path) -> tuple[Machine, list[Choice]]:
    """Return the machine as `recipe` wants it, with every choice that was made and its reason; `out` holds trackers."""
    from accelerate import Accelerator  # half a second, which answering an image does without

    device, tracker = choose_device(recipe.device), _tracker(recipe.tracking)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`log_with=.* no supported trackers")  # an error below
            accelerator = Accelerator(cpu=device.value == "cpu", log_with=tracker, project_dir=out)
    except ValueError as error:  # accelerate knows no such tracker, or this process already computes elsewhere
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
    if device.value == "cuda":
        choices += set_up_cuda(deterministic=recipe.deterministic, precision=precision.value)
    return Machine(accelerator, precision.value, recipe.workers), choices


@contextlib.contextmanager
def with_readers(machine: Machine) -> Iterator[Machine]:
    """Give a machine whose images are read by processes beside this one, where a graphics processor waits for them."""
    if machine.device.type != "cuda" or isinstance(machine.workers, Readers):
        yield machine
        return
    on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    readers = Readers(machine.workers or max(1, default_workers() // on_this_node))
    try:
        yield replace(machine, workers=readers)
    finally:
        readers.close()


def images_per_process(recipe: Recipe, processes: int) -> str:
    """Return what is said of the images that each of several processes sees in a step."""
    images = recipe.batch_size // processes
    said = f"each sees its share of every {recipe.batch_size} images"
    if recipe.freeze_bn or images >= FEW_IMAGES:
        return said
    return (
        f"{said}; batch normalisation, where the network has it, goes by {images} images at a time, which is few: "
        f"--batch-size {FEW_IMAGES * processes} or --set freeze_bn=true makes it steadier"
    )


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


# ── Memory: how much was used, and going on after it ran out ────────────────────────────────────────────────────────


_OUT_OF_MEMORY = (
    "can't allocate memory",  # the processor's, on Linux and macOS
    "not enough memory",  # on Windows
    "MPS backend out of memory",  # Apple's graphics processor
    "Invalid buffer size",  # the same, asked for more at once than it ever gives
)
"""What PyTorch says, in errors that have no kind of their own, when memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device's or the processor's memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def compute_in_parts(
    compute: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, at_once: int
) -> tuple[torch.Tensor, int]:
    """Return `compute(images)` (N, …), made of at most `at_once` images at a time, and how many at a time fitted.

    When memory runs out, half as many are tried, down to one; what the failed pass held is let go first.
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
    """Return the error for a network that cannot train on a single image in the memory there is."""
    return LandmarksError(
        f"{network.backbone_name} at {network.preprocessing.image_size} pixels does not fit into memory",
        received="no room for a single image",
        way_out="--set gradient_checkpointing=true, smaller images (--image-size), or a smaller network",
    )


def free_memory() -> None:
    """Give back what nothing refers to any more; call it after the error itself has been let go."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def peak_memory_mb() -> float:
    """Return the most memory this process has held so far, in MB: on the graphics processor if there is one."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    held = psutil.Process().memory_info()
    return float(getattr(held, "peak_wset", held.rss)) / 1e6  # under this name Windows keeps the peak
