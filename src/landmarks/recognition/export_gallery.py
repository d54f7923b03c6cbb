"""The scores that compare an image with remembered ones, as a layer of an export, in a full and in a compact form.

Both Mahalanobis scores are differences of squared distances, which share most of what they are made of. With P the
inverse covariance within landmarks, Q that of all images, and the means m of all images, c_k of a landmark and u of
unknown images:

    contrast(x)    = uᵀPu - 2 uᵀPx - min_k (c_kᵀPc_k - 2 c_kᵀPx)
    mahalanobis(x) = xᵀ(Q - P)x - 2 mᵀQx + mᵀQm - min_k (c_kᵀPc_k - 2 c_kᵀPx)

so that one symmetric matrix Q - P and some columns are kept instead of two whitening matrices and their means.

In full, numbers are in half precision, or in single if half cannot hold them (inverse covariances where each landmark
has one image). The compact form stores remembered images by their coordinates along their main axes, and all numbers as
multiples of a step, which compress well. If axes would take more room than they save, images are in eight bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from landmarks.recognition.directions import Directions
from landmarks.recognition.gallery import NEIGHBOURS, WARMTH, Gallery, centre_of_unknown, sample
from landmarks.recognition.known_scores import CONTRAST, KNN, KNN_UNKNOWN, MAHALANOBIS, WITH_UNKNOWN
from landmarks.support.errors import LandmarksError

MAX_BYTES = 32 * 1024**2
"""Size of the remembered images in half precision: 13,000 of them of 1,280 numbers."""

KEPT = 0.97
"""Share of the squared length of remembered images that their main axes hold in the compact form."""

STEP = 1 / 48
"""Step of the coordinates of remembered images, which have length 1: rounding moves a cosine by STEP / √12 = 0.006."""

STEPS = 31
"""Largest multiple in a column of axes, or of the matrix Q - P without its diagonal."""

EIGHT_BITS = 127
"""Largest multiple in a column of images that are not stored along axes."""


class GalleryScores(nn.Module):
    """The scores in `needs` of features (N, W), as `recognition.gallery` defines them.

    Raises `LandmarksError` if the gallery, or its unknown images, are needed and missing.
    """

    labels: Tensor
    centres: Tensor
    centre_squares: Tensor
    unknown_centre: Tensor
    unknown_square: Tensor
    mean: Tensor
    mean_square: Tensor
    diagonal: Tensor

    def __init__(self, gallery: Gallery | None, needs: frozenset[str], width: int, *, compact: bool) -> None:
        super().__init__()
        if gallery is None or (gallery.unknown is None and needs & WITH_UNKNOWN):
            raise LandmarksError(
                "the run has a threshold, but not the images that it compares with",
                way_out="choose it again with: landmarks evaluate RUN --data TEST --false-acceptance RATE",
            )
        self.needs, self.directions = needs, Directions(width)
        self.axes: _Columns | None = None
        self.unknown: _Columns | None = None
        if needs & {KNN, KNN_UNKNOWN}:
            self._remember_images(gallery, compact=compact)
        if needs & {MAHALANOBIS, CONTRAST}:
            self._remember_distributions(gallery, compact=compact)

    def _remember_images(self, gallery: Gallery, *, compact: bool) -> None:
        kept = sample(gallery.labels, max(1, MAX_BYTES // (2 * gallery.images.shape[1])))
        images = {"images": torch.from_numpy(gallery.images[kept])}
        if gallery.unknown is not None and KNN_UNKNOWN in self.needs:
            images["unknown"] = torch.from_numpy(gallery.unknown.images)
        self.register_buffer("labels", torch.from_numpy(gallery.labels[kept]))
        together = torch.cat(list(images.values()))
        axes = main_axes(together) if compact else None
        if axes is not None and axes.shape[1] * sum(together.shape) < together.numel():
            self.axes = _in_steps(axes)
            columns = {name: _along(axes, block) for name, block in images.items()}
        elif compact:
            columns = {name: _in_steps(block.T, EIGHT_BITS) for name, block in images.items()}
        else:
            columns = {name: _Columns(block.T.contiguous()) for name, block in images.items()}
        self.images = columns["images"]
        self.unknown = columns.get("unknown")

    def _remember_distributions(self, gallery: Gallery, *, compact: bool) -> None:
        within, overall = (torch.from_numpy(matrix).double() for matrix in (gallery.within, gallery.overall))
        centres = torch.from_numpy(gallery.centres).double()  # whitened within landmarks
        self.register_buffer("centres", _in_half(within @ centres.T))
        self.register_buffer("centre_squares", centres.square().sum(1).float())
        if gallery.unknown is not None and CONTRAST in self.needs:
            centre = torch.from_numpy(centre_of_unknown(gallery, gallery.unknown)).double()
            self.register_buffer("unknown_centre", _in_half(within @ centre))
            self.register_buffer("unknown_square", centre.square().sum().float())
        if MAHALANOBIS in self.needs:
            mean = torch.from_numpy(gallery.mean).double() @ overall
            self.register_buffer("mean", _in_half(overall @ mean))
            self.register_buffer("mean_square", mean.square().sum().float())
            difference = overall @ overall.T - within @ within.T
            self.register_buffer("diagonal", difference.diagonal().float())
            below = 2 * difference.tril(-1)  # as what stands above it is the same
            self.below_diagonal = _in_steps(below) if compact else _Columns(_in_half(below))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return score name → (N,) of features (N, W)."""
        images = self.directions(features)
        along = images if self.axes is None else self.axes(images)
        scores = {}
        if KNN in self.needs:
            cosines, places = self.images(along).topk(min(NEIGHBOURS, len(self.labels)), dim=1)
            labels = self.labels[places]
            same = (labels[:, :, None] == labels[:, None, :]).float()
            votes = (same * ((cosines[:, None, :] - 1) / WARMTH).exp()).sum(2)
            scores[KNN] = votes.amax(1).clamp(min=1e-30).log()
        if self.unknown is not None:
            cosines = self.unknown(along).topk(min(NEIGHBOURS, self.unknown.count), dim=1).values
            scores[KNN_UNKNOWN] = -((cosines - 1) / WARMTH).exp().sum(1).clamp(min=1e-30).log()
        if {MAHALANOBIS, CONTRAST} & self.needs:
            nearest = (self.centre_squares - 2 * images @ self.centres.float()).amin(1)
            if CONTRAST in self.needs:
                scores[CONTRAST] = self.unknown_square - 2 * images @ self.unknown_centre.float() - nearest
            if MAHALANOBIS in self.needs:
                difference = (images * (self.below_diagonal(images) + images * self.diagonal)).sum(1)
                scores[MAHALANOBIS] = difference + self.mean_square - 2 * images @ self.mean.float() - nearest
        return scores


class _Columns(nn.Module):
    """Multiplies images (N, C) by columns (C, M), which are `numbers` times a scale each or one for all."""

    numbers: Tensor
    scales: Tensor | None

    def __init__(self, numbers: Tensor, scales: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("numbers", numbers)
        self.register_buffer("scales", scales)
        self.count = numbers.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the product (N, M)."""
        product = images @ self.numbers.float()
        return product if self.scales is None else product * self.scales


def main_axes(images: Tensor) -> Tensor:
    """Return the orthogonal axes (C, A) that hold `KEPT` of the squares of images (M, C), the heaviest first."""
    images = images.double()
    squares, axes = torch.linalg.eigh(images.T @ images)
    squares, axes = squares.flip(0).clamp(min=0), axes.flip(1)
    count = int((squares.cumsum(0) < KEPT * squares.sum()).sum()) + 1
    main: Tensor = axes[:, :count]
    return main


def _along(axes: Tensor, images: Tensor) -> _Columns:
    """Return images (M, C) as columns along `axes` (C, A), in multiples of `STEP`."""
    numbers = ((images.double() @ axes).T / STEP).round().clamp(-127, 127)
    return _Columns(numbers.to(torch.int8).contiguous(), torch.tensor([STEP]))


def _in_steps(columns: Tensor, steps: int = STEPS) -> _Columns:
    """Return columns (C, M) as numbers of at most `steps` and a scale each."""
    scales = columns.float().abs().amax(0).clamp(min=1e-12) / steps
    return _Columns((columns.float() / scales).round().to(torch.int8).contiguous(), scales)


def _in_half(numbers: Tensor) -> Tensor:
    """Return `numbers` in half precision, or in single if they are too large for it."""
    half = numbers.half()
    return half if bool(half.isfinite().all()) else numbers.float()
