"""fastai's `fine_tune` on unpacked folders, as its documentation has it: minutes, and accuracy after every epoch.

    PEER/bin/python fastai_finetune.py DATA TEST --backbone mobilenetv2_100 --weights FILE --image-size 160 \
        --epochs 5 --seed 0

DATA and TEST are folders that `landmarks unpack` wrote. Runs in an environment of its own (fastai, timm, safetensors)
and prints one line of JSON. `fine_tune(epochs)` trains the head for one epoch, then everything for `epochs`.
"""

from __future__ import annotations

import json
import time

import timm
import torch
from fastai.callback.core import Callback
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    set_seed,
    vision_learner,
)
from options import options
from safetensors.torch import load_file


def main() -> None:
    chosen = options()
    started = time.monotonic()
    set_seed(chosen.seed, reproducible=True)
    loaders = ImageDataLoaders.from_folder(
        chosen.data,
        train="train",
        valid="val",
        item_tfms=Resize(round(chosen.image_size * 1.4)),  # the book's presizing: larger, then cropped in the batch
        batch_tfms=[*aug_transforms(size=chosen.image_size, min_scale=0.75), Normalize.from_stats(*imagenet_stats)],
    )
    learner = vision_learner(loaders, chosen.backbone, pretrained=False, metrics=accuracy)
    backbone = learner.model[0].model
    state = load_file(chosen.weights)
    missing, unexpected = backbone.load_state_dict(
        {name: tensor.float() for name, tensor in state.items()}, strict=False
    )
    fresh = timm.create_model(chosen.backbone, num_classes=0).state_dict()
    assert not [name for name in missing if not name.endswith("num_batches_tracked")], missing
    assert all(name not in fresh for name in unexpected), unexpected

    curve: list[dict[str, float]] = []

    class Watch(Callback):
        order = 90  # after the recorder has written the epoch

        def after_epoch(self) -> None:
            _, loss, right = self.recorder.values[-1]  # of training and validation
            curve.append({"minutes": (time.monotonic() - started) / 60, "val_loss": loss, "val_accuracy": right})

    with learner.no_bar(), learner.no_logging():
        with learner.added_cbs(Watch()):
            learner.fine_tune(chosen.epochs)
        minutes = (time.monotonic() - started) / 60
        known = set(map(str, loaders.vocab))
        files = [path for path in get_image_files(chosen.test) if path.parent.name in known]
        scores, _ = learner.get_preds(dl=loaders.test_dl(files))
    answers = [loaders.vocab[at] for at in scores.argmax(1)]
    right = [answer == path.parent.name for answer, path in zip(answers, files, strict=True)]
    told = {"peer": "fastai", "seed": chosen.seed, "epochs": chosen.epochs, "minutes": minutes, "curve": curve}
    told |= {"val_accuracy": curve[-1]["val_accuracy"], "test_accuracy": sum(right) / len(right), "test": len(right)}
    print(json.dumps(told | {"threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
