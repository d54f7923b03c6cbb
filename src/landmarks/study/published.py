"""What the study published, as far as it is known here: its networks, its data and its figures."""

from __future__ import annotations

IN_THE_TABLE = ("baseline", "resnet18", "resnet50", "xception", "inception_v3")
"""The networks of the study's table, in its order: the baseline from scratch, the others from ImageNet."""

DROPPED = ("inception_resnet_v2", "nasnet_large")
"""Networks that the study began with and gave up for want of memory."""

LANDMARKS, PHOTOGRAPHS = 20, 15_636
"""Its data: 20 of the 100 landmarks at the ranks 50 to 149, drawn once."""

_FIGURES = {"xception": (0.8595, 0.8531)}


def published(network: str) -> dict[str, float | None] | None:
    """Return the study's top-1 `validation` and `test` accuracy of a network.

    The shares are None where its table's figure is not known here; None for a network that is not in its table.
    """
    if network not in IN_THE_TABLE:
        return None
    validation, test = _FIGURES.get(network, (None, None))
    return {"validation": validation, "test": test}
