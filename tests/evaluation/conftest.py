"""The dataset and the run that tests of answers and numbers use."""

from __future__ import annotations

from made_up_runs import _compared_once, _short_features, own_data, run, test_data

__all__ = ["_compared_once", "_short_features", "own_data", "run", "test_data"]
