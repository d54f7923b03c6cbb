"""The default: head training on cached features, then fine-tuning of the whole network with small learning rates.

    landmarks train DATA -o RUN --backbone mobilenetv2_100 --weights mobilenetv2_100.safetensors --image-size 160 \
        --epochs 5 --seed SEED

On 2,510 real images of 25 landmarks (group split, two cores, 2026-11-24) seeds 0, 1 and 2 reached 96.6, 95.7 and
95.7 % of 536 validation images, and 94.5 % each of a separate test set of 677; head training alone reached about 92 %
of validation. `python benchmarks/accuracy.py` repeats this, together with `study`, fastai and timm.
"""

from __future__ import annotations

from dataclasses import replace

from landmarks.training.recipe import Augmentation, Recipe

PRETRAINED = Recipe(name="default")

FROM_SCRATCH = replace(
    PRETRAINED,
    weights="none",
    epochs=30,
    patience=10,
    learning_rate=1e-3,
    augmentation=Augmentation(crop_scale=0.5),
)
