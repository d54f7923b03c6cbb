"""A network's backbone in whole numbers of eight bits: static, one scale per output channel, seen on training images.

Weights use seven of their eight bits. Processors without special instructions (AVX2) add products of pairs in sixteen
bits, which full weights overflow; so that every machine gives the same answers, nothing may.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from landmarks.support.errors import LandmarksError

CALIBRATED_ON = 128
"""Training images whose activations decide the scales, and as many again by which the best way is chosen."""

QUANTISED = ("Conv", "Gemm", "MatMul", "Add", "GlobalAveragePool", "Clip", "Relu", "MaxPool", "Concat", "Mul")


@dataclass(frozen=True)
class Way:
    """One way to choose the scales of activations."""

    name: str
    average: bool
    """Whether the extremes of batches are averaged, or the largest taken."""
    operators: tuple[str, ...] = QUANTISED


WAYS = (
    Way("largest values", average=False),
    Way("mean of largest values", average=True),
    Way("mean of largest values, products alone", average=True, operators=("Conv", "Gemm", "MatMul")),
)


FAR = 0.05
"""Mean distance of features from those in single precision, of their length, beyond which no way will do."""

WEIGHTS_ALONE = "weights alone"
"""The way that is left then, see `with_small_weights`."""

MANY = 1024
"""Numbers of a weight from which on it is worth a scale."""


class _Images:
    """What onnxruntime reads its calibration images from."""

    def __init__(self, name: str, images: NDArray[np.float32]) -> None:
        self.name, self.left = name, iter(images)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next image (1, 3, S, S) by the name of the input; None after the last."""
        image = next(self.left, None)
        return None if image is None else {self.name: image[None]}


def quantised(backbone: onnx.ModelProto, images: NDArray[np.float32]) -> tuple[onnx.ModelProto, str]:
    """Return `backbone` in whole numbers and the name of the way by which its features came out nearest.

    The first half of normalised `images` (N, 3, S, S) decides the scales, the second which way is best.
    """
    half = max(1, len(images) // 2)
    asked = images[half:] if len(images) > 1 else images
    name, output = backbone.graph.input[0].name, backbone.graph.output[-1].name
    wanted = _features(backbone, name, output, asked)
    tried: list[tuple[float, int, onnx.ModelProto, Way]] = []
    for way in WAYS:
        model = _by(way, backbone, _Images(name, images[:half]))
        found = _features(model, name, output, asked)
        apart = np.linalg.norm(found - wanted, axis=1) / np.maximum(np.linalg.norm(wanted, axis=1), 1e-12)
        tried.append((float(apart.mean()), len(tried), model, way))
    apart_by, _, model, best = min(tried, key=lambda one: one[:2])
    if apart_by > FAR:
        return with_small_weights(backbone), WEIGHTS_ALONE
    return model, best.name


def with_small_weights(backbone: onnx.ModelProto) -> onnx.ModelProto:
    """Return `backbone` with its large weights in eight bits, one scale per output channel; it computes as before.

    As small as with activations in eight bits, as slow as in single precision, and nearly exact: for networks whose
    activations differ too much from channel to channel, as MobileNet's do.
    """
    model = onnx.ModelProto()
    model.CopyFrom(backbone)
    axes = {  # which axis of a weight holds the output channels
        node.input[1]: 1 if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _transposed(node)) else 0
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and len(node.input) > 1
    }
    dequantised = []
    for tensor in list(model.graph.initializer):
        if tensor.name not in axes or tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < MANY:
            continue
        values, axis = numpy_helper.to_array(tensor), axes[tensor.name]
        others = tuple(place for place in range(values.ndim) if place != axis)
        scales = np.maximum(np.abs(values).max(axis=others), 1e-12).astype(np.float32) / 127
        shape = [-1 if place == axis else 1 for place in range(values.ndim)]
        whole = np.round(values / scales.reshape(shape)).astype(np.int8)
        model.graph.initializer.remove(tensor)
        small, scale = f"{tensor.name}.int8", f"{tensor.name}.scale"
        model.graph.initializer.extend([numpy_helper.from_array(whole, small), numpy_helper.from_array(scales, scale)])
        dequantised.append(helper.make_node("DequantizeLinear", [small, scale], [tensor.name], axis=axis))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(dequantised + nodes)
    return model


def _transposed(node: onnx.NodeProto) -> bool:
    return any(one.name == "transB" and one.i == 1 for one in node.attribute)


def _by(way: Way, backbone: onnx.ModelProto, images: _Images) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    options = {"CalibMovingAverage": way.average, "WeightSymmetric": True, "ForceQuantizeNoInputCheck": False}
    with tempfile.TemporaryDirectory() as folder, _silent():
        given, path = Path(folder) / "given.onnx", Path(folder) / "quantised.onnx"
        onnx.save_model(backbone, given)
        try:
            quantize_static(
                given,
                path,
                images,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(way.operators),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options=options,
            )
        except MemoryError:
            raise
        except Exception as error:  # whatever a network has that the quantiser does not know
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise LandmarksError(
                f"the network cannot be quantised ({reason})", way_out="export it without --int8"
            ) from error
        return onnx.load(path)


def _features(model: onnx.ModelProto, name: str, output: str, images: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run([output], {name: image[None]})[0] for image in images])


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
