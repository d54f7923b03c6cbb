"""What a machine is asked to compute in: device, number format and memory layout, each choice with its reason."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from landmarks.support.errors import UsageError, did_you_mean

BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")
"""Processors without one of these compute bfloat16 9 to 18 times slower than float32 (measured on AVX2)."""


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
    """Choose where to compute: `auto` (the best there is), `cpu`, `cuda` or `mps`.

    Raises `UsageError` for any other word, and when the device that was asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted != "auto":
        if wanted not in there:
            choices = ("auto", *there)
            raise UsageError(
                f'no device "{wanted}"', expected=", ".join(choices), way_out=did_you_mean(wanted, choices)
            )
        if not there[wanted]:
            raise UsageError(
                f"this machine has no device {wanted}",
                expected=", ".join(name for name in there if there[name]),
            )
        return Choice("device", wanted, "asked for")
    if there["cuda"]:
        return Choice("device", "cuda", torch.cuda.get_device_name())
    if there["mps"]:
        return Choice("device", "mps", "Apple's graphics processor")
    return Choice("device", "cpu", f"no graphics processor; {torch.get_num_threads()} threads")


def choose_precision(wanted: str, device: str) -> Choice:
    """Choose between float32 and bfloat16 by what the hardware computes fast; weights stay float32 in either case."""
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


def choose_layout(network: torch.nn.Module) -> Choice:
    """Choose the memory layout of pictures and kernels: channels last for convolutions."""
    if any(isinstance(module, torch.nn.Conv2d) and module.kernel_size != module.stride for module in network.modules()):
        return Choice("memory layout", "channels last", "its convolutions are faster so")
    return Choice("memory layout", "channels first", "no convolutions beyond patches")


def processor_flags() -> frozenset[str]:
    """Return what the processor says it can do; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def processor_name() -> str:
    """Return the processor's name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.machine()
