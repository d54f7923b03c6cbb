"""The same surroundings for everyone, and fixtures that many rooms use: the miniature, the real images."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import none


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what only Linux can try on other systems."""
    if sys.platform != "linux":
        for item in items:
            if item.get_closest_marker("linux"):
                item.add_marker(pytest.mark.skip(reason="needs what Linux alone has"))


@given(none())
def _first(_: None) -> None:
    """A property that holds, so that hypothesis has found numpy's generator: it looks where nothing frozen is seen."""


def pytest_collection_finish() -> None:
    """What has been imported by now stays until the end: the garbage collector need not look at it again and again."""
    _first()
    gc.collect()
    gc.freeze()


SHARED = Path(__file__).resolve().parents[2] / "shared"

# The same examples every time, however slow the machine; `pytest --hypothesis-profile search` looks for new ones.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("settled", settings.get_profile("search"), derandomize=True)
settings.load_profile("settled")

OF_A_PERSON = ("COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE")
OF_A_LAUNCHER = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")

# What somebody has set for other work must not reach the tests: widths, colours, proxies, credentials, processes. Here
# and not in a fixture, since torch, rich and typer look into the environment once, when they are imported.
for name in list(os.environ):
    foreign = name.lower().endswith("_proxy") or name.startswith(("ACCELERATE_", "AWS_", "HF_"))
    if foreign or name in OF_A_PERSON + OF_A_LAUNCHER:
        del os.environ[name]
os.environ["NETRC"] = os.devnull
# Dozens of tests start the program anew, which is slow where it is compiled each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What a shell starts in the background ignores Ctrl-C, and what nohup starts a terminal that is closed; so would all
# programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ["OMP_NUM_THREADS"] = "1"  # sums are the same with any number of cores, and workers leave each other room


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What is drawn from torch's own generator does not depend on the tests before."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` keeps stack traces for devices that are not here


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Copies of mirrors' files go into a folder of this session's, not into the person's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser without a window, or a skip with the reason."""
    from real_browser import chromium

    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights; tests that use it carry the marker `shared`."""
    if not (SHARED / "mirror").is_dir():
        pytest.skip(f"the real images are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small made-up mirror: 6 landmarks of about 7 images, a test set with 6 images of anything else."""
    from landmarks.miniature.make import make_miniature

    folder = tmp_path_factory.mktemp("miniature") / "mirror"
    return make_miniature(folder, landmarks=6, images=7, unknown=6, size=96)


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
