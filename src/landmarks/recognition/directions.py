"""Directions of features, by which images are compared: as a numpy function, and as a layer of a network."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from landmarks.support.seeds import generator

MAX_WIDTH = 2048
"""Longest directions; wider features are sketched down to it, since covariances grow with its square."""

BLOCK_BYTES = 1 << 25
"""Approximate size of the features that are turned into directions at a time."""

TINY = 1e-12
"""Keeps square roots and lengths away from 0, where they have no gradient."""


def compared_width(width: int) -> int:
    """Return the length of the `directions` of features of length `width`."""
    return min(width, MAX_WIDTH)


def directions(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return signed square roots of features `(N, W)`, normalised to length 1, as `(N, compared_width(W))`.

    The square roots keep a few large channels from dominating the cosine (Arandjelović & Zisserman, CVPR 2012,
    RootSIFT; Perronnin et al., ECCV 2010). Features wider than `MAX_WIDTH` are added with random signs into `MAX_WIDTH`
    sums, which preserves their cosines in expectation (Charikar et al., ICALP 2002, count sketch).
    """
    width = features.shape[1]
    values = np.empty((len(features), compared_width(width)), dtype=np.float32)
    step = max(1, BLOCK_BYTES // (4 * width))
    for start in range(0, len(features), step):
        values[start : start + step] = _directions(features[start : start + step])
    return values


def _directions(features: NDArray[np.floating]) -> NDArray[np.float32]:
    roots = np.sign(features) * np.sqrt(np.abs(features.astype(np.float32)))
    width = features.shape[1]
    if width > MAX_WIDTH:
        signs, places = sketch(width)
        sums = np.zeros((MAX_WIDTH, len(roots)), dtype=np.float32)
        np.add.at(sums, places, (roots * signs).T)
        roots = sums.T
    length = np.linalg.norm(roots, axis=1, keepdims=True)
    return np.asarray(roots / np.maximum(length, 1e-12), dtype=np.float32)


def sketch(width: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the sign of each of `width` features and the index of the sum it is added to, `(width,)` each."""
    random = generator("sketch", width)
    signs = random.choice(np.array([-1, 1], dtype=np.float32), size=width)
    return signs, random.integers(MAX_WIDTH, size=width)


class Directions(nn.Module):
    """`directions` as a layer, for autograd and for exports with any number of images."""

    signs: Tensor
    members: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = width > MAX_WIDTH
        if self.wide:
            signs, places = sketch(width)
            self.register_buffer("signs", torch.from_numpy(signs))
            self.register_buffer("members", torch.from_numpy(members_of(places, MAX_WIDTH)))

    def forward(self, features: Tensor) -> Tensor:
        """Return directions (N, C) of features (N, W)."""
        roots = features / features.abs().clamp(min=TINY).sqrt()
        if self.wide:
            padded = functional.pad(roots * self.signs, (0, 1))
            roots = padded[:, self.members.flatten()].reshape(-1, *self.members.shape).sum(2)
        return functional.normalize(roots, dim=1, eps=TINY)


def members_of(places: NDArray[np.int64], sums: int) -> NDArray[np.int64]:
    """Return the inverse of `places` `(W,)`: the indices that are mapped to each sum, `(sums, m)`, padded with W.

    In ONNX, gathering by these leaves the batch size open; scatter-adding by `places` does not.
    """
    order = np.argsort(places, kind="stable")
    counts = np.bincount(places, minlength=sums)
    rank = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    members = np.full((sums, counts.max()), len(places), dtype=np.int64)
    members[places[order], rank] = order
    return members
