"""The fastest number format and memory layout on this machine, by a short timing.

Flags tell what a processor can do, not how fast: bfloat16 pays with AMX, hardly with avx512_bf16 alone, and without
either it is 9 to 18 times slower than float32. So a few images pass forward and backward in each format and layout.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from landmarks.models.network import Network
from landmarks.training.choices import Choice, choose_layout
from landmarks.training.machine import Machine, free_memory, is_out_of_memory
from landmarks.training.processes import Statistics

IMAGES = {"cpu": (2, 32), "cuda": (32,), "mps": (8,)}
"""Device → images per timed pass; of several numbers, the first of which a pass is not too quick."""

PASSES = 3
"""Timed passes, of which the fastest counts; one before them is not timed."""

WORTHWHILE = 1.2
"""How many times faster than the usual format another one must be, so that chance does not choose it."""

TOO_QUICK = 0.1
"""Seconds of a pass below which formats are not compared, since chance would choose, and in a small network what each
layer costs whatever it computes."""

HOPELESS = 3.0
"""How many times slower than the usual format a first pass is when no second one is timed."""

LAYOUTS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}


@dataclass(frozen=True)
class ComputeFormat:
    """A number format and a memory layout, both by name."""

    precision: str
    layout: str


@dataclass(frozen=True)
class Timing:
    """The chosen format, and the images per second of all that were timed."""

    best: ComputeFormat
    rates: dict[ComputeFormat, float]

    def choices(self) -> list[Choice]:
        """Return the chosen precision and layout, with the timings as reasons."""
        return [self._choice("precision", self.best.precision), self._choice("memory layout", self.best.layout)]

    def _choice(self, what: str, value: str) -> Choice:
        if len(self.rates) < 2:
            return Choice(what, value, "a pass is too quick to compare others with")
        figures = (f"{rate:,.3g} images/s in {tried.precision}, {tried.layout}" for tried, rate in self.rates.items())
        return Choice(what, value, f"timed here: {'; '.join(figures)}")


def choose_by_timing(network: Network, machine: Machine, most: int) -> Timing:
    """Time the usual format (`machine`'s precision, `choose_layout`'s layout), then others; choose the fastest.

    Another format must be `WORTHWHILE` times faster than the usual one. Where a pass of a few images is too quick, more
    are timed, up to `most`. Afterwards, `network` has the chosen layout; its weights, gradients and running statistics
    are unchanged.
    """
    usual = best = ComputeFormat(machine.precision, choose_layout(network).value)
    rates: dict[ComputeFormat, float] = {}
    images, seconds = _time_usual(network, machine, usual.layout, most)
    if seconds is not None:
        rates[usual] = images / seconds
    others = candidates(usual, machine.device) if seconds is None or seconds >= TOO_QUICK else ()
    for candidate in others:
        if candidate.layout != best.layout and candidate.precision != best.precision:
            continue  # precisions are compared in the better layout only
        limit = HOPELESS * images / rates[usual] if usual in rates else math.inf
        seconds = _seconds(network, replace(machine, precision=candidate.precision), candidate.layout, images, limit)
        if seconds is None:
            continue
        rates[candidate] = images / seconds
        if rates[candidate] > rates.get(best, 0.0) * (WORTHWHILE if best == usual else 1.0):
            best = candidate
    network.to(memory_format=LAYOUTS[best.layout])
    free_memory()
    return Timing(best, rates)


def candidates(usual: ComputeFormat, device: torch.device) -> Iterator[ComputeFormat]:
    """Yield the formats that may be faster than the `usual` one on `device`: other layouts, then other precisions."""
    layouts = [usual.layout, *(other for other in LAYOUTS if other != usual.layout)]
    if usual.layout == "channels first":  # no convolutions, so the layout makes no difference
        layouts = [usual.layout]
    others = [precision for precision in precisions_of(device) if precision != usual.precision]
    yield from (ComputeFormat(usual.precision, layout) for layout in layouts[1:])
    yield from (ComputeFormat(precision, layout) for precision, layout in itertools.product(others, layouts))


def precisions_of(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that are timed on a kind of device."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "float16", "float32") if native else ("float16", "float32")
    return ("float32",) if device.type == "mps" else ("float32", "bfloat16")


def _time_usual(network: Network, machine: Machine, layout: str, most: int) -> tuple[int, float | None]:
    """Return how many images tell formats apart, and the seconds of their pass in the usual one; None: no memory.

    They are the first of `IMAGES` of which a pass is not too quick, else the last that fit and are not over `most`.
    """
    first, *larger = IMAGES[machine.device.type]
    count, seconds = first, _seconds(network, machine, layout, first)
    for more in larger:
        if seconds is None or seconds >= TOO_QUICK or more > most:
            break
        found = _seconds(network, machine, layout, more)
        if found is None:
            break
        count, seconds = more, found
    return count, seconds


def _seconds(network: Network, machine: Machine, layout: str, count: int, limit: float = math.inf) -> float | None:
    """Return the seconds of the fastest forward and backward pass of `count` images, or None when memory runs out.

    When the first pass takes longer than `limit`, no other follows.
    """
    size, device, training = network.preprocessing.image_size, machine.device, network.training
    network.to(memory_format=LAYOUTS[layout]).train()
    statistics = Statistics(network)
    images = torch.zeros(count, 3, size, size, device=device).to(memory_format=LAYOUTS[layout])
    fastest = math.inf
    try:
        for number in range(1 + PASSES):
            started = _clock(device)
            with machine.computing():
                features = network.features(images)
            features.float().sum().backward()  # type: ignore[no-untyped-call]
            machine.synchronize()
            seconds = _clock(device) - started
            network.zero_grad(set_to_none=True)
            if number or seconds > limit:
                fastest = min(fastest, seconds)
            if seconds > limit:
                break
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        network.zero_grad(set_to_none=True)
        statistics.restore()
        network.train(training)
    return fastest


def _clock(device: torch.device) -> float:
    """Return a time in seconds: on a CPU that of this process's threads, so that other programs do not matter."""
    return time.process_time() / torch.get_num_threads() if device.type == "cpu" else time.monotonic()
