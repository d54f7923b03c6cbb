"""Fixtures that many rooms use: the miniature archive, and the real photographs where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and weights; tests that use it carry the marker `shared`."""
    if not (SHARED / "mirror").is_dir():
        pytest.skip(f"the real photographs are not at {SHARED}")
    return SHARED
