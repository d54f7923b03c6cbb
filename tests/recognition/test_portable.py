"""An export comes from anybody, and is asked without PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_exports import GOOD, by_hand
from onnx import TensorProto, helper

from landmarks.recognition.portable import MOST_AT_ONCE, open_export
from landmarks.recognition.portable_record import read_export_record
from landmarks.support.errors import LandmarksError


def written(folder: Path, data: bytes) -> Path:
    path = folder / "one.onnx"
    path.write_bytes(data)
    return path


def test_a_file_that_keeps_the_contract_is_answered_whoever_wrote_it(tmp_path: Path) -> None:
    network = open_export(written(tmp_path, by_hand()))
    red, blue = np.zeros((5, 4, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)
    red[..., 0], blue[..., 1] = 9, 9
    outputs = network.outputs([red, red, blue])
    assert outputs.best[:, 0].tolist() == [0, 0, 1] and outputs.features.shape == (3, 3) and outputs.maps is None
    answers = network.answer([red, blue], np.array([0, -1]), 5)
    assert answers.labels.tolist() == [[0, 1], [1, 0]] and np.isnan(answers.truth_log_scores).tolist() == [False, True]
    assert network.record.names == ["Tower", "<b>\u202e"]


def test_images_of_one_size_share_passes_wherever_they_stand_and_keep_their_order(tmp_path: Path) -> None:
    network = open_export(written(tmp_path, by_hand()))
    session, passes = network.session, []

    class Counting:
        def run(self, wanted: list[str], inputs: dict[str, np.ndarray]) -> Any:
            passes.append(inputs["image"].shape)
            return session.run(wanted, inputs)

    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (3 + at % 2, 4, 3), dtype=np.uint8) for at in range(2 * MOST_AT_ONCE + 2)]
    together = replace(network, session=Counting()).outputs(images)
    assert passes == [(size, height, 4, 3) for height in (3, 4) for size in (MOST_AT_ONCE, 1)]
    one_by_one = np.concatenate([network.outputs([image]).features for image in images])
    assert np.allclose(together.features, one_by_one) and len(np.unique(one_by_one, axis=0)) == len(images)


HOSTILE = {
    "no ONNX": (b"not a network", "cannot be opened by onnxruntime"),
    "nothing": (b"", "cannot be opened by onnxruntime"),
    "cut off": (by_hand()[:200], "cannot be opened by onnxruntime|no export of a run"),
    "somebody's network": (by_hand(key="author"), "no export of a run"),
    "no JSON": (by_hand("{"), "its record is no JSON"),
    "deep JSON": (by_hand("[" * 100_000), "its record is no JSON"),
    "a list": (by_hand("[]"), "its record has no format"),
    "a newer format": (by_hand({**GOOD, "format": 99}), "newer version; received format 99"),
    "floats": (by_hand(kind=TensorProto.FLOAT), "takes something else"),
    "too few landmarks": (by_hand({**GOOD, "labels": GOOD["labels"][:1]}), "its record names 1"),
    "no landmarks": (by_hand({**GOOD, "labels": []}), "cannot be understood: ValueError labels"),
    "a long name": (by_hand({**GOOD, "labels": [{"landmark_id": 1, "name": "x" * 5000}] * 2}), "too long"),
    "a name that is a list": (by_hand({**GOOD, "labels": [{"landmark_id": 1, "name": ["x"]}] * 2}), "too long"),
    "a huge id": (by_hand({**GOOD, "labels": [{"landmark_id": 2**70, "name": "x"}] * 2}), "not a 64-bit integer"),
    "no temperature": (by_hand({**GOOD, "temperature": float("nan")}), "temperature"),
    "a huge square": (
        by_hand({**GOOD, "preprocessing": {**GOOD["preprocessing"], "image_size": 10**9}}),
        "ValueError preprocessing",
    ),
    "a rule without a threshold": (
        by_hand({**GOOD, "rule": {"name": "msp", "weights": {"msp": 1}, "constant": 0}}),
        "threshold",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_export_is_one_line(kind: str, tmp_path: Path) -> None:
    data, why = HOSTILE[kind]
    with pytest.raises(LandmarksError, match=why) as raised:
        open_export(written(tmp_path, data))
    assert len(str(raised.value)) < 1000


def test_a_record_without_end_is_not_read() -> None:
    with pytest.raises(LandmarksError, match="larger than"):
        read_export_record("x" * (256 * 1024**2 + 1), "place")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(GOOD)), inner, max_size=5),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), JSON, max_size=4))
def test_a_record_with_anything_in_it_is_read_or_refused_in_one_line(changes: dict[str, Any]) -> None:
    try:
        record = read_export_record(json.dumps({**GOOD, **changes}), "place")
    except LandmarksError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(name, str) for name in record.names)


def test_a_graph_that_answers_no_numbers_is_refused_when_asked(tmp_path: Path) -> None:
    model = onnx.load_from_string(by_hand())
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Sqrt"
    softmax.ClearField("attribute")
    scaled = next(node for node in model.graph.node if node.op_type == "Cast")
    scaled.output[0] = "plain"
    model.graph.node.insert(1, helper.make_node("Neg", ["plain"], ["levels"]))
    network = open_export(written(tmp_path, model.SerializeToString()))
    with pytest.raises(LandmarksError, match="does not answer as it promised"):
        network.outputs([np.full((2, 2, 3), 9, np.uint8)])


@pytest.mark.parametrize("decided", [None, "0"])
def test_answering_tells_nobody_and_leaves_no_id_at_home_unless_the_user_wants_it(
    decided: str | None, tmp_path: Path
) -> None:
    export, home = written(tmp_path, by_hand()), tmp_path / "home"
    home.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    environment |= {"HOME": str(home), "USERPROFILE": str(home)} | (
        {"ORT_DISABLE_TELEMETRY": decided} if decided else {}
    )
    program = (
        "import os, sys; import landmarks; landmarks.load(sys.argv[1]); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(export)], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == (decided or "1")
    if decided is None:
        assert [path for path in home.rglob("*") if "onnxruntime" in path.name.lower()] == []
