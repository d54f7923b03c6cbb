"""Weights in whole numbers of eight bits, rounded so that a layer's outputs on training images change least.

A weight is a whole number times its output channel's scale, multiplied out when the file is opened: the network
computes in single precision. Rounding is GPTQ (Frantar et al. 2022, arXiv 2210.17323): what rounding one input's
weights does to a layer's outputs is made up for, as far as possible, by the weights of the inputs still to be rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from landmarks.support.seeds import generator

SMALL = 16384
"""Weights of fewer numbers stay in single precision: first layers suffer most from rounding and take little room."""

LARGE = 65536
"""Behind the backbone, weights of fewer numbers are worth more bits than they take."""

POSITIONS = 256
"""Places of an image at which a layer's inputs are looked at."""

MAX_INPUTS = 2304
"""Layers with more inputs to an output are rounded number by number: the work grows with the cube."""

DAMPING = 0.01
"""Added to the inputs' second moments, of their mean; as in GPTQ."""

BLOCK = 128
"""Inputs that are rounded before the weights of all others are corrected at once."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """A convolution or a matrix product with its weight, which is (outputs, inputs) as a matrix."""

    node: onnx.NodeProto
    weight: NDArray[np.float32]
    transposed: bool
    """Whether the weight lies as (inputs, outputs)."""

    @property
    def matrix(self) -> NDArray[np.float32]:
        return self.weight.T if self.transposed else self.weight.reshape(len(self.weight), -1)

    def attribute(self, name: str, otherwise: Any) -> Any:
        return next((helper.get_attribute_value(one) for one in self.node.attribute if one.name == name), otherwise)

    @property
    def is_looked_at(self) -> bool:
        """Whether the inputs of its outputs can be had, and are few enough."""
        if self.matrix.shape[1] > MAX_INPUTS:
            return False
        if self.node.op_type != "Conv":
            return not self.attribute("transA", 0)
        return bool(self.attribute("group", 1) == 1 and self.attribute("auto_pad", b"NOTSET") == b"NOTSET")


def with_eight_bit_weights(
    part: onnx.ModelProto, images: NDArray[np.float32] | None = None, *, least: int = SMALL
) -> onnx.ModelProto:
    """Return `part` of a graph with its weights of `least` numbers or more in eight bits.

    A backbone's are rounded for normalised `images` (N, 3, S, S); without these each number is rounded to the nearest.
    """
    model = onnx.ModelProto()
    model.CopyFrom(part)
    layers = _layers(model, least)
    looked_at = {} if images is None else {name: layer for name, layer in layers.items() if layer.is_looked_at}
    moments = {} if images is None else _second_moments(model, looked_at, images)
    made = []
    for tensor in list(model.graph.initializer):
        layer = layers.get(tensor.name)
        if layer is None:
            continue
        whole, scales = rounded(layer.matrix, moments.get(tensor.name))
        if layer.transposed:
            whole, scales = whole.T, scales.reshape(1, -1)
        else:
            whole, scales = whole.reshape(layer.weight.shape), scales.reshape(-1, *[1] * (layer.weight.ndim - 1))
        model.graph.initializer.remove(tensor)
        small, scale, single = (f"{tensor.name}.{kind}" for kind in ("int8", "scale", "single"))
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(whole), small))
        model.graph.initializer.append(numpy_helper.from_array(scales, scale))
        made.append(helper.make_node("Cast", [small], [single], to=onnx.TensorProto.FLOAT))
        made.append(helper.make_node("Mul", [single, scale], [tensor.name]))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(made + nodes)
    return model


def rounded(
    matrix: NDArray[np.float32], moments: NDArray[np.float64] | None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return whole numbers int8 (O, I) and scales (O,) whose product comes near `matrix` (O, I).

    `moments` (I, I) are the sums of products of the inputs; without them each number is rounded to the nearest.
    """
    scales = (np.maximum(np.abs(matrix).max(axis=1), 1e-12) / 127).astype(np.float32)
    steps = matrix.astype(np.float64) / scales[:, None]
    if moments is None:
        return np.rint(steps).astype(np.int8), scales
    inputs = len(moments)
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments[np.ix_(order, order)] + np.eye(inputs) * max(DAMPING * np.trace(moments) / inputs, 1e-12)
    steps, whole = steps[:, order], np.zeros(matrix.shape)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        errors = np.zeros((len(steps), end - start))
        for at in range(start, end):
            whole[:, at] = np.clip(np.rint(steps[:, at]), -127, 127)
            errors[:, at - start] = (steps[:, at] - whole[:, at]) / upper[at, at]
            steps[:, at + 1 : end] -= np.outer(errors[:, at - start], upper[at, at + 1 : end])
        steps[:, end:] -= errors @ upper[start:end, end:]
    back = np.empty_like(whole)
    back[:, order] = whole
    return back.astype(np.int8), scales


def _layers(model: onnx.ModelProto, least: int) -> dict[str, _Layer]:
    """Return weight's name → layer for those of `least` numbers or more; a weight of two layers is looked at in one."""
    weights = {one.name: one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    found: dict[str, _Layer] = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in weights or node.input[1] in found:
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])
        if weight.size < least or (node.op_type != "Conv" and weight.ndim != 2):
            continue
        as_it_lies = _Layer(node, weight, transposed=False)
        lies_across = node.op_type == "MatMul" or (node.op_type == "Gemm" and not as_it_lies.attribute("transB", 0))
        found[node.input[1]] = _Layer(node, weight, transposed=lies_across)
    return found


def _second_moments(
    model: onnx.ModelProto, layers: dict[str, _Layer], images: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Return weight's name → sums (I, I) of products of its layer's inputs at some places of the images."""
    looking = onnx.ModelProto()
    looking.CopyFrom(model)
    name = model.graph.input[0].name
    there = {one.name for one in model.graph.output} | {name}
    for given in dict.fromkeys(layer.node.input[0] for layer in layers.values()):
        if given not in there:
            looking.graph.output.append(helper.make_tensor_value_info(given, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(looking.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs, random = [one.name for one in looking.graph.output], generator(0, "positions")
    moments: dict[str, NDArray[np.float64]] = {}
    for image in images:
        values = dict(zip(outputs, session.run(outputs, {name: image[None]}), strict=True)) | {name: image[None]}
        for weight, layer in layers.items():
            rows = _inputs(layer, values[layer.node.input[0]], random)
            products = (rows.T @ rows).astype(np.float64)
            moments[weight] = moments[weight] + products if weight in moments else products
    return moments


def _inputs(layer: _Layer, values: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Return the inputs (P, I) of some of a layer's outputs, of its input as a whole."""
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
    seen = windows[:, places // windows.shape[2], places % windows.shape[2]]
    return np.ascontiguousarray(seen.transpose(1, 0, 2, 3)).reshape(len(places), -1)
