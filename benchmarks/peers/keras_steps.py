"""Training steps of a Keras application on JPEG files, as Keras's guide to transfer learning has them: images/s.

    PEER/bin/python keras_steps.py FOLDER ResNet50 224 16 25 6

FOLDER holds a folder per class. `image_dataset_from_directory` with prefetching, the study's head, Adam, `fit`;
the first step compiles and is left out. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras
import tensorflow as tf


class Clock(keras.callbacks.Callback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:  # noqa: D102
        self.ends.append(time.perf_counter())


def main() -> None:
    folder, name, size, batch, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    loaded = keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=batch, label_mode="int", seed=0, verbose=False
    )
    classes = len(loaded.class_names)
    module = {"ResNet50": "resnet", "Xception": "xception", "InceptionV3": "inception_v3"}[name]
    preprocess = getattr(keras.applications, module).preprocess_input
    backbone = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(size, size, 3), pooling="avg"
    )
    inputs = keras.Input((size, size, 3))
    images = preprocess(keras.layers.RandomFlip("horizontal")(inputs))
    hidden = keras.layers.Dense(512, activation="relu")(backbone(images))
    network = keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(hidden))
    network.compile(keras.optimizers.Adam(1e-5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    clock = Clock()
    endless = loaded.repeat().prefetch(tf.data.AUTOTUNE)
    network.fit(endless, steps_per_epoch=steps + 1, epochs=1, verbose=0, callbacks=[clock])
    seconds = clock.ends[-1] - clock.ends[0]
    print(json.dumps({"images_per_second": steps * batch / seconds, "keras": keras.__version__}))


if __name__ == "__main__":
    main()
