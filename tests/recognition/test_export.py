"""One file that answers like its run, or none at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up_runs import image

import landmarks
from landmarks.dataset.images import decode
from landmarks.recognition.export import export
from landmarks.training.run import Run


@pytest.fixture
def exported(run: Run, tmp_path: Path) -> Path:
    return export(run, tmp_path / "run.onnx", images=6).path


def test_an_export_answers_like_its_run(run: Run, exported: Path) -> None:
    images = [image(11, 1), image(22, 2), decode(image(33, 3))[:, :40]]
    wanted, found = landmarks.load(run).recognise(images), landmarks.load(exported).recognise(images)
    for first, second in zip(wanted, found, strict=True):
        assert [one.name for one in first.answers] == [one.name for one in second.answers]
        np.testing.assert_allclose(
            [one.probability for one in first.answers], [one.probability for one in second.answers], atol=2e-3
        )
