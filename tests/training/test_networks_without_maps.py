"""Networks that end in branches, or in tokens that are no square of positions: all but heat maps works with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from striped import make_dataset, painted

from landmarks.dataset.images import encode
from landmarks.evaluation.evaluate import evaluate
from landmarks.explanation.explain import explain
from landmarks.recognition.predict import predict
from landmarks.support.errors import LandmarksError
from landmarks.support.tables import read_table
from landmarks.training.plan import plan
from landmarks.training.train import train


@pytest.mark.slow
@pytest.mark.parametrize("backbone, image_size", [("coat_lite_tiny", 32), ("volo_d1_224", 32), ("crossvit_9_240", 240)])
def test_a_network_without_maps_does_everything_but_draw_them(backbone: str, image_size: int, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", landmarks=2, train=4, val=2, test=2).folder
    settings: dict[str, Any] = {"backbone": backbone, "image_size": image_size, "batch_size": 4, "epochs": 1}
    settings |= {"device": "cpu", "workers": 1, "tracking": "none", "head_epochs": 2}
    assert plan(data, weights="none", **settings).memory_mb > 0
    first = train(data, tmp_path / "first", weights="none", **settings)
    assert first.record["network"]["maps"] is False

    settings["gradient_checkpointing"] = True  # blocks whose inputs come in lists and tuples
    assert plan(data, weights="none", **settings).memory_mb > 0
    again = train(data, tmp_path / "again", weights=first.folder, **settings)
    assert read_table(again.folder / "history.parquet")["phase"].unique().sort().to_list() == ["finetune", "head"]
    assert list((data / "features").glob("*/features.npy"))
    assert evaluate(again.folder).record["known"] == 4
    file = tmp_path / "image.jpg"
    file.write_bytes(encode(painted(1, 99)))
    assert set(predict(again.folder, [file])["landmark_id"]) == {100, 101}

    message = f"{backbone} has no maps to draw .*; explain a run with another network"
    with pytest.raises(LandmarksError, match=message) as no:
        explain(again.folder, [file])
    assert "\n" not in str(no.value)
    assert not (again.folder / "maps" / "index.json").exists()
