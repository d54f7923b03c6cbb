"""Learning rates against PyTorch's own schedulers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmarks.training.schedule import share_done, share_of_learning_rate


def test_the_cosine_is_pytorch_s() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.1)
    for step in range(100):
        assert share_of_learning_rate(step / 100, 0.0, 0.1) == pytest.approx(oracle.get_last_lr()[0])
        optimizer.step()
        oracle.step()


def test_it_climbs_in_a_straight_line() -> None:
    assert [share_of_learning_rate(done, 0.2, 0.0) for done in (0.0, 0.05, 0.1, 0.2)] == [0.0, 0.25, 0.5, 1.0]


@given(st.floats(0, 1), st.floats(0, 0.9), st.floats(0, 1))
def test_it_never_leaves_its_limits(done: float, warmup: float, final: float) -> None:
    assert 0 <= share_of_learning_rate(done, warmup, final) <= 1


def test_under_a_time_limit_the_further_of_steps_and_time_counts() -> None:
    assert share_done(49, 100, seconds=1.0, time_limit=None) == pytest.approx(0.495)
    assert share_done(49, 100, seconds=54.0, time_limit=1.0) == pytest.approx(0.9)
    assert share_done(49, 100, seconds=6.0, time_limit=1.0) == pytest.approx(0.495)
