from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from landmarks.dataset import importing, storing
from landmarks.dataset.images import encode
from landmarks.dataset.storing import Budget, pixels_decoded


def test_never_more_is_taken_than_there_is_and_everybody_is_served() -> None:
    budget, lock = Budget(10), threading.Lock()
    used, most, served = 0, 0, 0

    def take(amount: int) -> None:
        nonlocal used, most, served
        with budget.taking(amount):
            with lock:
                used += min(amount, 10)
                most = max(most, used)
            with lock:
                used -= min(amount, 10)
                served += 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(take, [1, 3, 7, 10, 25] * 100))
    assert served == 500
    assert most <= 10


def test_what_fails_gives_back_what_it_took() -> None:
    budget = Budget(5)
    with pytest.raises(ZeroDivisionError), budget.taking(5):
        _ = 1 / 0
    with budget.taking(5):
        pass


def test_a_jpeg_that_is_shrunk_counts_at_the_scale_at_which_it_is_decoded(tmp_path: Path) -> None:
    jpeg = encode(np.zeros((1000, 2000, 3), dtype=np.uint8))
    Image.new("RGB", (2000, 1000)).save(tmp_path / "a.png")
    assert pixels_decoded(jpeg, None) == 2_000_000
    assert pixels_decoded(jpeg, 512) == 1000 * 500
    assert pixels_decoded(jpeg, 100) == 250 * 125
    assert pixels_decoded((tmp_path / "a.png").read_bytes(), 100) == 2_000_000


@pytest.mark.parametrize("copy", [True, False])
def test_an_import_on_many_cores_decodes_no_more_pixels_at_once_than_on_one(
    copy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(24):
        path = tmp_path / "folder" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    lock, decoding, most = threading.Lock(), 0, 0
    name = "prepare" if copy else "decode"
    original = getattr(storing, name)

    def counted(*arguments: Any) -> Any:
        nonlocal decoding, most
        with lock:
            decoding += 1
            most = max(most, decoding)
        try:
            return original(*arguments)
        finally:
            with lock:
                decoding -= 1

    monkeypatch.setattr(storing, name, counted)
    monkeypatch.setattr(storing, "usable_processors", lambda: 32)
    monkeypatch.setattr(storing, "PIXELS_IN_FLIGHT", Budget(3 * 40 * 50))
    dataset = importing.import_(tmp_path / "folder", tmp_path / "data", copy=copy)
    assert len(dataset.images) == 24
    assert most <= 3
