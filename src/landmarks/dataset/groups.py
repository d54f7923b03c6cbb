"""Groups: photographs that must land in the same part, because one gives the other away."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dctn

SIDE = 32
"""Pixels along each side of the small luminance picture that is hashed."""

FLATTEST = 3.0
"""Standard deviation in grey levels below which a picture shows nothing that could be recognised again."""

NO_HASH = 0
"""The hash of a picture without structure; it is near nothing, not even itself."""


def perceptual_hash(image: np.ndarray[Any, Any]) -> int:
    """Return 64 bits that stay nearly the same when uint8 `(H, W, 3)` is resized, recompressed, cropped a little.

    Signs of the 64 lowest frequencies of the luminance at 32 × 32 pixels (a DCT; Zauner, "Implementation and
    benchmarking of perceptual image hash functions", 2010). Flat pictures get `NO_HASH`.
    """
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    if small.std() < FLATTEST:
        return NO_HASH
    waves = dctn(small, norm="ortho")[1:9, 1:9].ravel()
    bits = np.packbits(waves > np.median(waves))
    return int.from_bytes(bits.tobytes(), "big") or 1
