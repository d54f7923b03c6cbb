"""What this machine computes fastest, by a short timing: the number format, and how images and kernels lie in memory.

Flags tell what a processor can do, not how fast: bfloat16 pays with AMX, hardly with avx512_bf16 alone, and without
either it is 9 to 18 times slower than float32. So a few images pass forth and back in each format and layout.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from landmarks.models.network import Network
from landmarks.training.choices import Choice, choose_layout
from landmarks.training.machine import Machine, free_memory, is_out_of_memory
from landmarks.training.processes import Statistics

IMAGES = {"cpu": 2, "cuda": 32, "mps": 8}
"""Images that are timed at a time."""

PASSES = 3
"""Timed passes, of which the quickest counts; one before them is not timed."""

WORTHWHILE = 1.2
"""How many times faster than what is usual another format or layout must be, so that chance does not choose it."""

TOO_QUICK = 0.1
"""Seconds of a pass below which nothing is compared: it would be chance that chooses."""

HOPELESS = 3.0
"""How many times slower the first pass of a candidate is when no second one is taken."""

LAYOUTS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}


@dataclass(frozen=True)
class ComputeFormat:
    """A way to compute: number format and memory layout, both by name."""

    precision: str
    layout: str


@dataclass(frozen=True)
class Timing:
    """The way that was chosen, and the images per second of all that were timed; none when one had no choice."""

    way: ComputeFormat
    rates: dict[ComputeFormat, float]

    def choices(self) -> list[Choice]:
        """Return format and layout with the figures that decided."""
        return [self._choice("precision", self.way.precision), self._choice("memory layout", self.way.layout)]

    def _choice(self, what: str, value: str) -> Choice:
        if len(self.rates) < 2:
            return Choice(what, value, "a pass is too quick to compare others with")
        told = (f"{rate:,.3g} images/s in {way.precision}, {way.layout}" for way, rate in self.rates.items())
        return Choice(what, value, f"timed here: {'; '.join(told)}")


def choose_by_timing(network: Network, machine: Machine) -> Timing:
    """Time the usual way, which is `machine`'s precision and the layout by rule, then the others; choose the fastest.

    Another way must be `WORTHWHILE` times faster. Weights, gradients and running statistics are as before afterwards,
    and `network` lies in memory in the chosen layout.
    """
    usual = ComputeFormat(machine.precision, choose_layout(network).value)
    rates: dict[ComputeFormat, float] = {}
    best = usual
    for way in ways(usual, machine.device):
        if way != usual and (way.layout != best.layout and way.precision != best.precision):
            continue  # formats are compared in the better layout alone
        seconds = _seconds(network, replace(machine, precision=way.precision), way, _slowest(rates, usual, machine))
        if seconds is None:
            continue
        rates[way] = IMAGES[machine.device.type] / seconds
        if way == usual and seconds < TOO_QUICK:
            break
        if rates[way] > rates.get(best, 0.0) * (WORTHWHILE if best == usual else 1.0):
            best = way
    network.to(memory_format=LAYOUTS[best.layout])
    free_memory()
    return Timing(best, rates)


def ways(usual: ComputeFormat, device: torch.device) -> Iterator[ComputeFormat]:
    """Yield the usual way, then those that `device` may be faster with: other layouts, then other formats in each."""
    layouts = [usual.layout, *(other for other in LAYOUTS if other != usual.layout)]
    if usual.layout == "channels first":  # no convolutions: all layouts are the same
        layouts = [usual.layout]
    formats = [usual.precision, *(other for other in formats_of(device) if other != usual.precision)]
    yield from (ComputeFormat(usual.precision, layout) for layout in layouts)
    yield from (ComputeFormat(other, layout) for other, layout in itertools.product(formats[1:], layouts))


def formats_of(device: torch.device) -> tuple[str, ...]:
    """Return the number formats that are tried on a kind of device."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "float16", "float32") if native else ("float16", "float32")
    return ("float32",) if device.type == "mps" else ("float32", "bfloat16")


def _slowest(rates: dict[ComputeFormat, float], usual: ComputeFormat, machine: Machine) -> float:
    """Return the seconds after which a first pass is hopeless."""
    return HOPELESS * IMAGES[machine.device.type] / rates[usual] if usual in rates else float("inf")


def _seconds(network: Network, machine: Machine, way: ComputeFormat, slowest: float) -> float | None:
    """Return the seconds of the quickest pass forth and back, of the first where that is hopeless; None: no memory."""
    size, device, training = network.preprocessing.image_size, machine.device, network.training
    layout = LAYOUTS[way.layout]
    network.to(memory_format=layout).train()
    statistics = Statistics(network)
    images = torch.zeros(IMAGES[device.type], 3, size, size, device=device).to(memory_format=layout)
    quickest = float("inf")
    try:
        for number in range(1 + PASSES):
            started = _clock(device)
            with machine.computing():
                features = network.features(images)
            features.float().sum().backward()  # type: ignore[no-untyped-call]
            machine.synchronize()
            seconds = _clock(device) - started
            network.zero_grad(set_to_none=True)
            if number or seconds > slowest:
                quickest = min(quickest, seconds)
            if seconds > slowest:
                break
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        network.zero_grad(set_to_none=True)
        statistics.put_back()
        network.train(training)
    return quickest


def _clock(device: torch.device) -> float:
    """Return seconds, on a processor those that its threads computed: what else the machine does decides nothing."""
    return time.process_time() / torch.get_num_threads() if device.type == "cpu" else time.monotonic()
