"""What is added up of steps, and which of them end a training."""

from __future__ import annotations

import math

import pytest

from landmarks.support.errors import LandmarksError
from landmarks.training.checkpoint import MAX_OVERFLOWS, State, add_steps, finish_epoch
from landmarks.training.recipe import recipe_named

RECIPE = recipe_named("default")


def test_steps_add_up_whenever_they_are_looked_at() -> None:
    steps = [[0.1 * number, float(number), 1.0] for number in range(7)]
    together, apart = State(8, step=7), State(8)
    add_steps(together, steps, [3] * 7, RECIPE)
    for step in steps:
        apart.step += 1
        add_steps(apart, [step], [3], RECIPE)
    assert together == apart and together.seen == 21 and together.correct == 21


@pytest.mark.parametrize("step", [[math.nan, 1.0, 1.0], [math.inf, 1.0, 1.0], [1.0, 1.0, math.nan]])
def test_the_first_step_that_is_no_number_is_named(step: list[float]) -> None:
    with pytest.raises(LandmarksError, match=r"step 9 \(epoch 3\)"):
        add_steps(State(8, epoch=2, step=10), [[1.0, 1.0, 1.0], step, [math.nan] * 3], [8] * 3, RECIPE)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_no_number_ends_the_training(loss: float) -> None:
    with pytest.raises(LandmarksError, match=r"broke down in epoch 3; received a validation loss of .*--learning-rate"):
        finish_epoch(State(8, epoch=2, seen=8), 0.25, loss, RECIPE)


def test_float16_may_pass_by_some_steps_in_a_row_and_not_all() -> None:
    state, overflow, fine = State(8, scaler={"scale": 2.0}), [1.0, 1.0, math.inf], [1.0, 1.0, 1.0]
    add_steps(
        state, [overflow] * MAX_OVERFLOWS + [fine] + [overflow] * MAX_OVERFLOWS, [8] * (2 * MAX_OVERFLOWS + 1), RECIPE
    )
    assert state.overflows == MAX_OVERFLOWS
    with pytest.raises(LandmarksError, match="broke down"):
        add_steps(state, [overflow], [8], RECIPE)
