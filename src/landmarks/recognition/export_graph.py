"""A run's recogniser as one ONNX graph: preprocessing, network, temperature, the score for known, heat maps.

Preprocessing takes uint8 images of any size. Pillow's antialiased resize multiplies by two matrices of
filter weights, one for columns and one for rows, and rounds to grey levels in between. The graph computes these
matrices from the image's height and width. Unlike ONNX's `Resize` it is exact for a centre crop that begins between two
pixels, and it uses only operators that every runtime has.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from torch import Tensor, nn

from landmarks.models.backbones import is_mean_of_maps
from landmarks.models.gradcam import channel_weights, has_head_gradient, weighted_maps
from landmarks.models.network import Network
from landmarks.models.preprocessing import Preprocessing
from landmarks.recognition.answers import COMPARING, MSP
from landmarks.recognition.export_scores import GalleryScores, Learning, LearningScores
from landmarks.recognition.learned import TRAINED_SCORES, WHITENED
from landmarks.recognition.recogniser import Recogniser
from landmarks.support.errors import LandmarksError

MAPPED = 4
"""Best answers whose heat maps are drawn; with fewer landmarks, all."""

LAST_MAPS, FEATURES = "last_maps", "features"
OUTPUTS = ("probabilities", "known_score", "best", "maps")


@dataclass(frozen=True, eq=False)
class GraphParts:
    """The three parts of the graph, so that the backbone can be quantised alone."""

    preprocessing: onnx.ModelProto
    backbone: onnx.ModelProto  # normalised → (last_maps,) features
    tail: onnx.ModelProto  # (last_maps,) features → probabilities, known_score, best (, maps)
    maps: str
    """Why there are no heat maps; empty: there are."""


def graph_parts(recogniser: Recogniser, *, compact: bool = False, learning: Learning | None = None) -> GraphParts:
    """Return the parts of a trained recogniser's graph.

    `compact` stores remembered images in less room (see `export_gallery`); `learning` adds the outputs that landmarks
    are learned from.

    Raises `LandmarksError` for a network that PyTorch cannot export, with its reason.
    """
    network = copy.deepcopy(recogniser.trained).cpu().to(memory_format=torch.contiguous_format)
    why = why_no_maps(network)
    size = network.preprocessing.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    backbone = _Backbone(network, with_maps=not why).eval()
    kind = _Tail if why else _TailWithMaps
    tail = kind(recogniser, network, compact=compact, learning=learning).eval()
    between = [FEATURES] if why else [LAST_MAPS, FEATURES]
    outputs = list(OUTPUTS[:3] if why else OUTPUTS)
    if learning is not None:
        outputs += [WHITENED, TRAINED_SCORES]
    with torch.no_grad():
        example = backbone(images)
    return GraphParts(
        preprocessing=preprocessing_model(network.preprocessing),
        backbone=_exported(backbone, (images,), [NORMALISED], between, network.backbone_name),
        tail=_exported(tail, example, between, outputs, network.backbone_name),
        maps=why,
    )


@torch.no_grad()
def why_no_maps(network: Network) -> str:
    """Return why the graph cannot hold heat maps, which have to do without a backward pass; empty: it can."""
    size = network.preprocessing.image_size
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        maps, features = network.maps_and_features(noise.to(next(network.parameters()).device))
    except LandmarksError as error:
        return str(error)
    if not has_head_gradient(network.head):
        return "the heat maps of landmarks that were learned need a backward pass"
    if is_mean_of_maps(maps, features):
        return ""
    return f"{network.backbone_name} does not average its last maps: its heat maps need a backward pass"


class _Backbone(nn.Module):
    def __init__(self, network: Network, *, with_maps: bool) -> None:
        super().__init__()
        self.network, self.with_maps = network, with_maps

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the last maps, if wanted, and the features of normalised images."""
        if self.with_maps:
            return self.network.maps_and_features(images)
        return (self.network.features(images),)


class _Tail(nn.Module):
    """What follows the features. It is small, and computes in single precision."""

    def __init__(self, recogniser: Recogniser, network: Network, *, compact: bool, learning: Learning | None) -> None:
        super().__init__()
        self.head, self.temperature = network.head, recogniser.temperature
        self.answers = min(MAPPED, network.classes)
        self.rule = recogniser.rule
        self.weights = {MSP: 1.0} if self.rule is None else dict(self.rule.weights)
        needs = COMPARING & set(self.weights)
        self.learning = None if learning is None else LearningScores(learning, network.width)
        self.gallery = None if not needs else GalleryScores(recogniser.gallery, needs, network.width, compact=compact)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return probabilities, known_score and best of features (N, C), and what is learned from."""
        logits = self.head(features)
        probabilities = (logits / self.temperature).softmax(1)
        best = logits.topk(self.answers, dim=1).indices  # in ONNX the smaller label of two equal ones is first
        scores = {MSP: probabilities.amax(1), "energy": logits.logsumexp(1)}
        if self.gallery is not None:
            scores |= self.gallery(features)
        known = torch.stack([weight * scores[name] for name, weight in self.weights.items()]).sum(0)
        known = known + (0.0 if self.rule is None else self.rule.constant)
        return (probabilities, known, best, *(() if self.learning is None else self.learning(features)))


class _TailWithMaps(_Tail):
    def forward(self, last_maps: Tensor, features: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return what `_Tail` does and the heat maps of the best, from maps (N, C, h, w) and features (N, C)."""
        probabilities, known, best, *learning = super().forward(features)
        heat = weighted_maps(last_maps, channel_weights(self.head, last_maps, features, best))
        warmest = heat.amax((-2, -1), keepdim=True).clamp(min=1e-30)  # where nothing is warm, 0 by it is 0
        return (probabilities, known, best, heat / warmest, *learning)


def _exported(
    module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], name: str
) -> onnx.ModelProto:
    """Return `module`, traced with an `example` of its inputs, as ONNX for any number of images; print nothing."""
    batch = torch.export.Dim("N", min=1)
    shapes = tuple({0: batch} for _ in example)
    quiet = [logging.getLogger(room) for room in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in quiet]
    try:
        for logger in quiet:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                example,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except MemoryError:
        raise
    except Exception as error:  # PyTorch's exporter raises a dozen exception types
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise LandmarksError(
            f"{name} cannot be exported by PyTorch ({reason})", way_out="name a run of another network"
        ) from error
    finally:
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    frozen = [one.name for one in model.graph.output if not one.type.tensor_type.shape.dim[0].dim_param]
    if frozen:
        raise LandmarksError(
            f"{name} cannot be exported for any number of images: {', '.join(frozen)} have a fixed one",
            way_out="name a run of another network",
        )
    return model


def joined(parts: GraphParts) -> onnx.ModelProto:
    """Return the parts as one model: input `image` uint8 (N, H, W, 3), outputs `OUTPUTS` and `features`."""
    backbone = compose.add_prefix(parts.backbone, "backbone.", rename_inputs=False, rename_outputs=False)
    tail = compose.add_prefix(parts.tail, "tail.", rename_inputs=False, rename_outputs=False)
    models = [parts.preprocessing, backbone, tail]
    ends = {one.name: one for model in models[1:] for one in model.graph.output}
    order = ("probabilities", FEATURES, "known_score", "best", "maps", WHITENED, TRAINED_SCORES)
    names = [name for name in order if name in ends]
    graph = helper.make_graph(
        [node for model in models for node in model.graph.node],
        "landmarks",
        parts.preprocessing.graph.input,
        [ends[name] for name in names],
        [tensor for model in models for tensor in model.graph.initializer],
    )
    opsets = {one.domain: one.version for model in models for one in model.opset_import}
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*one) for one in opsets.items()])
    model.ir_version = READABLE
    model.functions.extend(function for one in models for function in one.functions)
    model.producer_name = "landmarks"
    return model


# ── Preprocessing: uint8 images of any size in, the network's normalised input out ──────────────────────────────────


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
