"""A classifier in closed form on features: ridge regression to one column per landmark, one solve for any number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from landmarks.support.errors import LandmarksError
from landmarks.training.ridge import MAX_SIDE, Ridge, moments_of

if TYPE_CHECKING:
    from landmarks.training.features import Rows

PENALTY = 0.2
"""λ as a share of the features' mean squared length per dimension; between 0.05 and 0.5 little changes."""


def fitted_ridge(x: Rows | NDArray[np.floating], y: NDArray[np.integer], classes: int) -> Ridge:
    """Return the regression of features `x` `(P, C)` to labels `y` `(P,)`; see `training/ridge.py`.

    Raises `LandmarksError` where photographs and features are both too many to be solved for.
    """
    moments = moments_of(x, y, classes)
    if moments is None:
        raise LandmarksError(
            "the features are too long for a regression on so many photographs",
            received=f"{x.shape[1]:,} numbers, {x.shape[0]:,} photographs",
            expected=f"at most {MAX_SIDE:,} of either",
        )
    return moments.fitted(PENALTY)


def ridge_scores(
    x: NDArray[np.floating], y: NDArray[np.integer], asked: NDArray[np.floating], classes: int
) -> NDArray[np.float64]:
    """Return the regression's values `(Q, classes)` for `asked` `(Q, C)`, fitted to `x` `(P, C)` with labels `y`.

    Values near +1 mean yes, near -1 no. Time grows with P·C·min(P, C).
    """
    ridge = fitted_ridge(x, y, classes)
    return np.hstack([ridge.values(asked, ridge.weights(first, last), first) for first, last in ridge.blocks()])
