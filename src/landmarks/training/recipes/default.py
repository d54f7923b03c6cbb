"""The best we can show: warm-up on cached features, then gentle fine-tuning of everything.

landmarks train DATA -o RUN --backbone mobilenetv2_100 --image-size 160
"""

from __future__ import annotations

from dataclasses import replace

from landmarks.training.augment import Augmentation
from landmarks.training.recipe import Recipe

PRETRAINED = Recipe(name="default")

FROM_SCRATCH = replace(
    PRETRAINED,
    weights="none",
    epochs=30,
    patience=10,
    learning_rate=1e-3,
    augmentation=Augmentation(smallest_crop=0.5),
)
