"""Fixtures that many rooms use: the miniature archive, and the real photographs where they lie."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what only Linux can try on other systems."""
    if sys.platform != "linux":
        for item in items:
            if item.get_closest_marker("linux"):
                item.add_marker(pytest.mark.skip(reason="needs what Linux alone has"))


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and weights; tests that use it carry the marker `shared`."""
    if not (SHARED / "mirror").is_dir():
        pytest.skip(f"the real photographs are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small made-up mirror: 6 landmarks of about 7 photographs, a test set with 6 photographs of anything else."""
    from landmarks.archive.miniature import make_miniature

    folder = tmp_path_factory.mktemp("miniature") / "mirror"
    return make_miniature(folder, landmarks=6, photographs=7, others=6, size=96)


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Mount folders over themselves so that they may only be read, for the system's owner too, until the test ends."""
    mounted: list[Path] = []

    def mount(folder: Path) -> None:
        if subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode:
            pytest.skip("no folder can be mounted here")
        mounted.append(folder)
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], capture_output=True, check=True)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)
