"""A run's recogniser as one ONNX graph: preprocessing, network, temperature, the score for known, heat maps."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import compose, helper
from torch import Tensor, nn

from landmarks.models.gradcam import channel_weights, has_head_gradient, is_mean_of_maps, weighted_maps
from landmarks.models.network import Network
from landmarks.recognition.directions import Directions
from landmarks.recognition.export_learning import Learning, LearningScores
from landmarks.recognition.gallery import NEIGHBOURS, WARMTH, Gallery, centre_of_unknown, sample
from landmarks.recognition.known_scores import COMPARING, CONTRAST, KNN, KNN_UNKNOWN, MAHALANOBIS, MSP, WITH_UNKNOWN
from landmarks.recognition.portable_learning import TRAINED_SCORES, WHITENED
from landmarks.recognition.preprocessing_graph import NORMALISED, OPSET, READABLE, preprocessing_model
from landmarks.recognition.recogniser import Recogniser
from landmarks.support.errors import LandmarksError

MAPPED = 4
"""Best answers whose heat maps are drawn; with fewer landmarks, all."""

MAX_GALLERY_BYTES = 32 * 1024**2
"""Size of the remembered images in the graph, in half precision: 13,000 of them of 1,280 numbers."""

KEPT = 0.99
"""Share of the squares of remembered images' directions that a compact export keeps, on their main axes."""

LAST_MAPS, FEATURES = "last_maps", "features"
OUTPUTS = ("probabilities", "known_score", "best", "maps")


@dataclass(frozen=True, eq=False)
class Parts:
    """The graph in the pieces that it is made of, so that one of them can be quantised alone."""

    preprocessing: onnx.ModelProto
    backbone: onnx.ModelProto  # normalised → (last_maps,) features
    tail: onnx.ModelProto  # (last_maps,) features → probabilities, known_score, best (, maps)
    maps: str
    """Why there are no heat maps; empty: there are."""


def graph_parts(recogniser: Recogniser, *, compact: bool = False, learning: Learning | None = None) -> Parts:
    """Return the parts of a trained recogniser's graph; `compact` keeps remembered images in fewer and smaller
    numbers, and with `learning` it says what landmarks are learned from.

    Raises `LandmarksError` for a network that PyTorch cannot export, with its reason.
    """
    network = copy.deepcopy(recogniser.trained).cpu().to(memory_format=torch.contiguous_format)
    why = why_no_maps(network)
    size = network.preprocessing.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    backbone = _Backbone(network, with_maps=not why).eval()
    kind = _Tail if why else _TailWithMaps
    tail = kind(recogniser, network, compact=compact, learning=learning).eval()
    inputs, outputs = [FEATURES], [FEATURES]
    named = list(OUTPUTS[:3])
    if not why:
        inputs, outputs, named = [LAST_MAPS, FEATURES], [LAST_MAPS, FEATURES], list(OUTPUTS)
    if learning is not None:
        named += [WHITENED, TRAINED_SCORES]
    with torch.no_grad():
        between = backbone(images)
    return Parts(
        preprocessing=preprocessing_model(network.preprocessing),
        backbone=_exported(backbone, (images,), [NORMALISED], outputs, network.backbone_name),
        tail=_exported(tail, between, inputs, named, network.backbone_name),
        maps=why,
    )


@torch.no_grad()
def why_no_maps(network: Network) -> str:
    """Return why no heat map of `network` can be written down without a backward pass; empty: it can."""
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
    """What follows the features: all of it small, and kept in single precision."""

    def __init__(self, recogniser: Recogniser, network: Network, *, compact: bool, learning: Learning | None) -> None:
        super().__init__()
        self.head, self.temperature = network.head, recogniser.temperature
        self.answers = min(MAPPED, network.classes)
        self.rule = recogniser.rule
        self.weights = {MSP: 1.0} if self.rule is None else dict(self.rule.weights)
        needs = COMPARING & set(self.weights)
        self.learning = None if learning is None else LearningScores(learning, network.width)
        self.gallery = None if not needs else _GalleryScores(recogniser.gallery, needs, network.width, compact=compact)

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


class _GalleryScores(nn.Module):
    """What compares an image with the run's training images, see `recognition.gallery`; weights in half precision.

    A compact one keeps remembered images in eight bits a number, with a scale each, on the axes that hold `KEPT` of
    their squares where that takes less room; and what whitens in eight bits, but for its diagonal, which is some fifty
    times as large as what stands beside it.
    """

    images: Tensor
    scales: Tensor
    axes: Tensor
    axis_scales: Tensor
    labels: Tensor
    mean: Tensor
    centres: Tensor
    unknown: Tensor
    unknown_centre: Tensor

    def __init__(self, gallery: Gallery | None, needs: frozenset[str], width: int, *, compact: bool) -> None:
        super().__init__()
        if gallery is None or (gallery.unknown is None and needs & WITH_UNKNOWN):
            raise LandmarksError(
                "the run has a threshold, but not the images that it compares with",
                way_out="choose it again with: landmarks evaluate RUN --data TEST --false-acceptance RATE",
            )
        self.needs = needs
        self.directions = Directions(width)
        if KNN in needs:
            limit = max(1, MAX_GALLERY_BYTES // (2 * gallery.images.shape[1]))
            kept = sample(gallery.labels, limit)
            images = torch.from_numpy(gallery.images[kept].T.copy())
            scales = torch.ones(1)
            self.has_axes = False
            if compact:
                axes = _main_axes(images.double())
                self.has_axes = axes.shape[1] * sum(images.shape) < images.numel()
                if self.has_axes:
                    images = axes.T @ images.double()
                    for name, values in zip(("axes", "axis_scales"), _in_eight_bits(axes), strict=True):
                        self.register_buffer(name, values)
                images, scales = _in_eight_bits(images)
            self.register_buffer("images", images)
            self.register_buffer("scales", scales)
            self.register_buffer("labels", torch.from_numpy(gallery.labels[kept]))
        if {MAHALANOBIS, CONTRAST} & needs:
            for name in ("mean", "centres"):
                self.register_buffer(name, torch.from_numpy(getattr(gallery, name)).half())
            self.within, self.overall = _Whitening(gallery.within, compact), _Whitening(gallery.overall, compact)
        if gallery.unknown is not None and needs & WITH_UNKNOWN:
            self.register_buffer("unknown", torch.from_numpy(gallery.unknown.images.T.copy()))
            centre = torch.from_numpy(centre_of_unknown(gallery, gallery.unknown))
            self.register_buffer("unknown_centre", centre.half())

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return score name → (N,) of features (N, C)."""
        images = self.directions(features)
        scores = {}
        if KNN in self.needs:
            seen = (images @ self.axes.float()) * self.axis_scales if self.has_axes else images
            cosines, places = ((seen @ self.images.float()) * self.scales).topk(
                min(NEIGHBOURS, len(self.labels)), dim=1
            )
            labels = self.labels[places]
            same = (labels[:, :, None] == labels[:, None, :]).float()
            votes = (same * ((cosines[:, None, :] - 1) / WARMTH).exp()).sum(2)
            scores[KNN] = votes.amax(1).clamp(min=1e-30).log()
        if KNN_UNKNOWN in self.needs:
            cosines = (images @ self.unknown.float()).topk(min(NEIGHBOURS, self.unknown.shape[1]), dim=1).values
            scores[KNN_UNKNOWN] = -((cosines - 1) / WARMTH).exp().sum(1).clamp(min=1e-30).log()
        if {MAHALANOBIS, CONTRAST} & self.needs:
            white, centres = self.within(images), self.centres.float()
            nearest = white.square().sum(1) + (centres.square().sum(1) - 2 * white @ centres.T).amin(1)
            if MAHALANOBIS in self.needs:
                overall = self.overall(images - self.mean.float()).square().sum(1)
                scores[MAHALANOBIS] = overall - nearest
            if CONTRAST in self.needs:
                scores[CONTRAST] = (white - self.unknown_centre.float()).square().sum(1) - nearest
        return scores


class _Whitening(nn.Module):
    """Multiplies images (N, C) by a matrix (C, C): in half precision, or in eight bits beside a diagonal in single."""

    matrix: Tensor
    scales: Tensor
    diagonal: Tensor

    def __init__(self, matrix: NDArray[np.float32], compact: bool) -> None:
        super().__init__()
        whole = torch.from_numpy(matrix)
        self.compact = compact
        if not compact:
            self.register_buffer("matrix", whole.half())
            return
        diagonal = whole.diagonal().clone()
        for name, values in zip(("matrix", "scales"), _in_eight_bits(whole - diagonal.diag()), strict=True):
            self.register_buffer(name, values)
        self.register_buffer("diagonal", diagonal)

    def forward(self, images: Tensor) -> Tensor:
        """Return the product (N, C)."""
        if not self.compact:
            return images @ self.matrix.float()
        return (images @ self.matrix.float()) * self.scales + images * self.diagonal


def _main_axes(images: Tensor) -> Tensor:
    """Return the orthogonal axes (C, A) that hold `KEPT` of the squares of images (C, N), the heaviest first."""
    squares, axes = torch.linalg.eigh(images @ images.T)
    squares, axes = squares.flip(0).clamp(min=0), axes.flip(1)
    count = int((squares.cumsum(0) < KEPT * squares.sum()).sum()) + 1
    main: Tensor = axes[:, :count]
    return main


def _in_eight_bits(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return `columns` (C, N) as whole numbers int8 and a scale (N,) each."""
    scales = columns.float().abs().amax(0).clamp(min=1e-12) / 127
    return (columns.float() / scales).round().to(torch.int8), scales


def _exported(
    module: nn.Module, given: tuple[Tensor, ...], inputs: list[str], outputs: list[str], name: str
) -> onnx.ModelProto:
    """Return `module` as ONNX, its batch open; nothing is printed."""
    batch = torch.export.Dim("N", min=1)
    shapes = tuple({0: batch} for _ in given)
    quiet = [logging.getLogger(room) for room in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in quiet]
    try:
        for logger in quiet:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                given,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except MemoryError:
        raise
    except Exception as error:  # PyTorch's exporter has a dozen kinds
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


def joined(parts: Parts) -> onnx.ModelProto:
    """Return the parts as one model, `image` uint8 (N, H, W, 3) in, and `OUTPUTS` with `features` out."""
    backbone = compose.add_prefix(parts.backbone, "backbone.", rename_inputs=False, rename_outputs=False)
    tail = compose.add_prefix(parts.tail, "tail.", rename_inputs=False, rename_outputs=False)
    models = [parts.preprocessing, backbone, tail]
    given = parts.preprocessing.graph.input
    ends = {one.name: one for model in models[1:] for one in model.graph.output}
    order = ("probabilities", FEATURES, "known_score", "best", "maps", WHITENED, TRAINED_SCORES)
    names = [name for name in order if name in ends]
    graph = helper.make_graph(
        [node for model in models for node in model.graph.node],
        "landmarks",
        given,
        [ends[name] for name in names],
        [tensor for model in models for tensor in model.graph.initializer],
    )
    opsets = {one.domain: one.version for model in models for one in model.opset_import}
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*one) for one in opsets.items()])
    model.ir_version = READABLE
    model.functions.extend(function for one in models for function in one.functions)
    model.producer_name = "landmarks"
    return model
