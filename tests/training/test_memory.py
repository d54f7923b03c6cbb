"""Memory that runs out while photographs are only looked at: half as many at a time, the same numbers."""

from __future__ import annotations

import pytest
import torch

from landmarks.training.memory import in_parts


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
