"""An export written by hand, without a run: it keeps the contract of `docs/export.md` and is made in no time."""

from __future__ import annotations

import json
from typing import Any

from onnx import TensorProto, helper

GOOD: dict[str, Any] = {
    "format": 1,
    "version": "0",
    "kind": "float32",
    "backbone": "none",
    "preprocessing": {"image_size": 4, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bicubic", "crop": 1.0},
    "labels": [{"landmark_id": 7, "name": "Tower"}, {"landmark_id": 8, "name": "<b>\u202e"}],
    "temperature": 1.5,
    "rule": None,
    "threshold": None,
    "score": "msp",
}


def by_hand(record: object = GOOD, *, kind: int = TensorProto.UINT8, classes: int = 2, key: str = "landmarks") -> bytes:
    """Return an ONNX file that answers a landmark by how red and blue an image is."""
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels", "sides"], ["features"], keepdims=0),
        helper.make_node("Slice", ["features", "starts", "ends", "axis"], ["some"]),
        helper.make_node("Softmax", ["some"], ["probabilities"]),
        helper.make_node("ReduceMax", ["probabilities", "axis"], ["known_score"], keepdims=0),
        helper.make_node("TopK", ["probabilities", "many"], ["values", "best"]),
    ]
    constants = {"sides": [1, 2], "starts": [0], "ends": [classes], "axis": [1], "many": [classes]}
    outputs = [("probabilities", classes), ("features", 3), ("known_score", None), ("best", classes)]
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("image", kind, ["N", "H", "W", 3])],
        [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name == "best" else TensorProto.FLOAT, ["N"] if size is None else ["N", size]
            )
            for name, size in outputs
        ],
        [helper.make_tensor(name, TensorProto.INT64, [len(values)], values) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    entry = model.metadata_props.add()
    entry.key, entry.value = key, record if isinstance(record, str) else json.dumps(record)
    return bytes(model.SerializeToString())
