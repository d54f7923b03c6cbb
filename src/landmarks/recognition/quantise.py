"""A network's backbone in fewer bits: eight for all that it computes, eight for its weights alone, or half precision.

What is computed in eight bits is static, with one scale per output channel, seen on training images. Weights use seven
of their eight bits there: processors without special instructions (AVX2) add products of pairs in sixteen bits, which
full weights overflow, and every machine is to give the same answers.
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

from landmarks.recognition.eight_bit_weights import with_eight_bit_weights
from landmarks.support.errors import LandmarksError

CALIBRATED_ON = 64
"""Training images that decide scales and rounding, and as many again that the outcome is judged by."""

COMPUTED_ON = 0.02
"""Where features lie farther off than this share of their length, in the mean, weights alone are in eight bits."""

QUANTISED = ("Conv", "Gemm", "MatMul", "Add", "GlobalAveragePool", "Clip", "Relu", "MaxPool", "Concat", "Mul")

ALL, WEIGHTS = "activations and weights", "weights"


@dataclass(frozen=True)
class Quantised:
    """A backbone in eight bits: what is in them, and how far its features lie off on images of their own."""

    backbone: onnx.ModelProto
    what: str
    """`ALL` or `WEIGHTS`."""
    apart: float
    """Mean distance of features, of their length."""
    computed_apart: float
    """The same with activations in eight bits too."""


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


def quantised(backbone: onnx.ModelProto, images: NDArray[np.float32]) -> Quantised:
    """Return `backbone` in eight bits: activations too where its features bear that, weights alone elsewhere.

    The first half of normalised `images` (N, 3, S, S) decides scales and rounding, the second is asked about.
    """
    half = max(1, len(images) // 2)
    asked = images[half:] if len(images) > 1 else images
    wanted = features_of(backbone, asked)

    def apart(model: onnx.ModelProto) -> float:
        lengths = np.maximum(np.linalg.norm(wanted, axis=1), 1e-12)
        return float((np.linalg.norm(features_of(model, asked) - wanted, axis=1) / lengths).mean())

    computed = in_eight_bits(backbone, images[:half])
    computed_apart = apart(computed)
    if computed_apart <= COMPUTED_ON:
        return Quantised(computed, ALL, computed_apart, computed_apart)
    stored = with_eight_bit_weights(backbone, images[:half])
    return Quantised(stored, WEIGHTS, apart(stored), computed_apart)


def with_half_weights(part: onnx.ModelProto) -> onnx.ModelProto:
    """Return `part` of a graph with its weights in half precision; it computes in single precision as before."""
    model = onnx.ModelProto()
    model.CopyFrom(part)
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


def in_eight_bits(backbone: onnx.ModelProto, images: NDArray[np.float32]) -> onnx.ModelProto:
    """Return `backbone` computing in eight bits, with scales from the extremes of `images`, averaged over them."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    options = {"CalibMovingAverage": True, "WeightSymmetric": True, "ForceQuantizeNoInputCheck": False}
    with tempfile.TemporaryDirectory() as folder, _silent():
        given, path = Path(folder) / "given.onnx", Path(folder) / "quantised.onnx"
        onnx.save_model(backbone, given)
        try:
            quantize_static(
                given,
                path,
                _Images(backbone.graph.input[0].name, images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
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


def features_of(backbone: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the features (N, C) that `backbone`, in ONNX, gives of normalised images."""
    name, output = backbone.graph.input[0].name, backbone.graph.output[-1].name
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(backbone.SerializeToString(), options, providers=["CPUExecutionProvider"])
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
