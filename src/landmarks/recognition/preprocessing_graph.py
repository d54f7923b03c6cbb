"""The preprocessing of evaluation as an ONNX graph: uint8 images of any size in, the network's normalised input out.

Pillow's antialiased resize multiplies by two matrices of filter weights, one for columns and one for rows, and rounds
to grey levels in between. The graph computes these matrices from the image's height and width. Unlike ONNX's `Resize`
it is exact for a centre crop that begins between two pixels, and it uses only operators that every runtime has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from landmarks.models.preprocessing import Preprocessing
from landmarks.support.errors import LandmarksError

OPSET = 18
READABLE = 10
"""ONNX IR version that is written: the newest that onnxruntime 1.18 reads, on phones too."""

IMAGE, NORMALISED = "image", "normalised"

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
"""Support of Pillow's filters, in output pixels."""


class _Graph:
    """Collects nodes in order; adding one returns the name of its output."""

    def __init__(self, prefix: str = "preprocessing") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: object, kind: type[np.generic] = np.float32) -> str:
        name = f"{self.prefix}.constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def __call__(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{self.prefix}.value_{len(self.nodes)}"
        node = helper.make_node(operator, inputs, [output], name=f"{self.prefix}.{len(self.nodes)}", **attributes)
        self.nodes.append(node)
        return output


def preprocessing_model(preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return the model `image` uint8 (N, H, W, 3) → `normalised` float32 (N, 3, S, S), with N, H and W open.

    It equals `evaluation_image` followed by `normalised`, except for the rounding of single grey levels. Raises
    `LandmarksError` for an unsupported interpolation.
    """
    if preprocessing.interpolation not in SUPPORT:
        raise LandmarksError(
            f'images cannot be resized by "{preprocessing.interpolation}" in an export', expected=", ".join(SUPPORT)
        )
    graph = _Graph()
    size = preprocessing.image_size
    shape = graph("Shape", IMAGE)
    height, width = (graph("Gather", shape, graph.constant(axis, np.int64), axis=0) for axis in (1, 2))
    short = graph("Min", height, width)
    columns = _Axis(graph, preprocessing, width, short)
    rows = _Axis(graph, preprocessing, height, short)
    starts = graph("Concat", rows.first, columns.first, axis=0)
    ends = graph("Concat", rows.end, columns.end, axis=0)
    near = graph("Slice", IMAGE, starts, ends, graph.constant([1, 2], np.int64))
    source = graph("Cast", graph("Transpose", near, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    pixels = _resized(graph, source, rows, columns, _rows_first(graph, size, height, width))
    mean, std = (
        graph.constant(np.asarray(values, dtype=np.float32).reshape(1, 3, 1, 1) * np.float32(255))
        for values in (preprocessing.mean, preprocessing.std)
    )
    graph("Div", graph("Sub", pixels, mean), std, output=NORMALISED)
    input_info = helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["N", "H", "W", 3])
    output_info = helper.make_tensor_value_info(NORMALISED, TensorProto.FLOAT, ["N", 3, size, size])
    onnx_graph = helper.make_graph(graph.nodes, "preprocessing", [input_info], [output_info], graph.constants)
    model = helper.make_model(onnx_graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=READABLE)
    onnx.checker.check_model(model)
    return model


def _rows_first(graph: _Graph, size: int, height: str, width: str) -> str:
    """Return whether Pillow resizes rows before columns: for images much taller than wide, since Pillow 13.0.

    Earlier versions always resize columns first, which changes some pixels of such images by a grey level.
    """
    square = graph.constant(size, np.int64)
    wide = graph("Sub", graph("Add", width, width), square)
    return graph("Greater", height, graph("Max", wide, square))


def _resized(graph: _Graph, source: str, rows: _Axis, columns: _Axis, rows_first: str) -> str:
    """Return the pixels `source` (N, 3, h, w) resized along both axes, (N, 3, S, S)."""
    down, across = rows.weights(), graph("Transpose", columns.weights(), perm=[1, 0])
    branches = {}
    for name in ("then_branch", "else_branch"):
        inside = _Graph(f"preprocessing.{name}")
        if name == "then_branch":
            first = _grey_levels(inside, inside("MatMul", down, source))
            both = _grey_levels(inside, inside("MatMul", first, across))
        else:
            first = _grey_levels(inside, inside("MatMul", source, across))
            both = _grey_levels(inside, inside("MatMul", down, first))
        output_info = helper.make_tensor_value_info(both, TensorProto.FLOAT, None)
        branches[name] = helper.make_graph(inside.nodes, f"preprocessing.{name}", [], [output_info], inside.constants)
    return graph("If", rows_first, **branches)


class _Axis:
    """One axis of an image: the position of each output pixel's centre, and the range of pixels within its reach.

    A centre is kept as a whole pixel and a fraction of two integers, since float32 is not precise enough.
    """

    def __init__(self, graph: _Graph, preprocessing: Preprocessing, length: str, short: str) -> None:
        size, shorter = preprocessing.image_size, preprocessing.shorter
        self.graph, self.interpolation = graph, preprocessing.interpolation
        self.denominator = graph.constant(2 * shorter, np.int64)
        steps = graph.constant(2 * np.arange(size) + 1 - size, np.int64)
        # The centre of output pixel x: length / 2 + (x + 1/2 - size / 2) · short / shorter.
        scaled = graph("Mul", length, graph.constant(shorter, np.int64))
        numerator = graph("Add", scaled, graph("Mul", short, steps))
        self.whole = graph("Div", numerator, self.denominator)
        self.rest = graph("Sub", numerator, graph("Mul", self.whole, self.denominator))
        ratio = graph("Div", graph("Cast", short, to=TensorProto.FLOAT), graph.constant(shorter))
        self.stretch = graph("Max", ratio, graph.constant(1))
        span = graph("Mul", self.stretch, graph.constant(SUPPORT[self.interpolation]))
        reach = graph("Add", graph("Cast", graph("Ceil", span), to=TensorProto.INT64), graph.constant(1, np.int64))
        lowest, highest = (graph("Gather", self.whole, graph.constant([at], np.int64), axis=0) for at in (0, size - 1))
        one = graph.constant([1], np.int64)
        self.first = graph("Max", graph("Sub", lowest, reach), graph.constant([0], np.int64))
        self.end = graph("Min", graph("Add", graph("Add", highest, reach), one), length)

    def weights(self) -> str:
        """Return the matrix float32 (S, T) of the weights of the T pixels within reach for each of S output pixels."""
        graph, zero = self.graph, self.graph.constant([0], np.int64)
        first, end = (graph("Squeeze", place, zero) for place in (self.first, self.end))
        taps = graph("Unsqueeze", graph("Range", first, end, graph.constant(1, np.int64)), zero)
        one = graph.constant([1], np.int64)
        distance = graph("Cast", graph("Sub", taps, graph("Unsqueeze", self.whole, one)), to=TensorProto.FLOAT)
        share = graph(
            "Div",
            graph("Cast", self.rest, to=TensorProto.FLOAT),
            graph("Cast", self.denominator, to=TensorProto.FLOAT),
        )
        offset = graph("Unsqueeze", graph("Sub", graph.constant(0.5), share), one)
        weights = self._filter(graph("Div", graph("Add", distance, offset), self.stretch))
        weights = graph("Div", weights, graph("ReduceSum", weights, one, keepdims=1))
        steps = graph.constant(2**22)  # Pillow rounds weights to integers, which can decide between two grey levels
        return graph("Div", graph("Round", graph("Mul", weights, steps)), steps)

    def _filter(self, distance: str) -> str:
        """Return Pillow's filter (Resample.c) of signed distances in output pixels."""
        graph = self.graph
        absolute, zero = graph("Abs", distance), graph.constant(0)
        if self.interpolation == "bilinear":
            return graph("Max", graph("Sub", graph.constant(1), absolute), zero)
        if self.interpolation == "bicubic":  # Keys 1981 with a = -1/2
            near = _polynomial(graph, absolute, [1.5, -2.5, 0.0, 1.0])
            far = _polynomial(graph, absolute, [-0.5, 2.5, -4.0, 2.0])
            outside = graph("Where", graph("Less", absolute, graph.constant(2)), far, zero)
            return graph("Where", graph("Less", absolute, graph.constant(1)), near, outside)
        window = graph("Mul", _sinc(graph, absolute), _sinc(graph, graph("Div", absolute, graph.constant(3))))
        return graph("Where", graph("Less", absolute, graph.constant(3)), window, zero)


def _polynomial(graph: _Graph, value: str, coefficients: list[float]) -> str:
    """Return the polynomial of `value` with `coefficients` from the highest power down (Horner)."""
    total = graph.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        total = graph("Add", graph("Mul", total, value), graph.constant(coefficient))
    return total


def _sinc(graph: _Graph, value: str) -> str:
    angle = graph("Mul", value, graph.constant(np.pi))
    at_zero = graph("Equal", angle, graph.constant(0))
    safe = graph("Where", at_zero, graph.constant(1), angle)
    return graph("Where", at_zero, graph.constant(1), graph("Div", graph("Sin", safe), safe))


def _grey_levels(graph: _Graph, values: str) -> str:
    """Return values as Pillow stores them between its two passes: integers from 0 to 255, halves rounded up."""
    rounded = graph("Floor", graph("Add", values, graph.constant(0.5)))
    return graph("Clip", rounded, graph.constant(0), graph.constant(255))
