"""How a machine computes: device, threads, number format and memory layout, each chosen with a reason."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from landmarks.support.errors import UsageError, did_you_mean
from landmarks.support.systems import keep_freed_memory, waiting_policy

BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")
"""Processors without one of these compute bfloat16 9 to 18 times slower than float32 (measured on AVX2)."""

BUSY = 0.5
"""Cores used by other programs from which the user is told."""


@dataclass(frozen=True)
class Choice:
    """One automatic decision: `what` was chosen to be `value`, and `why`."""

    what: str
    value: str
    why: str

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.what}: {self.value} ({self.why})"


def choose_device(wanted: str) -> Choice:
    """Choose the device: `auto` (the best there is), `cpu`, `cuda` or `mps`.

    Raises `UsageError` for any other name, and for a device that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted != "auto":
        if wanted not in available:
            choices = ("auto", *available)
            raise UsageError(
                f'no device "{wanted}"', expected=", ".join(choices), way_out=did_you_mean(wanted, choices)
            )
        if not available[wanted]:
            raise UsageError(
                f"this machine has no device {wanted}",
                expected=", ".join(name for name in available if available[name]),
            )
        return Choice("device", wanted, "asked for")
    if available["cuda"]:
        return Choice("device", "cuda", torch.cuda.get_device_name())
    if available["mps"]:
        return Choice("device", "mps", "Apple's graphics processor")
    return Choice("device", "cpu", f"no graphics processor; {torch.get_num_threads()} threads")


def choose_threads(wanted: int | None) -> Choice:
    """Set the number of threads that compute on the CPU; None leaves PyTorch's number."""
    if wanted is not None:
        torch.set_num_threads(wanted)
    others = cores_used_by_others()
    busy = "" if others < BUSY else f"; other programs use {others:.1f} of {os.cpu_count()} cores"
    return Choice("threads", str(torch.get_num_threads()), f"{waiting_policy()}{busy}")


def cores_used_by_others(seconds: float = 0.05) -> float:
    """Return how many cores other programs use, measured over `seconds`.

    Systems count in ticks of 10 ms: five of them tell a busy core from an idle one, and every training waits for them.
    """
    cores = psutil.cpu_count() or 1
    before, started, own = psutil.cpu_times(), time.monotonic(), time.process_time()
    time.sleep(seconds)
    after, elapsed = psutil.cpu_times(), time.monotonic() - started
    idle = sum(getattr(after, name, 0.0) - getattr(before, name, 0.0) for name in ("idle", "iowait"))
    return max(0.0, min(float(cores), cores - (idle + time.process_time() - own) / elapsed))


def choose_precision(wanted: str, device: str) -> Choice:
    """Choose float32 or bfloat16 by what the hardware computes fast; weights stay float32 in either case."""
    if wanted != "auto":
        return Choice("precision", wanted, "asked for")
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("precision", "bfloat16", f"{torch.cuda.get_device_name()} computes it natively")
        return Choice("precision", "float32", f"{torch.cuda.get_device_name()} does not compute bfloat16")
    if device == "mps":
        return Choice("precision", "float32", "the safe format on Apple's graphics processor")
    flag = next((flag for flag in BFLOAT16_FLAGS if flag in processor_flags()), None)
    if flag:
        return Choice("precision", "bfloat16", f"the processor has {flag}")
    return Choice("precision", "float32", f"the processor has neither {' nor '.join(BFLOAT16_FLAGS)}")


def prepare_for_inference(device: torch.device) -> None:
    """Let a CPU keep freed memory, and an NVIDIA card compute in TF32: factors of 10 bits, sums in float32.

    Simulated on a CPU, that changed probabilities by 0.02 at most and no best answer of 96 images
    (`benchmarks/precisions.py`). Autocast's bfloat16 would be faster still, but changed the answer to three of them.
    """
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def set_memory_layout(network: torch.nn.Module) -> None:
    """Convert the weights of `network` to the memory layout that `choose_layout` chooses."""
    if choose_layout(network).value == "channels last":
        network.to(memory_format=torch.channels_last)


def choose_layout(network: torch.nn.Module) -> Choice:
    """Choose the memory layout of images and kernels: channels last for convolutions."""
    if any(parameter.ndim > 4 for parameter in network.parameters()):  # PyTorch would raise
        return Choice("memory layout", "channels first", "it has kernels of more than two dimensions")
    if any(isinstance(module, torch.nn.Conv2d) and module.kernel_size != module.stride for module in network.modules()):
        return Choice("memory layout", "channels last", "its convolutions are faster so")
    return Choice("memory layout", "channels first", "no convolutions beyond patches")


def processor_flags() -> frozenset[str]:
    """Return the feature flags of the processor; empty if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def processor_name() -> str:
    """Return the processor's name, or its architecture if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.machine()
