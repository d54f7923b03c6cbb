"""Learning rates: pure functions of how far training is, so that a resumed run needs no state for them."""

from __future__ import annotations

import math


def share_of_learning_rate(done: float, warmup_share: float, final_share: float) -> float:
    """Return the factor of the learning rate when the share `done` (0 … 1) of the training is behind.

    It climbs in a straight line over the first `warmup_share`, then falls along half a cosine (Loshchilov & Hutter
    2017) to `final_share`; with `final_share` 1 it stays.
    """
    done = min(max(done, 0.0), 1.0)
    if done < warmup_share:
        return done / warmup_share
    way = (done - warmup_share) / (1 - warmup_share)
    return final_share + (1 - final_share) * (1 + math.cos(math.pi * way)) / 2


def share_done(steps: int, total_steps: int, seconds: float, time_limit: float | None) -> float:
    """Return the share of a training that is behind after `steps` and `seconds`, of at most `time_limit` minutes.

    Under a time limit whichever is further counts, so that the learning rate ends its fall when the time does. The
    step that is about to be taken counts as half done: neither the first nor the last has a learning rate of zero.
    """
    by_steps = (steps + 0.5) / max(total_steps, 1)
    return by_steps if time_limit is None else max(by_steps, seconds / (60 * time_limit))
