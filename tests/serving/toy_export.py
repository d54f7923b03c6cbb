"""A small export made with onnx alone: random filters, and a head solved on a few images; seconds, not a training.

The graph has the form of every export: uint8 images (N, H, W, 3) of any size in; probabilities, features, the score for
known against unknown, the best labels and their heat maps out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 64
"""Side in pixels of what the network sees: the centre of the image, reduced."""

FILTERS, KERNEL, STRIDE = 48, 9, 8


def write_toy_export(
    path: Path,
    images: Sequence[NDArray[np.uint8]],
    labels: Sequence[int],
    names: Sequence[str],
    *,
    threshold: float | None = 0.5,
    maps: bool = True,
    **facts: object,
) -> Path:
    """Write an export that has seen `images` (H, W, 3) of `labels`; `facts` are added to what its metadata tell."""
    random = np.random.default_rng(3)
    filters = random.normal(0, 0.1, (FILTERS, 3, KERNEL, KERNEL)).astype(np.float32)
    blank = np.zeros((FILTERS, len(names)), dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(_model(filters, blank, len(names), maps, {}), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    features = np.concatenate([session.run(["features"], {"image": one[None]})[0] for one in images])
    targets = np.eye(len(names), dtype=np.float64)[list(labels)]
    gram = features.T @ features + 1e-4 * np.eye(FILTERS)
    weights = 6 * np.linalg.solve(gram, features.T @ targets)
    record = {
        "labels": [{"landmark_id": 100 + label, "name": name} for label, name in enumerate(names)],
        "threshold": threshold,
        "backbone": "toy",
        "image_size": SIZE,
        "preprocessing": {"image_size": SIZE, "crop": 1.0},
        "licence": {"weights": "Apache-2.0"},
        "credits": {},
        "run": {"name": "toy", "digest": "0123456789abcdef"},
        **facts,
    }
    onnx.save(_model(filters, weights.astype(np.float32), len(names), maps, record), path)
    return path


def answer_of(export: Path, image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return what onnxruntime in Python says to one image (H, W, 3): the oracle of the page."""
    session = onnxruntime.InferenceSession(export, providers=["CPUExecutionProvider"])
    outputs = [one.name for one in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, {"image": image[None]}), strict=True))


def _model(
    filters: NDArray[np.float32], weights: NDArray[np.float32], landmarks: int, maps: bool, record: dict[str, object]
) -> onnx.ModelProto:
    best = min(4, landmarks)
    constants: dict[str, NDArray[Any]] = {
        "filters": filters,
        "weights": weights,
        "two": np.array(2, dtype=np.int64),
        "middle": np.array([1, 2], dtype=np.int64),
        "first": np.array(0, dtype=np.int64),
        "second": np.array(1, dtype=np.int64),
        "unit": np.array([1], dtype=np.int64),
        "size": np.array([SIZE, SIZE], dtype=np.int64),
        "scale": np.array(1 / 128, dtype=np.float32),
        "half": np.array(128, dtype=np.float32),
        "best_count": np.array([best], dtype=np.int64),
        "space": np.array([2, 3], dtype=np.int64),
        "last": np.array([1], dtype=np.int64),
        "tiny": np.array(1e-6, dtype=np.float32),
    }
    node = helper.make_node
    nodes = [
        # The largest square in the middle.
        node("Shape", ["image"], ["sides"], start=1, end=3),
        node("ReduceMin", ["sides"], ["shorter"], keepdims=1),
        node("Sub", ["sides", "shorter"], ["beyond"]),
        node("Div", ["beyond", "two"], ["starts"]),
        node("Add", ["starts", "shorter"], ["ends"]),
        node("Slice", ["image", "starts", "ends", "middle"], ["square"]),
        node("Transpose", ["square"], ["planes"], perm=[0, 3, 1, 2]),
        node(
            "Resize",
            ["planes", "", "", "size"],
            ["small"],
            mode="cubic",
            antialias=1,
            cubic_coeff_a=-0.5,
            axes=[2, 3],
            coordinate_transformation_mode="half_pixel",
        ),
        node("Cast", ["small"], ["numbers"], to=TensorProto.FLOAT),
        node("Sub", ["numbers", "half"], ["centred"]),
        node("Mul", ["centred", "scale"], ["normal"]),
        node("Conv", ["normal", "filters"], ["responses"], strides=[STRIDE, STRIDE], pads=[4, 4, 4, 4]),
        node("Relu", ["responses"], ["activations"]),
        node("ReduceMean", ["activations", "space"], ["features"], keepdims=0),
        node("MatMul", ["features", "weights"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
        node("TopK", ["probabilities", "best_count"], ["best_scores", "best"], axis=1),
        node("ReduceMax", ["probabilities", "last"], ["known_score"], keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", landmarks]),
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FILTERS]),
        helper.make_tensor_value_info("known_score", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("best", TensorProto.INT64, ["N", best]),
    ]
    if maps:
        constants["rows"] = np.ascontiguousarray(weights.T)
        nodes += [
            node("Gather", ["rows", "best"], ["chosen"], axis=0),  # (N, A, C)
            node("Einsum", ["chosen", "activations"], ["heat"], equation="nac,nchw->nahw"),
            node("Relu", ["heat"], ["warm"]),
            node("ReduceMax", ["warm", "space"], ["warmest"], keepdims=1),
            node("Max", ["warmest", "tiny"], ["divisor"]),
            node("Div", ["warm", "divisor"], ["maps"]),
        ]
        outputs.append(helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", best, "h", "w"]))
    unused = {name for name in constants if not any(name in one.input for one in nodes)}
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name not in unused],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"landmarks": json.dumps(record)})
    onnx.checker.check_model(model, full_check=True)
    return model
