"""The fastest: frozen features and a head in closed form, without a gradient step.

landmarks train DATA -o RUN --recipe instant --weights tf_efficientnet_lite2.safetensors
"""

from __future__ import annotations

from landmarks.training.recipe import Recipe

PRETRAINED = Recipe(
    name="instant",
    backbone="tf_efficientnet_lite2",
    head="linear",
    head_solver="discriminant",
    image_size=224,
    head_epochs=0,
    epochs=0,
)

FROM_SCRATCH = None
"""Features of random weights are useless, so this recipe cannot start from scratch."""
