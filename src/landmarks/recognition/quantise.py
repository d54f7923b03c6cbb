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


MANY = 1024
"""Numbers of a weight from which on half precision saves room."""


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
    _, _, model, best = min(tried, key=lambda one: one[:2])
    return model, best.name


def with_half_weights(backbone: onnx.ModelProto) -> onnx.ModelProto:
    """Return `backbone` with its weights in half precision: half the size; it computes in single precision as before.

    For networks whose activations differ too much from channel to channel for eight bits, as MobileNet's do.
    """
    model = onnx.ModelProto()
    model.CopyFrom(backbone)
    casts = []
    for tensor in list(model.graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < MANY:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        model.graph.initializer.remove(tensor)
        small = f"{tensor.name}.half"
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), small))
        casts.append(helper.make_node("Cast", [small], [tensor.name], to=onnx.TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)
    return model


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
