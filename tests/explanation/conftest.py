"""The dataset and the run that tests of heat maps use."""

from __future__ import annotations

from colour_runs import colour_run, striped

__all__ = ["colour_run", "striped"]
