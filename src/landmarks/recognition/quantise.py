"""Quantising a backbone: activations and weights in 8 bits, weights alone in 8 bits, or weights in half precision.

Activations are quantised statically, with scales from training images, and weights with one scale per output channel.
Weights use only 7 of their 8 bits then: processors without special instructions (AVX2) add pairs of products in 16
bits, which 8-bit weights would overflow, and every machine must give the same answers.

If weights alone are quantised, a weight is an integer times its output channel's scale, multiplied when the file is
opened: the network computes in single precision. The rounding is GPTQ (Frantar et al. 2022, arXiv 2210.17323): the
error in a layer's outputs from rounding the weights of one input is compensated, as far as possible, by the weights of
inputs not yet rounded.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from landmarks.support.errors import LandmarksError
from landmarks.support.seeds import generator

CALIBRATED_ON = 64
"""Training images that determine scales and rounding; as many others measure the result."""

COMPUTED_ON = 0.02
"""Largest mean relative distance of features with 8-bit activations; beyond it only weights are quantised."""

QUANTISED = ("Conv", "Gemm", "MatMul", "Add", "GlobalAveragePool", "Clip", "Relu", "MaxPool", "Concat", "Mul")

LEAST_FOR_HALF = 1024
"""Smaller weights stay in single precision, since half precision would save little."""

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
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < LEAST_FOR_HALF:
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


# ── Weights as 8-bit integers, rounded so that a layer's outputs change as little as possible ───────────────────────


LEAST_FOR_EIGHT_BITS = 16384
"""Smaller weights stay in single precision: first layers suffer most from rounding, and take little space."""

LEAST_AFTER_BACKBONE = 65536
"""The same for weights after the backbone."""

POSITIONS = 256
"""Positions per image at which the inputs of a layer are sampled."""

MAX_INPUTS = 2304
"""Layers with more inputs per output are rounded to nearest, as the time of GPTQ grows with the cube."""

DAMPING = 0.01
"""Added to the diagonal of the inputs' second moments, as a share of its mean, as in GPTQ."""

BLOCK = 128
"""Inputs that are rounded before the remaining weights are corrected together."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """A convolution or a matrix product, with its weight."""

    node: onnx.NodeProto
    weight: NDArray[np.float32]
    transposed: bool
    """Whether the weight is stored as (inputs, outputs)."""

    @property
    def matrix(self) -> NDArray[np.float32]:
        """The weight as (outputs, inputs)."""
        return self.weight.T if self.transposed else self.weight.reshape(len(self.weight), -1)

    def attribute(self, name: str, default: Any) -> Any:
        values = (helper.get_attribute_value(entry) for entry in self.node.attribute if entry.name == name)
        return next(values, default)

    @property
    def is_sampled(self) -> bool:
        """Whether its inputs can be sampled, and are few enough for GPTQ."""
        if self.matrix.shape[1] > MAX_INPUTS:
            return False
        if self.node.op_type != "Conv":
            return not self.attribute("transA", 0)
        return bool(self.attribute("group", 1) == 1 and self.attribute("auto_pad", b"NOTSET") == b"NOTSET")


def with_eight_bit_weights(
    part: onnx.ModelProto, images: NDArray[np.float32] | None = None, *, least: int = LEAST_FOR_EIGHT_BITS
) -> onnx.ModelProto:
    """Return `part` of a graph with all weights of at least `least` numbers as 8-bit integers.

    The weights of a backbone are rounded for normalised `images` (N, 3, S, S); without images, to nearest.
    """
    model = onnx.ModelProto()
    model.CopyFrom(part)
    layers = _layers(model, least)
    moments: dict[str, NDArray[np.float64]] = {}
    if images is not None:
        sampled = {name: layer for name, layer in layers.items() if layer.is_sampled}
        moments = _second_moments(model, sampled, images)
    multiplications = []
    for tensor in list(model.graph.initializer):
        layer = layers.get(tensor.name)
        if layer is None:
            continue
        integers, scales = rounded(layer.matrix, moments.get(tensor.name))
        if layer.transposed:
            integers, scales = integers.T, scales.reshape(1, -1)
        else:
            integers, scales = integers.reshape(layer.weight.shape), scales.reshape(-1, *[1] * (layer.weight.ndim - 1))
        model.graph.initializer.remove(tensor)
        small, scale, single = (f"{tensor.name}.{kind}" for kind in ("int8", "scale", "single"))
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(integers), small))
        model.graph.initializer.append(numpy_helper.from_array(scales, scale))
        multiplications.append(helper.make_node("Cast", [small], [single], to=onnx.TensorProto.FLOAT))
        multiplications.append(helper.make_node("Mul", [single, scale], [tensor.name]))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(multiplications + nodes)
    return model


def rounded(
    matrix: NDArray[np.float32], moments: NDArray[np.float64] | None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return integers int8 (O, I) and scales (O,) whose products approximate `matrix` (O, I).

    `moments` (I, I) are the sums of products of the inputs; without them numbers are rounded to nearest.
    """
    scales = (np.maximum(np.abs(matrix).max(axis=1), 1e-12) / 127).astype(np.float32)
    steps = matrix.astype(np.float64) / scales[:, None]
    if moments is None:
        return np.rint(steps).astype(np.int8), scales
    inputs = len(moments)
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments[np.ix_(order, order)] + np.eye(inputs) * max(DAMPING * np.trace(moments) / inputs, 1e-12)
    steps, integers = steps[:, order], np.zeros(matrix.shape)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        errors = np.zeros((len(steps), end - start))
        for at in range(start, end):
            integers[:, at] = np.clip(np.rint(steps[:, at]), -127, 127)
            errors[:, at - start] = (steps[:, at] - integers[:, at]) / upper[at, at]
            steps[:, at + 1 : end] -= np.outer(errors[:, at - start], upper[at, at + 1 : end])
        steps[:, end:] -= errors @ upper[start:end, end:]
    restored = np.empty_like(integers)
    restored[:, order] = integers
    return restored.astype(np.int8), scales


def _layers(model: onnx.ModelProto, least: int) -> dict[str, _Layer]:
    """Return name of weight → layer, for weights of at least `least` numbers; of layers that share one, the first."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    layers: dict[str, _Layer] = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in weights or node.input[1] in layers:
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])
        if weight.size < least or (node.op_type != "Conv" and weight.ndim != 2):
            continue
        layer = _Layer(node, weight, transposed=False)
        transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not layer.attribute("transB", 0))
        layers[node.input[1]] = replace(layer, transposed=transposed)
    return layers


def _second_moments(
    model: onnx.ModelProto, layers: dict[str, _Layer], images: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Return name of weight → sums (I, I) of products of its layer's inputs at sampled positions of the images."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    name = model.graph.input[0].name
    available = {output.name for output in model.graph.output} | {name}
    for tensor in dict.fromkeys(layer.node.input[0] for layer in layers.values()):
        if tensor not in available:
            extended.graph.output.append(helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs, random = [output.name for output in extended.graph.output], generator(0, "positions")
    moments: dict[str, NDArray[np.float64]] = {}
    for image in images:
        values = dict(zip(outputs, session.run(outputs, {name: image[None]}), strict=True)) | {name: image[None]}
        for weight, layer in layers.items():
            rows = _inputs(layer, values[layer.node.input[0]], random)
            products = (rows.T @ rows).astype(np.float64)
            moments[weight] = moments[weight] + products if weight in moments else products
    return moments


def _inputs(layer: _Layer, values: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Return the inputs (P, I) of P sampled outputs of a layer, given its input `values`."""
    if layer.node.op_type != "Conv":
        rows = values.reshape(-1, values.shape[-1])
        return rows[random.permutation(len(rows))[:POSITIONS]]
    sides = layer.weight.shape[2:]
    (down, across), (high, wide) = layer.attribute("strides", [1, 1]), layer.attribute("dilations", [1, 1])
    top, left, bottom, right = layer.attribute("pads", [0, 0, 0, 0])
    padded = np.pad(values[0], ((0, 0), (top, bottom), (left, right)))
    window = ((sides[0] - 1) * high + 1, (sides[1] - 1) * wide + 1)
    windows = sliding_window_view(padded, window, axis=(1, 2))[:, ::down, ::across, ::high, ::wide]
    places = random.permutation(windows.shape[1] * windows.shape[2])[:POSITIONS]
    sampled = windows[:, places // windows.shape[2], places % windows.shape[2]]
    return np.ascontiguousarray(sampled.transpose(1, 0, 2, 3)).reshape(len(places), -1)
