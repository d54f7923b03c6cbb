"""The divisions that are tried here are of the same few images, which are compared once."""

from __future__ import annotations

from made_up_runs import _compared_once

__all__ = ["_compared_once"]
