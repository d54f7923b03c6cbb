"""Weights as 8-bit integers, rounded so that a layer's outputs on training images change as little as possible.

A weight is an integer times its output channel's scale, multiplied when the file is opened: the network computes in
single precision. The rounding is GPTQ (Frantar et al. 2022, arXiv 2210.17323): the error in a layer's outputs from
rounding the weights of one input is compensated, as far as possible, by the weights of inputs not yet rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from landmarks.support.seeds import generator

SMALL = 16384
"""Smaller weights stay in single precision: first layers suffer most from rounding, and take little space."""

LARGE = 65536
"""The same limit for weights after the backbone."""

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
    part: onnx.ModelProto, images: NDArray[np.float32] | None = None, *, least: int = SMALL
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
