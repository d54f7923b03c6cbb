"""Outputs are kept in half precision without losing what the temperature is fitted on."""

from __future__ import annotations

import torch

from landmarks.recognition.recogniser import in_half_precision


def test_outputs_of_any_size_keep_their_probabilities() -> None:
    logits = torch.tensor([[3.1e5, -2e6, 3.1e5 - 2], [0.5, 0.25, -4.0]])
    kept = in_half_precision(logits)
    assert kept.dtype == torch.float16 and bool(kept.isfinite().all())
    torch.testing.assert_close(kept.float().softmax(1), logits.softmax(1), atol=1e-3, rtol=0)
