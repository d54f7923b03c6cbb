"""Quantising a backbone: activations and weights in 8 bits, weights alone in 8 bits, or weights in half precision.

Activations are quantised statically, with scales from training images, and weights with one scale per output channel.
Weights use only 7 of their 8 bits then: processors without special instructions (AVX2) add pairs of products in 16
bits, which 8-bit weights would overflow, and every machine must give the same answers.
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
"""Training images that determine scales and rounding; as many others measure the result."""

COMPUTED_ON = 0.02
"""Largest mean relative distance of features with 8-bit activations; beyond it only weights are quantised."""

QUANTISED = ("Conv", "Gemm", "MatMul", "Add", "GlobalAveragePool", "Clip", "Relu", "MaxPool", "Concat", "Mul")

ALL, WEIGHTS = "activations and weights", "weights"


@dataclass(frozen=True)
class Quantised:
    """A quantised backbone, and the error of its features on images that were not used for calibration."""

    backbone: onnx.ModelProto
    what: str
    """`ALL` or `WEIGHTS`."""
    apart: float
    """Mean relative distance of its features from those of the original."""
    computed_apart: float
    """The same for the backbone with activations in 8 bits too."""


MANY = 1024
"""Smaller weights stay in single precision, since half precision would save little."""


class _CalibrationImages:
    """onnxruntime's interface to calibration images."""

    def __init__(self, name: str, images: NDArray[np.float32]) -> None:
        self.name, self.remaining = name, iter(images)

    def get_next(self) -> dict[str, Any] | None:
        """Return input name → the next image (1, 3, S, S); None after the last."""
        image = next(self.remaining, None)
        return None if image is None else {self.name: image[None]}


def quantised(backbone: onnx.ModelProto, images: NDArray[np.float32]) -> Quantised:
    """Return `backbone` in 8 bits: activations and weights if its features tolerate that, otherwise weights alone.

    The first half of normalised `images` (N, 3, S, S) determines scales and rounding, the second measures the error.
    """
    half = max(1, len(images) // 2)
    measured_on = images[half:] if len(images) > 1 else images
    expected = features_of(backbone, measured_on)

    def mean_distance(model: onnx.ModelProto) -> float:
        lengths = np.maximum(np.linalg.norm(expected, axis=1), 1e-12)
        return float((np.linalg.norm(features_of(model, measured_on) - expected, axis=1) / lengths).mean())

    computed = in_eight_bits(backbone, images[:half])
    computed_apart = mean_distance(computed)
    if computed_apart <= COMPUTED_ON:
        return Quantised(computed, ALL, computed_apart, computed_apart)
    stored = with_eight_bit_weights(backbone, images[:half])
    return Quantised(stored, WEIGHTS, mean_distance(stored), computed_apart)


def with_half_weights(part: onnx.ModelProto) -> onnx.ModelProto:
    """Return `part` of a graph with its weights stored in half precision; it still computes in single precision."""
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
    """Return `backbone` with 8-bit activations and weights; scales are the extremes of `images`, averaged over them."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    options = {"CalibMovingAverage": True, "WeightSymmetric": True, "ForceQuantizeNoInputCheck": False}
    with tempfile.TemporaryDirectory() as folder, _silent():
        source, target = Path(folder) / "source.onnx", Path(folder) / "quantised.onnx"
        onnx.save_model(backbone, source)
        try:
            quantize_static(
                source,
                target,
                _CalibrationImages(backbone.graph.input[0].name, images),
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
        except Exception as error:  # anything in a network that the quantiser does not support
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise LandmarksError(
                f"the network cannot be quantised ({reason})", way_out="export it without --int8"
            ) from error
        return onnx.load(target)


def features_of(backbone: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the features (N, C) that the ONNX `backbone` computes from normalised images."""
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
