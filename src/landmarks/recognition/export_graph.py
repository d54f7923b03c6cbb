"""A run's recogniser as one ONNX graph: preprocessing, network, temperature, the score for known, heat maps."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from dataclasses import dataclass

import onnx
import torch
from onnx import compose, helper
from torch import Tensor, nn

from landmarks.models.backbones import is_mean_of_maps
from landmarks.models.gradcam import channel_weights, has_head_gradient, weighted_maps
from landmarks.models.network import Network
from landmarks.recognition.export_gallery import GalleryScores
from landmarks.recognition.export_learning import Learning, LearningScores
from landmarks.recognition.known_scores import COMPARING, MSP
from landmarks.recognition.portable_learning import TRAINED_SCORES, WHITENED
from landmarks.recognition.preprocessing_graph import NORMALISED, OPSET, READABLE, preprocessing_model
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
