"""Quantised backbones: what is stored, what is computed, and that rounding is for what a layer sees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from landmarks.models.network import Network, build_network
from landmarks.recognition import quantise
from landmarks.recognition.export_graph import _Backbone, _exported
from landmarks.recognition.quantise import (
    ALL,
    LEAST_FOR_EIGHT_BITS,
    WEIGHTS,
    _inputs,
    _Layer,
    features_of,
    in_eight_bits,
    quantised,
    rounded,
    with_eight_bit_weights,
)


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    """Smooth noise, since neighbouring pixels of images are alike."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.normal(size=(12, 3, 8, 8)).astype(np.float32))
    return np.asarray(nn.functional.interpolate(coarse, size=64, mode="bicubic"))


def in_onnx(network: Network) -> onnx.ModelProto:
    module = _Backbone(network, with_maps=False).eval()
    return _exported(module, (torch.randn(2, 3, 64, 64),), ["normalised"], ["features"], "test")


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def backbone(request: pytest.FixtureRequest) -> Iterator[onnx.ModelProto]:
    yield in_onnx(build_network(request.param, classes=3, weights="none", head="linear", image_size=64, seed=1))


def apart(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float((np.linalg.norm(wanted - found, axis=1) / np.linalg.norm(wanted, axis=1)).mean())


def test_large_weights_are_whole_numbers_and_features_stay_where_they_are(
    backbone: onnx.ModelProto, images: NDArray[np.float32]
) -> None:
    before = backbone.SerializeToString()
    small = with_eight_bit_weights(backbone, images[:6])
    assert backbone.SerializeToString() == before
    onnx.checker.check_model(small)
    weights = {one.name: numpy_helper.to_array(one) for one in small.graph.initializer}
    whole = sum(one.size for one in weights.values() if one.dtype == np.int8)
    large = sum(np.prod(one.dims) for one in backbone.graph.initializer if np.prod(one.dims) >= LEAST_FOR_EIGHT_BITS)
    assert whole > 0.8 * large
    assert len(small.SerializeToString()) < len(before) - 2.5 * whole
    assert 0 < apart(features_of(backbone, images[6:]), features_of(small, images[6:])) < 0.02


def test_any_number_of_images_is_answered_as_each_alone(backbone: onnx.ModelProto, images: NDArray[np.float32]) -> None:
    small = with_eight_bit_weights(backbone, images[:2])
    session = onnxruntime.InferenceSession(small.SerializeToString())
    together = session.run(["features"], {"normalised": images[:3]})[0]
    np.testing.assert_allclose(together, features_of(small, images[:3]), rtol=1e-3, atol=1e-4)


class _Products(nn.Module):
    """A small and a large weight, and one that lies across, as heads and remembered images do."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Linear(30, 400), nn.Linear(400, 5)
        self.register_buffer("across", torch.randn(400, 60))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        wide = self.large(features).relu()
        return torch.cat([self.small(wide), wide @ self.across], dim=1)  # type: ignore[operator]


def test_without_images_the_large_weights_of_any_part_are_rounded_to_the_nearest() -> None:
    torch.manual_seed(0)
    module = _Products().eval()
    part = _exported(module, (torch.randn(2, 30),), ["features"], ["scores"], "test")
    small = with_eight_bit_weights(part, least=10_000)
    onnx.checker.check_model(small)
    assert sorted(one.size for one in map(numpy_helper.to_array, small.graph.initializer) if one.dtype == np.int8) == [
        30 * 400, 60 * 400
    ]  # fmt: skip
    for weight, axis in ((module.large.weight, 1), (module.across, 0)):
        scale = weight.abs().amax(axis, keepdim=True) / 127
        weight.data = (weight / scale).round() * scale
    features = torch.randn(7, 30)
    outputs = onnxruntime.InferenceSession(small.SerializeToString()).run(None, {"features": features.numpy()})[0]
    np.testing.assert_allclose(outputs, module(features).detach().numpy(), rtol=1e-3, atol=1e-3)


def outputs_apart(
    matrix: NDArray[np.float32], inputs: NDArray[np.float64], whole: NDArray[np.int8], scales: NDArray[np.float32]
) -> float:
    return float(np.square(inputs @ (matrix - whole * scales[:, None]).T).sum())


def test_outputs_change_less_than_with_every_number_rounded_to_its_nearest() -> None:
    random = np.random.default_rng(1)
    matrix = random.normal(size=(40, 300)).astype(np.float32)
    inputs = random.normal(size=(900, 20)) @ random.normal(size=(20, 300)) + random.normal(0, 0.3, (900, 300))
    alone = outputs_apart(matrix, inputs, *rounded(matrix, None))
    together = outputs_apart(matrix, inputs, *rounded(matrix, inputs.T @ inputs))
    assert together < 0.3 * alone


@settings(deadline=None)
@given(
    shape=some.tuples(some.integers(1, 5), some.integers(1, 150)),
    rank=some.integers(0, 3),
    size=some.sampled_from([0.0, 1e-20, 1.0, 1e6]),
    seed=some.integers(0, 99),
)
def test_numbers_fit_eight_bits_whatever_the_inputs(shape: tuple[int, int], rank: int, size: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = (size * random.normal(size=shape)).astype(np.float32)
    inputs = random.normal(size=(rank, shape[1]))
    whole, scales = rounded(matrix, inputs.T @ inputs)
    assert whole.dtype == np.int8 and whole.min() >= -127 and np.isfinite(scales).all() and (scales > 0).all()
    wanted, _ = rounded(matrix, None)
    assert np.abs(wanted.astype(int) * scales[:, None] - matrix).max() <= 0.51 * scales.max()


@pytest.mark.parametrize("settings_of_it", [{}, {"stride": 2, "padding": (1, 2)}, {"dilation": 2, "padding": 1}])
def test_the_inputs_of_a_convolution_are_those_that_its_outputs_are_made_of(settings_of_it: dict[str, int]) -> None:
    layer = nn.Conv2d(4, 5, 3, bias=False, **settings_of_it)
    pad = layer.padding if isinstance(layer.padding, tuple) else (layer.padding, layer.padding)
    node = onnx.helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=layer.stride, dilations=layer.dilation, pads=[*pad, *pad]
    )
    values = torch.randn(1, 4, 9, 11)
    known = _Layer(node, layer.weight.detach().numpy(), transposed=False)
    rows = _inputs(known, values.numpy(), np.random.default_rng(0))
    outputs = {tuple(np.round(one, 3)) for one in (rows @ known.matrix.T).tolist()}
    wanted = {tuple(np.round(one, 3)) for one in layer(values)[0].flatten(1).T.tolist()}
    assert len(outputs - wanted) <= 1 and len(outputs) >= min(len(wanted), 60)  # one may be rounded otherwise


def test_activations_are_in_eight_bits_where_features_bear_it_and_weights_alone_elsewhere(
    backbone: onnx.ModelProto, images: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = in_eight_bits(backbone, images[:6])
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in computed.graph.node}
    assert apart(features_of(backbone, images[6:]), features_of(computed, images[6:])) < 0.5
    for bar, what in ((1.0, ALL), (0.0, WEIGHTS)):
        monkeypatch.setattr(quantise, "COMPUTED_ON", bar)
        found = quantised(backbone, images)
        assert found.what == what and ("QuantizeLinear" in {one.op_type for one in found.backbone.graph.node}) == (
            what == ALL
        )
        distance = apart(features_of(backbone, images[6:]), features_of(found.backbone, images[6:]))
        assert found.apart == pytest.approx(distance) and found.apart <= found.computed_apart
