"""Memory that runs out while photographs are only looked at: half as many at a time, the same numbers."""

from __future__ import annotations

import sys

import pytest
import torch

from landmarks.training.memory import in_parts, is_out_of_memory, peak_memory_mb


def test_images_pass_in_halves_until_they_fit_and_the_number_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    images, sizes = torch.arange(13.0)[:, None], []

    def compute(some: torch.Tensor) -> torch.Tensor:
        sizes.append(len(some))
        if len(some) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * some

    doubled, at_once = in_parts(compute, images, 32)
    assert torch.equal(doubled, 2 * images)
    assert at_once == 4
    assert sizes == [13, 7, 4, 4, 4, 1]
    assert capsys.readouterr().err.count("out of memory") == 2


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("shapes do not match")])
def test_one_image_that_does_not_fit_and_other_errors_are_raised(error: Exception) -> None:
    def compute(some: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(type(error)):
        in_parts(compute, torch.zeros(3, 1), 3)


@pytest.mark.parametrize(
    "message",
    [
        "MPS backend out of memory (MPS allocated: 17.99 GB, other allocations: 100 KB, max allowed: 18.13 GB).",
        "Invalid buffer size: 24.00 GB",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to …",
        "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to …",
    ],
)
def test_every_devices_words_for_no_memory_are_known(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError(message))


def test_the_peak_of_memory_is_told_where_the_system_counts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = peak_memory_mb()
    monkeypatch.setitem(sys.modules, "resource", None)
    assert 0 < peak_memory_mb() <= 1.2 * counted  # what is held now is at most the peak, but for what is held since
