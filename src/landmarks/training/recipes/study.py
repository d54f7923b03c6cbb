"""The study's training, as far as it is known.

Known: ImageNet weights; global average pooling, dense 512 with ReLU, dense softmax; phase one trains the head alone
for 10 epochs with the backbone frozen; phase two trains everything at a small learning rate; augmentation by random
crops, flips and colours; plain cross-entropy; the baseline and its two convolutions are trained from scratch. Not
known, and set here as in Keras's guide to fine-tuning: Adam with a learning rate of 1e-3 for the head and from scratch
and of 1e-5 for everything, without a schedule, in batches of 32.

    landmarks train DATA -o RUN --recipe study --backbone xception

With `mobilenetv2_100` at 160 pixels and `--epochs 5` it reached 89.6 to 89.9 % of 536 validation images and 87.4
to 88.6 % of a separate test set of 677 (seeds 0, 1 and 2, 2026-11-24, `python benchmarks/accuracy.py`).
"""

from __future__ import annotations

from dataclasses import replace

from landmarks.training.recipe import Augmentation, Recipe

PRETRAINED = Recipe(
    name="study",
    head_epochs=10,
    head_patience=10,
    head_batch_size=32,
    head_weight_decay=0.0,
    epochs=10,
    patience=10,
    optimizer="adam",
    learning_rate=1e-5,
    backbone_learning_rate=1e-5,
    layer_decay=1.0,
    weight_decay=0.0,
    lr_warmup=0.0,
    min_lr_ratio=1.0,
    label_smoothing=0.0,
    max_grad_norm=None,
    augmentation=Augmentation(crop_scale=0.64, brightness=0.1, contrast=0.1, saturation=0.1),
)

FROM_SCRATCH = replace(PRETRAINED, weights="none", epochs=30, learning_rate=1e-3)
